"""Every form of a synthesized layer on the device: its values beside a plain loop, and its time."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import gpu_programs
import gpu_tasks
import jax
import jax.numpy as jnp
import layers
import numpy as np
import rivals
from jax import lax

from basisnet_jax.ops import sums, synthesis, vectors

Layer = tuple[int, int, int, int, int]  # image side, input channels, output channels or 0, kernel side, stride
GROUPED = "grouped convolution"  # an image a group: slow to compile and to run, so it comes last
# {kind: {form: form(x, bases, coefficients, stride)}}: a further form is one line here.
FORMS: dict[str, dict[str, Callable[..., jax.Array]]] = {
    "pointwise": {
        "batched product": lambda x, bases, coefficients, stride: synthesis.pointwise(x, bases, coefficients),
        GROUPED: rivals.vmapped,
    },
    "depthwise": {
        "taps": synthesis.depthwise,
        **{form: partial(synthesis.depthwise, **setting) for form, setting in rivals.depthwise_kernels().items()},
        GROUPED: rivals.vmapped,
    },
    "dense": {"sum of products": lambda *inputs: synthesis.dense(*inputs, "same")},
}
LAYERS = (
    "depthwise 112x112 64 3x3/2",
    "depthwise 14x14 672 5x5/2",
    "depthwise 7x7 960 5x5/1",
    "pointwise 14x14 672->112",
    "depthwise 56x56 72 3x3/1",
    "depthwise 28x28 120 5x5/1",
    "pointwise 56x56 24->72",
    "pointwise 7x7 160->960",
)
DENSE = {"dense 28x28 32->64 3x3/2": (28, 32, 64, 3, 2)}
TINY = {
    "depthwise 5x5 8 3x3/2": (5, 8, 0, 3, 2),
    "pointwise 3x3 8->16": (3, 8, 16, 1, 1),
    "dense 5x5 3->4 3x3/2": (5, 3, 4, 3, 2),
}
# Largest error over the largest value. A product in TF32 instead of float32 would be off by 1e-3.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}
RESULTS = ("y", "dx", "dbases", "dcoefficients")


def layers_of(sizes: gpu_tasks.Sizes) -> dict[str, Layer]:
    """Returns {name: layer}, the most telling first."""
    return TINY if sizes.tiny else {**{name: layers.layers()[name] for name in LAYERS}, **DENSE}


def layers_and_forms(sizes: gpu_tasks.Sizes, *, static: bool = False) -> list[tuple[str, Layer, str, Callable]]:
    """Returns (layer's name, layer, form's name, form) of every layer in every form, perhaps the static layer too."""
    rows = []
    for title, layer in layers_of(sizes).items():
        kind = title.split()[0]
        forms = {"static": layers.static, **FORMS[kind]} if static and kind != "dense" else FORMS[kind]
        rows += [(title, layer, form, function) for form, function in forms.items()]
    return sorted(rows, key=lambda row: row[2] == GROUPED)


def arrays_of(layer: Layer, dtype: str, batch: int, num_bases: int) -> tuple[jax.Array, ...]:
    """Returns (x, bases, coefficients, dy) of a layer, random; coefficients are float32, all else has the dtype."""
    side, inputs, outputs, kernel, stride = layer
    rng, out_side = np.random.default_rng(0), -(-side // stride)
    shape = (*((kernel, kernel) if kernel > 1 else ()), inputs, *((outputs,) if outputs else ()))
    x = rng.normal(size=(batch, side, side, inputs))
    bases = rng.normal(size=(num_bases, *shape)) / np.sqrt(kernel**2 * (inputs if outputs else 1))
    coefficients = jnp.asarray(rng.dirichlet(np.ones(num_bases), batch), jnp.float32)
    dy = rng.normal(size=(batch, out_side, out_side, outputs or inputs))
    x, bases, dy = (jnp.asarray(array, dtype) for array in (x, bases, dy))
    return x, bases, coefficients, dy


def plain_loop(x_BxHxWxI: jax.Array, bases: jax.Array, coefficients_BxN: jax.Array, stride: int) -> jax.Array:
    """Convolves image after image, tap after tap, with zeros around the image as TensorFlow puts them.

    Args:
      x_BxHxWxI: float32.
      bases: [N, I, O], [N, K, K, C] for depthwise, or [N, K, K, I, O].
      coefficients_BxN: float32.
      stride: of both spatial axes.
    """
    bases = bases[:, None, None] if bases.ndim == 3 else bases
    side, size = bases.shape[1], x_BxHxWxI.shape[1]
    output = -(-size // stride)
    total = max((output - 1) * stride + side - size, 0)
    pads, reach = (total // 2, total - total // 2), (output - 1) * stride + 1

    def one_image(arguments: tuple[jax.Array, jax.Array]) -> jax.Array:
        image, weights_N = arguments
        kernel = sum(weight * basis for weight, basis in zip(weights_N, bases, strict=True))
        padded, y = jnp.pad(image, (pads, pads, (0, 0))), jnp.zeros(())
        for i in range(side):
            for j in range(side):
                seen = padded[i : i + reach : stride, j : j + reach : stride]
                y = y + (seen * kernel[i, j] if bases.ndim == 4 else seen @ kernel[i, j])
        return y

    return lax.map(one_image, (x_BxHxWxI, coefficients_BxN))


def with_gradients(form: Callable[..., jax.Array], stride: int) -> Callable[..., tuple[jax.Array, ...]]:
    """Returns a function of (x, bases, coefficients, dy) that returns what RESULTS names."""

    def run(x, bases, coefficients, dy):
        y, vjp = jax.vjp(lambda *inputs: form(*inputs, stride), x, bases, coefficients)
        return y, *vjp(dy)

    return run


@functools.cache  # so that it is compiled once for a layer
def _jitted_plain_loop(stride: int) -> Callable[..., tuple[jax.Array, ...]]:
    return jax.jit(with_gradients(plain_loop, stride))


def compared(form: Callable[..., jax.Array], layer: Layer, dtype: str, sizes: gpu_tasks.Sizes) -> dict[str, Any]:
    """Returns the error of each result, over the largest value of the plain loop in float32, and whether all fit."""
    arrays, stride = arrays_of(layer, dtype, sizes.forms_batch, sizes.num_bases), layer[-1]
    with jax.default_matmul_precision("highest"):
        expected = _jitted_plain_loop(stride)(*(array.astype(jnp.float32) for array in arrays))
        results = jax.jit(with_gradients(form, stride))(*arrays)
    errors = {}
    for name, result, right in zip(RESULTS, results, expected, strict=True):
        result, right = np.asarray(result, np.float32), np.asarray(right)
        errors[name] = float(np.max(np.abs(result - right)) / np.max(np.abs(right)))
    return {**errors, "right": all(error <= TOLERANCES[dtype] for error in errors.values())}


def sums_compared() -> dict[str, Any]:
    """Returns the error of a norm's two sums over the largest, and whether it fits."""
    terms = np.random.default_rng(0).normal(size=(2, 8, 14, 14, 72)).astype(np.float32)
    expected = terms.sum(axis=(1, 2, 3), dtype=np.float64)
    error = np.max(np.abs(np.stack(jax.jit(sums.channel_sums)(*terms)) - expected)) / np.max(np.abs(expected))
    return {"sums": float(error), "right": bool(error <= TOLERANCES["float32"])}


