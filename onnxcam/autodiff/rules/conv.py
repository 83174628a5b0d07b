"""VJP rules: conv."""
