"""Inference on an export without JAX: the rule, the manifest, files in LiteRT."""
