"""Comparing ways of writing an answer, with honest intervals."""
