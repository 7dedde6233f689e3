"""LiteRT (TensorFlow Lite): a pure function as a .tflite file with built-in operators alone."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from basisnet_jax.serving.tflite import SIGNATURE


def to_tflite(
    function: Callable[..., Any],
    inputs: Mapping[str, tuple[int, ...]],
    outputs: Sequence[str],
    convert: Callable[[Any], bytes] = lambda converter: converter.convert(),
) -> bytes:
    """Converts a pure JAX function of float32 arrays.

    Args:
      function: takes an array an input, in order, and returns one output or a tuple of them.
      inputs: {name: shape}, all static.
      outputs: names.
      convert: a tf.lite.TFLiteConverter -> the file, such as a quantized one.

    Returns:
      The file; its inputs and outputs have their names in the signature SIGNATURE.
    """
    import tensorflow as tf
    from jax.experimental import jax2tf

    converted = jax2tf.convert(function, with_gradient=False)

    def named(**arrays: Any) -> dict[str, Any]:
        found = converted(*(arrays[name] for name in inputs))
        return dict(zip(outputs, found if isinstance(found, tuple) else (found,), strict=True))

    specs = {name: tf.TensorSpec(shape, tf.float32, name) for name, shape in inputs.items()}
    module = tf.Module()
    module.named = tf.function(named, autograph=False)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={SIGNATURE: module.named.get_concrete_function(**specs)})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        return convert(converter)
