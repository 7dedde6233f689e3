"""Published weights under this package's names, and stages that start from trained weights."""
