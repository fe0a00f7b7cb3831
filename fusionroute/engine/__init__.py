"""How tokens are produced. The engine knows no method by name."""
