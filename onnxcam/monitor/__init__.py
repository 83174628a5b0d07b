"""Watching a classifier in production: explanations of what it was unsure of, kept as records."""
