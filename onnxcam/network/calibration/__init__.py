"""Calibration: one temperature for probabilities, and prediction sets that contain the true class with a set chance."""
