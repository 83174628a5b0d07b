"""VJP rules: norm."""
