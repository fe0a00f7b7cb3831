"""Which of two sets of answers a language model prefers: the win rate of the papers."""
