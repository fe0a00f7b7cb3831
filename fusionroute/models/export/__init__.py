"""A team as one checkpoint for vLLM."""
