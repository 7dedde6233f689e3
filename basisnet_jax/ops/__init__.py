"""One kernel an image on CPU, GPU and TPU: synthesis, and convolutions with synthesized kernels."""
