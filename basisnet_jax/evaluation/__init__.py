"""Evaluates a whole split: metrics, early exits, coefficients, and plots of them."""
