"""Do the models fit together, and what will a run cost? Asked before anything large is loaded."""
