"""Depthwise convolution as a sum of shifted images, one for each tap of the kernel: the form without Pallas kernels.

No image is a group of a convolution (see `synthesis`), and XLA's CPU compiler fuses the whole sum into one loop.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax

_PIXELS = 112  # in one fused loop: LLVM vectorises no loop with more than 250 addresses, and a pixel has two


def pads(size: int, kernel: int, stride: int, padding: str) -> tuple[int, int, int]:
    """Returns (pixels before, pixels after, output size) for a kernel of odd side.

    'same' is TensorFlow's padding, which puts an odd pixel after; 'symmetric' is PyTorch's: (kernel - 1) / 2 before.
    Both give ceil(size / stride) outputs, and differ where a stride makes the sum of the pads odd.
    """
    output = -(-size // stride)
    total = max((output - 1) * stride + kernel - size, 0)
    before = kernel // 2 if padding == "symmetric" else total // 2
    return before, max(total - before, 0), output


def pad(x_BxHxWxC: jax.Array, kernel: int, stride: int, padding: str) -> jax.Array:
    """Pads the image with as many zeros as `pads` says."""
    sides = [pads(size, kernel, stride, padding)[:2] for size in x_BxHxWxC.shape[1:3]]
    return jnp.pad(x_BxHxWxC, ((0, 0), *sides, (0, 0)))


def window(padded_BxHxWxC: jax.Array, row: int, column: int, output: Sequence[int], stride: int) -> jax.Array:
    """Returns [B, *output, C]: the pixels that the tap at (row, column) sees."""
    height, width = ((n - 1) * stride + 1 for n in output)
    batch, _, _, channels = padded_BxHxWxC.shape
    limits = (batch, row + height, column + width, channels)
    return lax.slice(padded_BxHxWxC, (0, row, column, 0), limits, (1, stride, stride, 1))


def _sum(terms: Sequence[jax.Array], parts: int) -> jax.Array:
    """Sums the terms in `parts` partial sums, then adds those."""
    return reduce(jnp.add, (reduce(jnp.add, terms[part::parts]) for part in range(min(parts, len(terms)))))


def _sum_of_taps(padded_BxHxWxC, taps: list[tuple[int, int, jax.Array]], output: tuple[int, int], stride: int):
    """Returns the sum over taps (row, column, weight) of the image shifted there times the weight, in float32."""

    def summed(parts, padded_BxHxWxC, *weights_BxC):
        windows = (window(padded_BxHxWxC, row, column, output, stride) for row, column, _ in taps)
        return _sum(
            [
                shifted.astype(jnp.float32) * weight_BxC[:, None, None].astype(jnp.float32)
                for shifted, weight_BxC in zip(windows, weights_BxC, strict=True)
            ],
            parts,
        )

    # Four partial sums are faster on a CPU: an addition need not wait for the one before. With four sums a TPU's
    # compiler fuses fewer additions, and moves up to three times the bytes.
    weights = (weight_BxC for _, _, weight_BxC in taps)
    return lax.platform_dependent(padded_BxHxWxC, *weights, cpu=partial(summed, 4), default=partial(summed, 1))


def _in_blocks(form: Callable[[jax.Array, jax.Array], jax.Array], x_BxHxWxC: jax.Array, kernels_BxKxKxC: jax.Array):
    """Returns form(x, kernels), on CPUs in blocks of channels if the output is small and the kernel is not.

    A padded block stays in a core's second-level cache. In layers of 14 x 14 pixels blocks were two to four times
    slower than the whole.
    """
    whole = jax.eval_shape(form, x_BxHxWxC, kernels_BxKxKxC)
    channels, side = x_BxHxWxC.shape[-1], kernels_BxKxKxC.shape[1]
    size = next((n for n in range(128, 63, -8) if channels % n == 0), channels)
    if whole.shape[1] * whole.shape[2] > 64 or side < 5 or size == channels:
        return form(x_BxHxWxC, kernels_BxKxKxC)

    def add_block(block, y, arrays):
        parts = (lax.dynamic_slice_in_dim(z, block * size, size, -1, allow_negative_indices=False) for z in arrays)
        part = lax.optimization_barrier(form(*lax.optimization_barrier(tuple(parts))))
        return lax.dynamic_update_slice_in_dim(y, part, block * size, -1)

    def blocks(*arrays):
        zeros = jnp.zeros(whole.shape, whole.dtype)
        return lax.fori_loop(0, channels // size, partial(add_block, arrays=arrays), zeros)

    return lax.platform_dependent(x_BxHxWxC, kernels_BxKxKxC, cpu=blocks, default=form)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(x_BxHxWxC: jax.Array, kernels_BxKxKxC: jax.Array, stride: int, padding: str) -> jax.Array:
    """Returns the same as `synthesis.depthwise`, from kernels; with a leading axis of 1 all images share the kernel."""
    side = kernels_BxKxKxC.shape[1]
    rows, columns = (pads(size, side, stride, padding)[2] for size in x_BxHxWxC.shape[1:3])

    def form(x_BxHxWxC, kernels_BxKxKxC):
        taps = [(i, j, kernels_BxKxKxC[:, i, j]) for i in range(side) for j in range(side)]
        padded_BxHxWxC = pad(x_BxHxWxC, side, stride, padding)
        return _sum_of_taps(padded_BxHxWxC, taps, (rows, columns), stride).astype(x_BxHxWxC.dtype)

    return _in_blocks(form, x_BxHxWxC, kernels_BxKxKxC)


def _depthwise_forward(x_BxHxWxC, kernels_BxKxKxC, stride, padding):
    return depthwise(x_BxHxWxC, kernels_BxKxKxC, stride, padding), (x_BxHxWxC, kernels_BxKxKxC)


def _depthwise_backward(stride, padding, residuals, dy_BxPxQxC):
    x_BxHxWxC, kernels_BxKxKxC = residuals
    side = kernels_BxKxKxC.shape[1]
    form = partial(_input_gradient, size=x_BxHxWxC.shape[1:3], stride=stride, padding=padding)
    # The phases of a strided layer are slower in blocks.
    dx_BxHxWxC = _in_blocks(form, dy_BxPxQxC, kernels_BxKxKxC) if stride == 1 else form(dy_BxPxQxC, kernels_BxKxKxC)
    dkernels_BxKxKxC = lax.platform_dependent(
        pad(x_BxHxWxC, side, stride, padding),
        dy_BxPxQxC,
        cpu=partial(_kernel_gradient_by_rows, side=side, stride=stride),
        default=partial(_kernel_gradient_by_taps, side=side, stride=stride),
    )
    if kernels_BxKxKxC.shape[0] == 1:
        dkernels_BxKxKxC = jnp.sum(dkernels_BxKxKxC, axis=0, keepdims=True)
    return dx_BxHxWxC, dkernels_BxKxKxC.astype(kernels_BxKxKxC.dtype)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _input_gradient(dy_BxPxQxC, kernels_BxKxKxC, size: tuple[int, int], stride: int, padding: str):
    """Returns dx, by taps over dy.

    Pixel u of the padded input is stride * v + r. Only the taps i = r + stride * m touch this pixel, from output
    v - m. So each phase r is a small stride-1 sum of taps over dy. The phases are interleaved; stride 1 has one phase.
    """
    side = kernels_BxKxKxC.shape[1]
    before, after, _ = zip(*(pads(n, side, stride, padding) for n in size), strict=True)
    steps = tuple(-(-(n + lo + hi) // stride) for n, lo, hi in zip(size, before, after, strict=True))
    reach = -(-side // stride) - 1
    padded = jnp.pad(
        dy_BxPxQxC,
        ((0, 0), *((reach, max(v - n, 0)) for v, n in zip(steps, dy_BxPxQxC.shape[1:3], strict=True)), (0, 0)),
    )
    rows = []
    for r in range(stride):
        columns = []
        for s in range(stride):
            taps = [
                (reach - (i - r) // stride, reach - (j - s) // stride, kernels_BxKxKxC[:, i, j])
                for i in range(r, side, stride)
                for j in range(s, side, stride)
            ]
            columns.append(_sum_of_taps(padded, taps, steps, 1).astype(dy_BxPxQxC.dtype))
        rows.append(jnp.stack(columns, axis=3))
    phases_BxVxRxWxSxC = jnp.stack(rows, axis=2)
    batch, channels = dy_BxPxQxC.shape[0], dy_BxPxQxC.shape[3]
    dx = phases_BxVxRxWxSxC.reshape(batch, steps[0] * stride, steps[1] * stride, channels)
    return dx[:, before[0] : before[0] + size[0], before[1] : before[1] + size[1]]


def _kernel_gradient_by_taps(padded_BxHxWxC, dy_BxPxQxC, side: int, stride: int):
    """Returns float32[B, K, K, C]: dkernels, by one reduction over the image for each tap."""
    dy = dy_BxPxQxC.astype(jnp.float32)
    _, rows, columns, _ = dy.shape

    def tap(i, j):
        shifted = window(padded_BxHxWxC, i, j, (rows, columns), stride)
        return jnp.sum(shifted.astype(jnp.float32) * dy, axis=(1, 2))

    return jnp.stack([jnp.stack([tap(i, j) for j in range(side)], 1) for i in range(side)], 1)


def _kernel_gradient_by_rows(padded_BxHxWxC, dy_BxPxQxC, side: int, stride: int):
    """Returns what `_kernel_gradient_by_taps` does, by a loop over output rows: a row's sum stays in registers."""
    batch, rows, columns, channels = dy_BxPxQxC.shape
    # The barriers keep XLA from fusing the padding into the loop and the loop's result into its users.
    padded_BxHxWxC = lax.optimization_barrier(padded_BxHxWxC)

    def add_row(row, sums_BxKxKxC, first):
        def pixel(column):
            # Each pixel has its own slices: XLA vectorises the loop only if what depends on `row` has one user.
            start, size = (0, row * stride, column * stride, 0), (batch, side, side, channels)
            x = lax.dynamic_slice(padded_BxHxWxC, start, size, allow_negative_indices=False)
            dy = lax.dynamic_slice(
                dy_BxPxQxC, (0, row, column, 0), (batch, 1, 1, channels), allow_negative_indices=False
            )
            return x.astype(jnp.float32) * dy.astype(jnp.float32)

        return sums_BxKxKxC + _sum([pixel(column) for column in range(first, min(first + _PIXELS, columns))], parts=4)

    sums_BxKxKxC = jnp.zeros((batch, side, side, channels), jnp.float32)
    for first in range(0, columns, _PIXELS):
        sums_BxKxKxC = lax.fori_loop(0, rows, partial(add_row, first=first), sums_BxKxKxC)
    return lax.optimization_barrier(sums_BxKxKxC)
