"""Makes .tflite files smaller by litert-quantizer: a recipe for each kind of quantization."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from basisnet_jax.serving.tflite import SIGNATURE

ROWS = {"int8_weights": 4}  # see `phone_layers.synthesize`; one and eight are slower (docs/design/latency.md)


def quantized(content: bytes, kind: str, examples: Sequence[Mapping[str, np.ndarray]] = ()) -> bytes:
    """Quantizes a .tflite file.

    Args:
      content: the file, in float32.
      kind: see `formats.Format.quantization`.
      examples: for 'int8', {input: array of one batch} each.

    Returns:
      The smaller file; its inputs and outputs stay float32.
    """
    from litert_quantizer import calibrator, quantizer, recipe_manager
    from litert_quantizer.utils import qsv_utils

    rules = recipe_manager.RecipeManager()
    rules.load_quantization_recipe(_recipe(kind))
    printed = io.StringIO()  # progress bars and sizes
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        # Its default, a moving average of the ranges, clips: 26% instead of 2% of the largest output in a test's layer.
        ranges = calibrator.Calibrator(bytearray(content), qsv_update_func=qsv_utils.min_max_update)
        if kind == "int8":
            ranges.calibrate({SIGNATURE: list(map(dict, examples))}, rules)
        steps = quantizer.Quantizer(bytearray(content), rules.get_quantization_recipe())
        return bytes(steps.quantize(ranges.get_model_qsvs() if kind == "int8" else None).quantized_model)


def _recipe(kind: str) -> list[dict[str, Any]]:
    """Returns rules for operators; a later rule counts."""
    from litert_quantizer import recipe

    if kind == "int8_weights":
        # As TensorFlow's converter: no arrays of less than 1,024 weights, where rounding inputs takes longer than it
        # saves. XNNPACK has no depthwise convolution of floats by int8.
        return [*recipe.dynamic_legacy_wi8_afp32(), _float("DEPTHWISE_CONV_2D")]
    if kind == "int8":
        return [*recipe.static_wi8_ai8(), _float("INPUT"), _float("OUTPUT")]
    weights = {"num_bits": 16, "dtype": "FLOAT", "granularity": "TENSORWISE", "symmetric": True}
    config = {"weight_tensor_config": weights, "compute_precision": "FLOAT", "explicit_dequantize": True}
    return [{"regex": ".*", "operation": "*", "algorithm_key": "float_casting", "op_config": config}]


def _float(operation: str) -> dict[str, Any]:
    return {"regex": ".*", "operation": operation, "algorithm_key": "no_quantize", "op_config": {}}
