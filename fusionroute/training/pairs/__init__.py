"""Preference pairs of the team's own mistakes: answers, judged."""
