"""Converts a network into the formats of `serving/formats.py`, and names the loader that runs each format."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from basisnet_jax.experiment import network_files
from basisnet_jax.export import phone_layers, publishers
from basisnet_jax.export.folded import OUTPUTS, Network
from basisnet_jax.export.litert import to_tflite
from basisnet_jax.export.onnx import load_onnx, to_onnx
from basisnet_jax.export.quantization import ROWS
from basisnet_jax.export.stablehlo import load_stablehlo, to_stablehlo
from basisnet_jax.host.terminal import Progress
from basisnet_jax.serving.formats import FORMATS, WEIGHTS
from basisnet_jax.serving.tflite import LiteRTStage

# {runtime of a format: loader}; a loader makes a function of arrays_Bx, for any B, that returns a list of outputs
LOADERS: dict[str, Callable[[bytes], Callable[..., Sequence[Any]]]] = {
    "LiteRT": LiteRTStage,
    "jax.export": load_stablehlo,
    "ONNX Runtime": load_onnx,
}


def convert(
    network: Network, formats: Sequence[str], calibration_BxHxWxC: np.ndarray, progress: Progress
) -> dict[str, bytes]:
    """Converts the network; returns {file name, such as 'preview.tflite': content} of all formats.

    Args:
      network: the network to convert.
      formats: names of FORMATS.
      calibration_BxHxWxC: uint8 images whose activations set the ranges of int8.
      progress: shows which file is converted.
    """
    files = {}
    for name in formats:
        if FORMATS[name].runtime == "LiteRT":
            kind = FORMATS[name].quantization
            examples = _examples(network, calibration_BxHxWxC) if kind == "int8" else []
            for stage, function in network.stages(phone_layers.interceptor(ROWS.get(kind, 1))).named().items():
                shapes = {key: (network.batch, *shape) for key, shape in network.inputs(stage).items()}
                progress.stage(f"exporting {stage}.{name}")
                inputs = [{key: example[key] for key in shapes} for example in examples]
                files[f"{stage}.{name}"] = to_tflite(function, shapes, OUTPUTS[stage], kind, inputs)
    if "stablehlo" in formats:
        for stage, function in network.stages().named().items():
            progress.stage(f"exporting {stage}.stablehlo")
            files[f"{stage}.stablehlo"] = to_stablehlo(function, network.inputs(stage))
    if "safetensors" in formats:
        progress.stage(f"exporting {WEIGHTS}")
        assert network.facts is not None
        files |= network_files.to_files(network.facts, network.variables)
    for name in formats:
        if FORMATS[name].publisher:
            files[f"specialist.{name}"] = publishers.to_file(network, name)
    if "onnx" in formats:
        for stage in network.stages().named():
            progress.stage(f"exporting {stage}.onnx")
            files[f"{stage}.onnx"] = to_onnx(files[f"{stage}.tflite"])
    return files


def _examples(network: Network, images_BxHxWxC: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Returns the inputs of the stages' files for these images, a dictionary for each full batch."""
    inputs, preview = {"image": images_BxHxWxC.astype(np.float32)}, network.stages().first
    if preview:
        inputs["coefficients"] = np.asarray(jax.jit(preview)(images_BxHxWxC)[1])
    starts = range(0, len(images_BxHxWxC) - network.batch + 1, network.batch)
    return [{name: array[start : start + network.batch] for name, array in inputs.items()} for start in starts]
