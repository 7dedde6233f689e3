"""Smaller .tflite files: a converter for `litert.to_tflite` for each kind of quantization."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

ROWS = {"int8_weights": 4}  # see `phone_layers.synthesize`; one and eight are slower (docs/design/latency.md)


def quantizer(kind: str, examples: Sequence[Mapping[str, np.ndarray]] = ()) -> Callable[[Any], bytes]:
    """Returns a function for the argument `convert` of `litert.to_tflite`.

    Args:
      kind: see `formats.Format.quantization`; '' for float32.
      examples: for 'int8', {input: array of one batch} each, as realistic as possible.
    """

    def convert(converter: Any) -> bytes:
        import tensorflow as tf

        if kind:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if kind == "int8":
            converter.representative_dataset = lambda: iter(map(dict, examples))
        content = converter.convert()
        return _with_float_depthwise(content) if kind == "int8_weights" else content

    return convert


def _with_float_depthwise(content: bytes) -> bytes:
    """Turns int8 kernels of float depthwise convolutions into float32: XNNPACK takes only those; they are small."""
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    codes = [code.builtinCode for code in model.operatorCodes]
    for graph in model.subgraphs:
        for operator in graph.operators:
            if codes[operator.opcodeIndex] != schema.BuiltinOperator.DEPTHWISE_CONV_2D:
                continue
            kernel = graph.tensors[operator.inputs[1]]
            if kernel.type == schema.TensorType.INT8:
                kernel_1xKxKxC = np.frombuffer(model.buffers[kernel.buffer].data, np.int8).reshape(kernel.shape)
                values = kernel_1xKxKxC * np.asarray(kernel.quantization.scale, np.float32)  # a scale per channel
                kernel.type, kernel.quantization, kernel.buffer = schema.TensorType.FLOAT32, None, len(model.buffers)
                model.buffers.append(schema.BufferT())
                model.buffers[-1].data = np.frombuffer(values.tobytes(), np.uint8)
    return flatbuffer_utils.convert_object_to_bytearray(model)
