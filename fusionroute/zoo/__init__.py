"""A tiny offline world: a generalist, three experts tuned from it, and tasks that show what they gain together."""
