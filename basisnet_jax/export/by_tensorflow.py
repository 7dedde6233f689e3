"""TensorFlow's converter to .tflite files, by jax2tf: used where litert-converter is not installed."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from basisnet_jax.host.devices import hide_accelerators_from_tensorflow
from basisnet_jax.serving.tflite import SIGNATURE


def to_tflite(function: Callable[..., Any], inputs: Mapping[str, tuple[int, ...]], outputs: Sequence[str]) -> bytes:
    """Converts as `litert.to_tflite` does, to float32."""
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
        return converter.convert()
