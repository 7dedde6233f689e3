"""Measures the latency of the stages of a BasisNet and of static networks in LiteRT and ONNX Runtime.

    taskset -c 0 python benchmarks/latency.py [--files DIR] [--json latency.json]
    taskset -c 0 python benchmarks/latency.py --kinds none float16 int8_weights int8 onnx

One image, one thread. The networks are those of configs/imagenet_*.py at 224, exported as by --mode=export; 'onnx' is
the float32 files in ONNX Runtime (the extra `onnx`). The weights are random, which does not change the time; so is
the image for int8's calibration. 'synthesis' is a file that only combines all kernels. 'average' is the preview's
time for all images plus the specialist's time for those that do not exit. Memory is the peak of loading and running a
file once, in a process of its own. Files are written to --files, and existing files are used again. Converting takes
minutes; --export-only stops after it.
"""

import argparse
import functools
import importlib
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timing
from ai_edge_litert.interpreter import Interpreter
from flax.traverse_util import flatten_dict

from basisnet_jax.experiment.model import make_model
from basisnet_jax.export import folded, litert, onnx, phone_layers, quantization
from basisnet_jax.models import folding, routing
from basisnet_jax.models.basisnet import BasisNet
from basisnet_jax.serving import tflite

CLASSES, SIDE = 1000, 224
STATIC = {
    "MobileNetV3-Large": "imagenet_mbv3_static",
    "MobileNetV2": "imagenet_mbv2_static",
    "EfficientNet-B0": "imagenet_efficientnet_b0_static",
}
BASISNET = "imagenet_mbv3"
ONNX = "onnx"  # the kind of the float32 files, converted, in ONNX Runtime
KINDS = ("none", "float16", "int8_weights", "int8", ONNX)
PAPERS_EXIT_RATE = 0.388  # at which 290M multiply-adds become the paper's 198M on average


