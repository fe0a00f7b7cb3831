"""One comparison: methods × tasks × seeds, measured cell by cell, and what it comes to."""
