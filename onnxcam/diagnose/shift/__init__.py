"""The shift between two models on the same pictures: predictions that flipped, and where their attention moved."""