def drawn(config: str, **changes: Any) -> tuple[BasisNet, Any]:
    """Returns a network with random weights of about the initial size, and biases that are not zero."""
    model_config = importlib.import_module(f"configs.{config}").get_config().model
    model_config.update(dtype="float32", pallas_kernels=False, **changes)
    model = make_model(model_config, CLASSES)
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        center = 1.0 if path[-1].key in ("scale", "var") else 0.0
        return (center + 0.05 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(draw, shapes)


def synthesis_alone(model: BasisNet, variables: Any, rows: int) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
    """Returns a function: coefficients_1xLxN -> all kernels."""
    params = flatten_dict(folding.fold_batch_norm(model, variables)["params"]["specialist"], sep="/")
    return lambda coefficients_1xLxN: tuple(
        phone_layers.synthesize(coefficients_1xLxN[:, np.asarray(read)], params[f"{layer}/bases"], rows)
        for layer, read in model.vectors().items()
    )


def path_of(folder: pathlib.Path, name: str, kind: str) -> pathlib.Path:
    """Returns a network's file."""
    return folder / (f"{name}.onnx" if kind == ONNX else f"{name}.{kind}.tflite")


def export(folder: pathlib.Path, kinds: list[str], synthesize: list[str]) -> None:
    """Writes the files that are not there yet, '{network}.{kind}.tflite'."""
    image = {"image": (1, SIDE, SIDE, 3)}
    rng = np.random.default_rng(0)
    example = {"image": rng.uniform(0, 255, image["image"]).astype(np.float32)}

    def write(
        name: str, inputs: dict[str, Any], outputs: Sequence[str], make: Callable[[int], Callable[..., Any]]
    ) -> None:
        for kind in {"none" if kind == ONNX else kind for kind in kinds}:
            path = path_of(folder, name, kind)
            if not path.exists():
                examples = [{key: example[key] for key in inputs}]
                function = make(quantization.ROWS.get(kind, 1))
                path.write_bytes(litert.to_tflite(function, inputs, outputs, kind.removeprefix("none"), examples))

    def stage(network: Callable[[], tuple[BasisNet, Any]], name: str) -> Callable[[int], Callable[..., Any]]:
        return lambda rows: (
            folded.Network(*network(), 0.0, SIDE, 3).stages(phone_layers.interceptor(rows)).named()[name]
        )

    for name, config in STATIC.items():
        write(name, image, ["logits"], stage(functools.cache(functools.partial(drawn, config)), "specialist"))
    basisnet = functools.cache(functools.partial(drawn, BASISNET, synthesize=tuple(synthesize)))
    model, variables = basisnet()
    shape = (1, routing.number_of_vectors(model.vectors()), model.num_bases)
    coefficients = {"coefficients": shape}
    example["coefficients"] = np.full(shape, 1 / shape[-1], np.float32)
    write("preview", image, ["logits", "coefficients"], stage(basisnet, "preview"))
    write("specialist", {**image, **coefficients}, ["logits"], stage(basisnet, "specialist"))
    kernels = [f"kernel{number}" for number in range(len(model.synthesized))]
    write("synthesis", coefficients, kernels, functools.partial(synthesis_alone, model, variables))
    for name in (*STATIC, "preview", "specialist", "synthesis") if ONNX in kinds else ():
        if not (path := path_of(folder, name, ONNX)).exists():
            path.write_bytes(onnx.to_onnx(path_of(folder, name, "none").read_bytes()))


class InLiteRT:
    """A file in LiteRT, on one thread; its inputs are set before it is timed."""

    def __init__(self, path: pathlib.Path):
        self.interpreter = Interpreter(str(path), num_threads=1)
        self.interpreter.allocate_tensors()
        runner = self.interpreter.get_signature_runner(tflite.SIGNATURE)
        details = {**runner.get_input_details(), **runner.get_output_details()}
        self.indices = {name: detail["index"] for name, detail in details.items()}
        self.shapes = {name: tuple(detail["shape"]) for name, detail in runner.get_input_details().items()}

    def set(self, name: str, value: np.ndarray) -> None:
        """Sets an input."""
        self.interpreter.set_tensor(self.indices[name], value)

    def get(self, name: str) -> np.ndarray:
        """Returns an output of the last run."""
        return self.interpreter.get_tensor(self.indices[name])

    def __call__(self) -> None:
        """Runs once."""
        self.interpreter.invoke()


class InONNXRuntime:
    """The same for a file in ONNX Runtime."""

    def __init__(self, path: pathlib.Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        self.names = [item.name for item in self.session.get_outputs()]
        self.shapes = {item.name: tuple(item.shape) for item in self.session.get_inputs()}
        self.feed: dict[str, np.ndarray] = {}
        self.outputs: list[np.ndarray] = []

    def set(self, name: str, value: np.ndarray) -> None:
        """Sets an input."""
        self.feed[name] = value

    def get(self, name: str) -> np.ndarray:
        """Returns an output of the last run."""
        return self.outputs[self.names.index(name)]

    def __call__(self) -> None:
        """Runs once."""
        self.outputs = self.session.run(self.names, self.feed)


def loaded(folder: pathlib.Path, name: str, kind: str) -> InLiteRT | InONNXRuntime:
    """Loads a file, and sets its inputs: a random image, and coefficients that mix all bases alike."""
    file = (InONNXRuntime if kind == ONNX else InLiteRT)(path_of(folder, name, kind))
    for given, shape in file.shapes.items():
        image = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
        file.set(given, image if given == "image" else np.full(shape, 1 / shape[-1], np.float32))
    return file


def contestants(folder: pathlib.Path, kind: str) -> dict[str, Callable[[], object]]:
    """Returns the calls to time for one kind of files."""
    files = {name: loaded(folder, name, kind) for name in (*STATIC, "preview", "specialist", "synthesis")}
    preview, specialist = files["preview"], files["specialist"]

    def both_stages() -> None:
        preview()
        specialist.set("coefficients", preview.get("coefficients"))
        specialist()

    return {**files, "both stages": both_stages}


def peak_megabytes(folder: pathlib.Path, names: Sequence[str], kind: str) -> float:
    """Returns the most memory that loading and running these files takes, in a process of its own."""
    code = (
        "import pathlib, re, sys; import latency\n"
        "held = lambda what: int(re.search(what + r':\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])\n"
        "pathlib.Path('/proc/self/clear_refs').write_text('5')  # forgets the peak\n"
        "before = held('VmRSS')\n"
        f"folder, names, kind = pathlib.Path({str(folder.absolute())!r}), {list(names)!r}, {kind!r}\n"
        "files = [latency.loaded(folder, name, kind) for name in names]\n"
        "for file in files: file()\n"
        "print(held('VmHWM') - before)"
    )
    here = pathlib.Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=here)
    return int(done.stdout.split()[-1]) / 1024


def main() -> None:
    """Prints a table a kind; writes all turns as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=pathlib.Path, default=pathlib.Path("runs/latency"))
    parser.add_argument(
        "--kinds", nargs="+", default=["none"], choices=["none", "float16", "int8_weights", "int8", ONNX]
    )
    parser.add_argument("--synthesize", nargs="+", default=["blocks"], help="as config.model.synthesize")
    parser.add_argument("--exit-rate", type=float, default=PAPERS_EXIT_RATE, help="share of images that exit")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--turn", type=float, default=0.1, help="shortest duration of a turn, in seconds")
    parser.add_argument("--export-only", action="store_true")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()

    options.files.mkdir(parents=True, exist_ok=True)
    export(options.files, options.kinds, options.synthesize)
    if options.export_only:
        return
    calls = {
        f"{name}, {kind}": call for kind in options.kinds for name, call in contestants(options.files, kind).items()
    }
    times = timing.interleaved(calls, rounds=options.rounds, turn=options.turn)
    for kind in options.kinds:
        stage_times = zip(times[f"preview, {kind}"], times[f"specialist, {kind}"], strict=True)
        times[f"average, {kind}"] = [first + (1 - options.exit_rate) * second for first, second in stage_times]

    reference = f"MobileNetV3-Large, {options.kinds[0]}"
    print(
        f"{timing.machine()}, one thread; medians of {options.rounds} rounds; {options.exit_rate:.1%} exit on average"
    )
    print(f"{'':34}{'ms':>8}{'over V3-Large':>15}{'file, MB':>10}{'peak, MB':>10}")
    rows = {}
    for kind in options.kinds:
        for name in (*STATIC, "preview", "specialist", "both stages", "average", "synthesis"):
            path = path_of(options.files, name, kind)
            files = {"both stages": ["preview", "specialist"], "average": []}.get(name, [name])
            row = {
                "ms": statistics.median(times[f"{name}, {kind}"]),
                "over_static": timing.ratio(times, f"{name}, {kind}", reference),
                "bytes": path.stat().st_size if path.exists() else None,
                "peak_mb": peak_megabytes(options.files, files, kind) if files else None,
                "all_ms": times[f"{name}, {kind}"],
            }
            rows[f"{name}, {kind}"] = row
            size, peak = (
                f"{x:10.1f}" if x else " " * 10 for x in (row["bytes"] and row["bytes"] / 1e6, row["peak_mb"])
            )
            print(f"{name + ', ' + kind:34}{row['ms']:8.2f}{row['over_static']:15.2f}{size}{peak}")
        share = timing.ratio(times, f"synthesis, {kind}", f"specialist, {kind}")
        rows[f"synthesis, {kind}"]["share_of_specialist"] = share
        print(f"{'synthesis over specialist, ' + kind:34}{'':8}{share:15.2f}")
    timing.write_json(options.json, {"machine": timing.machine(), "exit_rate": options.exit_rate, "rows": rows})


if __name__ == "__main__":
    main()
