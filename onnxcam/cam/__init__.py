"""CAM methods, and the classes they explain."""
