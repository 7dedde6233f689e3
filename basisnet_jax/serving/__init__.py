"""Inference on an export without JAX: the exit rule, the manifest, LiteRT files."""
