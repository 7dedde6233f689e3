"""Times forms of a synthesized layer in LiteRT, for all pointwise and depthwise layers of MobileNetV3-Large.

    taskset -c 0 python benchmarks/litert_layers.py [--json litert_layers.json]

Kernels are inputs, like computed kernels: LiteRT's XNNPACK only has convolutions with constant kernels. 'constant' is
the layer of a static network. Milliseconds of all layers together, one image, one thread.
"""

import argparse
import collections
import pathlib
import statistics
import time
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import timing
from ai_edge_litert.interpreter import Interpreter
from jax import lax

from basisnet_jax.export.litert import to_tflite
from basisnet_jax.models.architectures import ARCHITECTURES
from basisnet_jax.ops import synthesis
from basisnet_jax.ops import taps as taps_lib
from basisnet_jax.serving import tflite

Form = Callable[..., jnp.ndarray]
SIDE = 112  # of what the first block sees


def taps(x, kernel_KxKxC, stride):
    """Computes a depthwise convolution as a sum of shifted images."""
    return taps_lib.depthwise(x, kernel_KxKxC[None], stride, "same")


def convolution(x, kernel, stride):
    """Computes a depthwise convolution by LiteRT's own operator."""
    if kernel.shape[0] == kernel.shape[1] and kernel.shape[-1] == x.shape[-1] and kernel.ndim == 3:
        return synthesis.xla_depthwise(x, kernel[None], stride, "same")
    return lax.conv_general_dilated(x, kernel[None, None], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def product(x, kernel_IxO, stride):
    """Computes a pointwise convolution as a product of matrices."""
    return (x.reshape(-1, x.shape[-1]) @ kernel_IxO).reshape(*x.shape[:3], -1)


def swapped(x, kernel_IxO, stride):
    """Computes the product with swapped sides, channels first: the image is packed, and the kernel is not."""
    return kernel_IxO.T @ x.reshape(-1, x.shape[-1]).T


FORMS: dict[str, dict[str, Form]] = {
    "pointwise": {"product": product, "product, swapped": swapped, "convolution": convolution},
    "depthwise": {"convolution": convolution, "taps": taps},
}


def layers() -> dict[tuple[str, tuple[int, ...], tuple[int, ...], int], int]:
    """Returns {(kind, image, kernel, stride): how often}."""
    counts: collections.Counter[tuple[str, tuple[int, ...], tuple[int, ...], int]] = collections.Counter()
    side = SIDE
    for _, inputs, block in ARCHITECTURES["mobilenet_v3_large"].named_blocks():
        for conv in block.convolutions(inputs):
            image = (1, side, side, conv.inputs)
            if conv.depthwise:
                counts["depthwise", (1, side, side, conv.out), (conv.side, conv.side, conv.out), conv.stride] += 1
            else:
                counts["pointwise", image, (conv.inputs, conv.out), 1] += 1
            side = -(-side // conv.stride)
    return dict(counts)


def loaded(form: Form, stride: int, image: np.ndarray, kernel: np.ndarray, constant: bool) -> Callable[[], None]:
    """Returns a file of one layer, loaded."""
    given = {"image": image} if constant else {"image": image, "kernel": kernel}
    weights = [jnp.asarray(kernel)] if constant else []
    shapes = {name: array.shape for name, array in given.items()}
    content = to_tflite(lambda *arrays: form(*arrays, *weights, stride), shapes, ("y",))
    interpreter = Interpreter(model_content=content, num_threads=1)
    details = interpreter.get_signature_runner(tflite.SIGNATURE).get_input_details()
    interpreter.allocate_tensors()
    for name, array in given.items():
        interpreter.set_tensor(details[name]["index"], array)
    return interpreter.invoke


def main() -> None:
    """Prints a table; writes all layers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--turn", type=float, default=0.01, help="shortest duration of a turn, in seconds")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    rng, totals, rows = np.random.default_rng(0), collections.Counter[str](), []
    for (kind, image_shape, kernel_shape, stride), count in layers().items():
        image, kernel = (rng.standard_normal(shape).astype(np.float32) for shape in (image_shape, kernel_shape))
        calls = {"constant": loaded(convolution, stride, image, kernel, True)}
        calls |= {name: loaded(form, stride, image, kernel, False) for name, form in FORMS[kind].items()}
        times = timing.interleaved(calls, rounds=options.rounds, turn=options.turn, clock=time.process_time)
        row = {name: statistics.median(found) for name, found in times.items()}
        totals.update({f"{kind}, {name}": count * ms for name, ms in row.items()})
        rows.append({"image": image_shape, "kernel": kernel_shape, "stride": stride, "count": count, "ms": row})
    print(f"{timing.machine()}, CPU time of one thread")
    for name, ms in totals.items():
        print(f"{name:32}{ms:8.2f} ms")
    timing.write_json(options.json, {"machine": timing.machine(), "totals": totals, "layers": rows})


if __name__ == "__main__":
    main()
