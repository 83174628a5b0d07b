"""VJP rules: resample."""
