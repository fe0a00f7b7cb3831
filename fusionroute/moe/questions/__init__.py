"""Questions with right answers: as text, as tokens, and whether some were seen before."""
