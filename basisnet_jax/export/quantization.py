"""Makes .tflite files smaller by litert-quantizer: a recipe for each kind of quantization."""

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from basisnet_jax.serving.tflite import SIGNATURE
from basisnet_jax.training.fake_quantization import PIXEL_CHANNELS

# Rows of a synthesized kernel, see `phone_layers.synthesize`; one and eight are slower (docs/design/latency.md).
ROWS = {"int8_weights": 4, "int8": 4}


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
    rules.load_quantization_recipe(_recipe(content, kind))
    printed = io.StringIO()  # progress bars and sizes
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        # Its default, a moving average of the ranges, clips: 26% instead of 2% of the largest output in a test's layer.
        ranges = calibrator.Calibrator(bytearray(content), qsv_update_func=qsv_utils.min_max_update)
        if kind == "int8":
            ranges.calibrate({SIGNATURE: list(map(dict, examples))}, rules)
        steps = quantizer.Quantizer(bytearray(content), rules.get_quantization_recipe())
        return bytes(steps.quantize(ranges.get_model_qsvs() if kind == "int8" else None).quantized_model)


def _recipe(content: bytes, kind: str) -> list[dict[str, Any]]:
    """Returns rules for operators; a later rule counts."""
    from litert_quantizer import recipe

    # As TensorFlow's converter: no arrays of less than 1,024 weights, where rounding inputs takes longer than it saves.
    # XNNPACK has no depthwise convolution of floats by int8. The matrix of a product is computed, or resizes the
    # preview's image; LiteRT has no product of int8 by floats.
    weights8 = [*recipe.dynamic_legacy_wi8_afp32(), *map(_float, ("DEPTHWISE_CONV_2D", "BATCH_MATMUL"))]
    if kind == "int8_weights":
        return weights8
    if kind == "int8":
        (static,) = recipe.static_wi8_ai8()
        names = map(re.escape, _convolutions_of_features(content))
        return [*weights8, *({**static, "operation": "CONV_2D", "regex": name} for name in names)]
    weights = {"num_bits": 16, "dtype": "FLOAT", "granularity": "TENSORWISE", "symmetric": True}
    config = {"weight_tensor_config": weights, "compute_precision": "FLOAT", "explicit_dequantize": True}
    return [{"regex": ".*", "operation": "*", "algorithm_key": "float_casting", "op_config": config}]


def _float(operation: str) -> dict[str, Any]:
    return {"regex": ".*", "operation": operation, "algorithm_key": "no_quantize", "op_config": {}}


def _convolutions_of_features(content: bytes) -> list[str]:
    """Returns the names of convolutions with more than `PIXEL_CHANNELS` input channels; none is depthwise."""
    from litert_quantizer import qtyping
    from litert_quantizer.utils import tfl_flatbuffer_utils as flatbuffer

    model = flatbuffer.read_model(bytearray(content))
    return [
        flatbuffer.get_op_scope(operator, graph.tensors)
        for graph in model.subgraphs
        for operator in graph.operators
        if model.operatorCodes[operator.opcodeIndex].builtinCode == qtyping.BuiltinOperator.CONV_2D
        and graph.tensors[operator.inputs[1]].shape[-1] > PIXEL_CHANNELS
    ]
