"""Which experts a model takes for each question: recorded, kept on disk, compared."""
