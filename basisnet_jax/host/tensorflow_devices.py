"""Keeps accelerators from TensorFlow, which writes event files and converts models here, on the CPU."""

import contextlib


def hide_accelerators_from_tensorflow() -> None:
    """Hides GPUs and TPUs from TensorFlow: its first operation would take all memory of a GPU that JAX trains on.

    TensorFlow built for GPUs is what Colab has. Where TensorFlow has run before, what it took stays taken.
    """
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # TensorFlow has run before
        for kind in ("GPU", "TPU"):
            tf.config.set_visible_devices([], kind)
