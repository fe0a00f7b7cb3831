"""Rows of text to token ids: examples and preference pairs. Knows nothing of experts."""
