fusionroute generate runs/team "Ben has 22 books, finds 6 more. How many now? Spell beach in small letters with stars."
