"""A trained network in the formats that other programs run: one file a format."""
