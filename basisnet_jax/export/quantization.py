"""Smaller .tflite files: what `litert.to_tflite` is to set on TensorFlow's converter for each kind of quantization."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# float16: weights, unpacked to float32 when the file is loaded. int8_weights: those of convolutions, dense layers and
# bases, with a scale for each output channel. int8: activations too, in ranges taken from examples.
KINDS = ("float16", "int8_weights", "int8")


def quantizer(kind: str, examples: Sequence[Mapping[str, np.ndarray]] = ()) -> Callable[[Any], None]:
    """A value for `optimize` of `litert.to_tflite`.

    Args:
      kind: one of KINDS, or '' for float32.
      examples: for 'int8', {input: array of one batch} each, as real as can be.
    """

    def optimize(converter: Any) -> None:
        import tensorflow as tf

        if kind:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if kind == "int8":
            converter.representative_dataset = lambda: iter(map(dict, examples))

    return optimize
