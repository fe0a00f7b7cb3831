"""What routing is held against: models that stay as they are, and learn or are shown what stands before the text."""
