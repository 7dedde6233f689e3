"""Compiles programs ahead of time for devices that are not here, and estimates their cost."""
