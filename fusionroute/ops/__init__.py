"""Pure maths, tensors in and out: no models, no files."""
