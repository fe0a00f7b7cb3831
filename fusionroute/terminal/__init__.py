"""What people look at in a terminal; plain text, free of control codes, where there is none."""
