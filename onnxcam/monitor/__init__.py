"""The low-confidence hook: explains what a deployed model was unsure of, writes it down, and reads it again."""
