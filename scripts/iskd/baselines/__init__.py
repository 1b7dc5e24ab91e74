"""Smaller models made by other means than substitution; training/ tunes them."""
