"""Generators of documentation: `python -m tools.pages` writes every generated page."""
