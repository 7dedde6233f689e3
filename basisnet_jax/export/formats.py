"""The formats by name: how a network is converted, and how what comes out is run."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from basisnet_jax.export.litert import to_tflite
from basisnet_jax.export.one_image import convolution
from basisnet_jax.export.onnx import load_onnx, to_onnx
from basisnet_jax.export.stablehlo import load_stablehlo, to_stablehlo
from basisnet_jax.export.stages import OUTPUTS, Network
from basisnet_jax.runtime import load_tflite


@dataclasses.dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
      runtime: what runs its files.
      packages: whose versions matter.
      load: a file's content -> a function of arrays_Bx for any B that gives a list of outputs.
    """

    runtime: str
    packages: tuple[str, ...]
    load: Callable[[bytes], Callable[..., Sequence[Any]]]


FORMATS = {
    "tflite": Format("LiteRT", ("tensorflow-cpu", "tensorflow", "ai-edge-litert"), load_tflite),
    "stablehlo": Format("jax.export", ("jax", "jaxlib"), load_stablehlo),
    "onnx": Format("ONNX Runtime", ("tf2onnx", "onnx", "onnxruntime"), load_onnx),
}


def convert(network: Network, formats: Sequence[str]) -> dict[str, bytes]:
    """{file's name, such as 'preview.tflite': content}, a file for each stage and format.

    Raises:
      UserError: a format's packages are not installed.
    """
    files = {}
    if "tflite" in formats:
        for stage, function in network.stages(convolution).named().items():
            shapes = {name: (network.batch, *shape) for name, shape in network.inputs(stage).items()}
            outputs = OUTPUTS[stage]
            files[f"{stage}.tflite"] = to_tflite(function, shapes, outputs)
    if "stablehlo" in formats:
        for stage, function in network.stages().named().items():
            files[f"{stage}.stablehlo"] = to_stablehlo(function, network.inputs(stage))
    if "onnx" in formats:
        for stage in network.stages().named():
            files[f"{stage}.onnx"] = to_onnx(files[f"{stage}.tflite"])
    return files
