"""Where a test ends the program at once, to see what is left."""
