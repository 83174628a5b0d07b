"""Reports about a file, its preprocessing, its cost, and the installation."""
