"""Weights that others trained, under our names; stages that start from trained weights."""
