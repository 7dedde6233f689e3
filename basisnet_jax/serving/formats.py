"""The formats of an export's files, by name, and what each format needs.

A format's name follows the stage in a file's name: 'preview.int8.tflite' has the format 'int8.tflite'. The format
'safetensors' has both stages in one file, and the format 'web' is a folder with a page and copies of .tflite files.
"""

import dataclasses
import importlib.util
from collections.abc import Iterable

from basisnet_jax.errors import UserError

# The files of the format 'safetensors': the network's arrays, and what makes a network of them.
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of an export's files.

    Attributes:
      runtime: the program that runs the files.
      packages: packages whose versions matter.
      modules: modules that must be importable to make a file; of modules with 'or' between them, one.
      one_file: name of the file that holds both stages; '' for a file of each stage.
      publisher: library whose names and layout a file of weights has; '' for other files.
      exact: whether a file must answer like the network; the loss of a quantized file is reported.
      quantization: which values are quantized, '' for none. float16: weights, unpacked to float32 when the file is
        loaded. int8_weights: weights of convolutions, dense layers and bases, with a scale for each output channel;
        depthwise kernels are stored as float32. int8: these, and inputs and outputs of convolutions whose kernels are
        constant, in ranges taken from examples.
      page: whether the format only runs another format's files, so that there is nothing to convert and check.
    """

    runtime: str
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    one_file: str = ""
    publisher: str = ""
    exact: bool = True
    quantization: str = ""
    page: bool = False

    def file(self, stage: str, name: str) -> str:
        """Returns the name of the file that holds a stage; `name` is the format's."""
        return self.one_file or f"{stage}.{name}"


_LITERT = Format(
    "LiteRT",
    ("litert-converter", "litert-quantizer", "tensorflow-cpu", "tensorflow", "ai-edge-litert"),
    modules=("litert_converter or tensorflow", "ai_edge_litert"),
)
_ONNX = Format(
    "ONNX Runtime",
    ("tf2onnx", "onnx", "onnxruntime"),
    (*_LITERT.modules, "tensorflow", "tf2onnx", "onnx", "onnxruntime"),
)
_WEIGHTS = Format("basisnet_jax", ("safetensors",), ("safetensors",))
FORMATS = {
    "tflite": _LITERT,
    "stablehlo": Format("jax.export", ("jax", "jaxlib"), ()),
    "onnx": _ONNX,
    "safetensors": dataclasses.replace(_WEIGHTS, one_file=WEIGHTS),
    **{f"{name}.safetensors": dataclasses.replace(_WEIGHTS, publisher=name) for name in ("timm", "torchvision")},
    "web": Format("LiteRT.js", (), (), page=True),
    **{
        f"{kind}.tflite": dataclasses.replace(
            _LITERT, modules=(*_LITERT.modules, "litert_quantizer"), exact=False, quantization=kind
        )
        for kind in ("float16", "int8_weights", "int8")
    },
}


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def check_installed(formats: Iterable[str]) -> None:
    """Raises UserError if a module that a format needs is not installed; imports nothing."""
    for name in formats:
        missing = [choice for choice in FORMATS[name].modules if not any(map(_is_installed, choice.split(" or ")))]
        if missing:
            names, extra = " and ".join(missing), "onnx" if name == "onnx" else "train"
            raise UserError(
                f"config.export.formats has {name!r}, for which {names} must be installed; run pip install -e "
                f"'.[{extra}]', or leave {name!r} out."
            )
