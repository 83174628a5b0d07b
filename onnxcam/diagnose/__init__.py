"""Diagnoses, each a `Report`: of a model's gradients, its preprocessing, the installation, the cost of explaining."""
