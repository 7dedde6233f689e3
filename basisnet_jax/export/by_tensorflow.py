"""TensorFlow's converter to .tflite files, by jax2tf: used where litert-converter is not installed."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from basisnet_jax.host.devices import hide_accelerators_from_tensorflow
from basisnet_jax.serving.tflite import SIGNATURE


def to_tflite(
    function: Callable[..., Any],
    inputs: Mapping[str, tuple[int, ...]],
    outputs: Sequence[str],
    kind: str = "",
    examples: Sequence[Mapping[str, np.ndarray]] = (),
) -> bytes:
    """Converts as `litert.to_tflite` does. In int8_weights, depthwise kernels are rounded to int8 too."""
    import tensorflow as tf
    from jax.experimental import jax2tf

    hide_accelerators_from_tensorflow()
    converted = jax2tf.convert(function, with_gradient=False)

    def named(**arrays: Any) -> dict[str, Any]:
        results = converted(*(arrays[name] for name in inputs))
        return dict(zip(outputs, results if isinstance(results, tuple) else (results,), strict=True))

    specs = {name: tf.TensorSpec(shape, tf.float32, name) for name, shape in inputs.items()}
    module = tf.Module()
    module.named = tf.function(named, autograph=False)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={SIGNATURE: module.named.get_concrete_function(**specs)})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if kind:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if kind == "int8":
            converter.representative_dataset = lambda: iter(map(dict, examples))
        content = converter.convert()
        return _with_float_depthwise(content) if kind == "int8_weights" else content


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