def vectors_compared() -> dict[str, Any]:
    """Returns whether parameters come out of their vector as they went in, and the largest error of their norms."""
    shapes = ((16, 3, 3, 8), (8,), (70, 24), (1, 5), (24,), (96, 40), (16, 160, 24))
    arrays = [np.random.default_rng(0).normal(size=shape).astype(np.float32) for shape in shapes]
    parts = tuple((array.shape, -(-array.size // vectors.ROW) * vectors.ROW) for array in arrays)
    vector = jax.jit(lambda arrays: vectors.joined(arrays, parts))(arrays)
    got = jax.jit(lambda vector: vectors.cut(vector, parts, pallas_kernels=True))(vector)
    expected = np.array([np.linalg.norm(array.astype(np.float64)) for array in arrays])
    error = np.max(np.abs(jax.jit(lambda vector: vectors.norms(vector, parts))(vector) / expected - 1))
    right = all(map(np.array_equal, got, arrays)) and bool(error <= TOLERANCES["float32"])
    return {"arrays": len(shapes), "norms": float(error), "right": right}


def value_tasks(sizes: gpu_tasks.Sizes) -> gpu_tasks.Tasks:
    """Yields the comparison of every form with the plain loop: forward and gradients, in both dtypes."""
    yield "a norm's sums", sums_compared
    yield "parameters, joined and cut from their vector", vectors_compared
    for title, layer, form, function in layers_and_forms(sizes):
        for dtype in TOLERANCES:
            yield f"{title}, {form}, {dtype}", partial(compared, function, layer, dtype, sizes)


def timed(form: Callable[..., jax.Array], layer: Layer, sizes: gpu_tasks.Sizes) -> dict[str, Any]:
    """Returns milliseconds and launches of a layer's forward pass, and of both passes, in bfloat16."""
    *inputs, dy = arrays_of(layer, "bfloat16", sizes.batch, sizes.num_bases)
    forward = jax.jit(lambda *inputs: form(*inputs, layer[-1])).lower(*inputs).compile()
    both = jax.jit(with_gradients(form, layer[-1])).lower(*inputs, dy).compile()
    return {
        "forward_ms": gpu_programs.milliseconds(lambda: forward(*inputs), sizes),
        "training_ms": gpu_programs.milliseconds(lambda: both(*inputs, dy), sizes),
        "forward_launches": gpu_programs.launches(forward),
        "training_launches": gpu_programs.launches(both),
    }


def time_tasks(sizes: gpu_tasks.Sizes) -> gpu_tasks.Tasks:
    """Yields the time of every layer in every form; the static layer first, which the others are compared with."""
    for title, layer, form, function in layers_and_forms(sizes, static=True):
        yield f"{title}, {form}, {sizes.batch} images", partial(timed, function, layer, sizes)
