"""Inference with trained networks: the preview sees every image, the specialist those that need it."""
