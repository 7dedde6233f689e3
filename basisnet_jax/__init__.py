"""BasisNet: two-stage image models whose specialist is synthesized for each image."""

__version__ = "0.1.0"
