"""The formats of an export's files, by name, and what each needs.

A format's name is what follows the stage in its files' names: 'preview.int8.tflite' is of 'int8.tflite'.
"""

import dataclasses
import importlib.util
from collections.abc import Iterable

from basisnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
      runtime: what runs its files.
      packages: whose versions matter.
      modules: what must be importable to make a file.
      exact: whether a file must answer as the network does; what a quantized file loses is reported.
      quantization: what makes the file smaller, '' for none. float16: weights, unpacked to float32 when the file is
        loaded. int8_weights: those of convolutions, dense layers and bases, with a scale for each output channel;
        depthwise kernels are rounded alike, and stored as float32. int8: activations too, in ranges taken from
        examples.
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
    """Raises UserError if what a format needs is not installed; nothing is imported for that."""
    for name in formats:
        missing = [module for module in FORMATS[name].modules if importlib.util.find_spec(module) is None]
        if missing:
            names, extra = " and ".join(missing), "onnx" if name == "onnx" else "train"
            raise UserError(
                f"config.export.formats has {name!r}, for which {names} must be installed; run pip install -e "
                f"'.[{extra}]', or leave {name!r} out."
            )
