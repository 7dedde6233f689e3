"""LiteRT (TensorFlow Lite): converts a pure function to a .tflite file with built-in operators only."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from basisnet_jax.host.devices import hide_accelerators_from_tensorflow
from basisnet_jax.serving.tflite import SIGNATURE


def to_tflite(
    function: Callable[..., Any],
    inputs: Mapping[str, tuple[int, ...]],
    outputs: Sequence[str],
    convert: Callable[[Any], bytes] = lambda converter: converter.convert(),
) -> bytes:
    """Converts a pure JAX function of float32 arrays to a .tflite file.

    Args:
      function: takes an array for each input, in order, and returns an output or a tuple of outputs.
      inputs: {name: shape}, all static.
      outputs: names of the outputs.
      convert: a tf.lite.TFLiteConverter -> the file, for example quantized.

    Returns:
      The file's content; the signature SIGNATURE names the inputs and outputs.
    """
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
        return convert(converter)
