"""Smaller .tflite files: what `litert.to_tflite` is to set on TensorFlow's converter for each kind of quantization."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

KINDS = {
    "float16": "weights in float16, unpacked to float32 when the file is loaded",
    "int8_weights": "weights of convolutions, dense layers and bases in int8, a scale for each output channel",
    "int8": "activations in int8 too, their ranges taken from images",
}


def quantizer(kind: str, examples: Iterable[dict[str, np.ndarray]] = ()) -> Callable[[Any], None]:
    """A value for `optimize` of `litert.to_tflite`.

    Args:
      kind: a name of KINDS.
      examples: for 'int8', {input's name: array of one batch}, as real as can be: preview and specialist see images,
        and the specialist the coefficients that the preview gives of them.
    """
    examples = list(examples)

    def optimize(converter: Any) -> None:
        import tensorflow as tf

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if kind == "int8":
            converter.representative_dataset = lambda: iter(examples)

    return optimize
