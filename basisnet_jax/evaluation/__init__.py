"""A whole split: metrics, early exits, coefficients, and their pictures."""
