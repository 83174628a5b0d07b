"""What is asked about: classes and their names, objectives, conditions."""
