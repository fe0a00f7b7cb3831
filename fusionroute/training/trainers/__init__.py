"""The two stages as subclasses of `transformers.Trainer`. Knows nothing of where data and results lie."""
