"""VJP rules: shape."""
