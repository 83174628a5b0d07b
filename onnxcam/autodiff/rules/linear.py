"""VJP rules: linear."""
