"""Exports files for phones and servers, and checks each file in its own runtime."""
