"""The formats of an export's files, by name, and what each format needs.

A format's name follows the stage in a file's name: 'preview.int8.tflite' has the format 'int8.tflite'.
"""

import dataclasses
import importlib.util
from collections.abc import Iterable

from basisnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of an export's files.

    Attributes:
      runtime: the program that runs the files.
      packages: packages whose versions matter.
      modules: modules that must be importable to make a file.
      exact: whether a file must answer like the network; the loss of a quantized file is reported.
      quantization: which values are quantized, '' for none. float16: weights, unpacked to float32 when the file is
        loaded. int8_weights: weights of convolutions, dense layers and bases, with a scale for each output channel;
        depthwise kernels are rounded in the same way, and stored as float32. int8: activations too, in ranges taken
        from examples.
    """

    runtime: str
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    exact: bool = True
    quantization: str = ""


_LITERT = Format("LiteRT", ("tensorflow-cpu", "tensorflow", "ai-edge-litert"), modules=("tensorflow", "ai_edge_litert"))
_ONNX = Format("ONNX Runtime", ("tf2onnx", "onnx", "onnxruntime"), (*_LITERT.modules, "tf2onnx", "onnx", "onnxruntime"))
FORMATS = {
    "tflite": _LITERT,
    "stablehlo": Format("jax.export", ("jax", "jaxlib"), ()),
    "onnx": _ONNX,
    **{
        f"{kind}.tflite": dataclasses.replace(_LITERT, exact=False, quantization=kind)
        for kind in ("float16", "int8_weights", "int8")
    },
}


def check_installed(formats: Iterable[str]) -> None:
    """Raises UserError if a module that a format needs is not installed; imports nothing."""
    for name in formats:
        missing = [module for module in FORMATS[name].modules if importlib.util.find_spec(module) is None]
        if missing:
            names, extra = " and ".join(missing), "onnx" if name == "onnx" else "train"
            raise UserError(
                f"config.export.formats has {name!r}, for which {names} must be installed; run pip install -e "
                f"'.[{extra}]', or leave {name!r} out."
            )
