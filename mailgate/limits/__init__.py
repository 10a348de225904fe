"""How many at once."""
