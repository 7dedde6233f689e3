"""Examples: data sets, pixels, batches of this host."""
