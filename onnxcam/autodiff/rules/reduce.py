"""VJP rules: reduce."""
