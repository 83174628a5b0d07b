"""VJP rules: pool."""
