"""Trained networks on images: two stages, the second for those images that need it."""
