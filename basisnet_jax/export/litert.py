"""LiteRT (TensorFlow Lite): converts a pure function to a .tflite file with built-in operators only.

litert-converter makes the file of the function's StableHLO. Where it is not installed (the extra `litert`), TensorFlow
makes the file. `quantization` makes either one smaller.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from basisnet_jax.export import by_tensorflow, quantization
from basisnet_jax.export.stablehlo import no_locations
from basisnet_jax.serving.tflite import SIGNATURE


def to_tflite(
    function: Callable[..., Any],
    inputs: Mapping[str, tuple[int, ...]],
    outputs: Sequence[str],
    kind: str = "",
    examples: Sequence[Mapping[str, np.ndarray]] = (),
) -> bytes:
    """Converts a pure JAX function of float32 arrays to a .tflite file.

    Args:
      function: takes an array for each input, in order, and returns an output or a tuple of outputs.
      inputs: {name: shape}, all static.
      outputs: names of the outputs.
      kind: see `formats.Format.quantization`; '' for float32.
      examples: for 'int8', {input: array of one batch} each, as realistic as possible.

    Returns:
      The file's content; the signature SIGNATURE names the inputs and outputs.
    """
    convert = from_stablehlo if importlib.util.find_spec("litert_converter") else by_tensorflow.to_tflite
    content = convert(function, inputs, outputs)
    return quantization.quantized(content, kind, examples) if kind else content


def from_stablehlo(
    function: Callable[..., Any], inputs: Mapping[str, tuple[int, ...]], outputs: Sequence[str]
) -> bytes:
    """Converts as `to_tflite` does, to float32, by litert-converter."""
    from litert_converter import converter_api_ext as converter
    from litert_converter.mlir import ir, passmanager

    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in inputs.values()]
    with no_locations():
        stablehlo = export.export(jax.jit(function), platforms=("cpu",))(*shapes).mlir_module()
    context = ir.Context()
    converter.prepare_mlir_context(context)
    with context:
        module = ir.Module.parse(stablehlo)
        converter.set_signature(module.operation, SIGNATURE, list(inputs), list(outputs))
        config = converter.ConvertToTFLConfig()
        converter.run_convert_to_tfl_passes(module, passmanager.PassManager(), config)
        return converter.export_flatbuffer_to_bytes(module.operation)
