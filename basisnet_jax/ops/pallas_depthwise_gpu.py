"""Depthwise convolution of each image with its own kernel, and its gradients, as Pallas kernels for NVIDIA GPUs.

Shapes: B images, H x W pixels and P x Q output pixels, C channels, K the kernel's side. Arrays stay as XLA keeps them
on GPUs, [B, H, W, C] with the channels in consecutive bytes. A program owns a block of rows, columns and channels of
one image. Loads outside the image are masked and give zeros, so nothing is padded in memory. Products are summed in
float32 in registers.

A norm and an activation before the convolution are computed on the way. The forward pass reads x once and writes y. The
backward pass reads x and dy once and writes dx and the sums over pixels: it goes over the pixels of x, and each dy that
sees a pixel adds to this pixel's dx and to one tap of dkernels.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from basisnet_jax.ops import pallas_common
from basisnet_jax.ops.pallas_depthwise import Act, Window

LARGEST_SIDE = 7  # of a kernel: its 49 taps and their 49 sums fit the 255 registers of a thread
PROGRAMS = 1024  # programs that keep the largest GPU busy: 132 multiprocessors with about eight each


class Block(NamedTuple):
    """A program's share of an image: rows are unrolled, columns x channels are one array over the threads."""

    rows: int
    columns: int
    channels: int
    warps: int  # of 32 threads


def block_of(rows: int, columns: int, channels: int, most_rows: int, elements: int) -> Block:
    """Returns the block that wastes little of its elements, and of such blocks the one with most channels and rows.

    Args:
      rows: of the image.
      columns: of the image.
      channels: of the image.
      most_rows: rows of a block.
      elements: of a row's array in each thread.
    """

    def waste(size, block):
        return pl.cdiv(size, block) * block / size

    candidates = [
        (column_block, channel_block)
        for channel_block in (64, 32, 16)
        for column_block in (1, 2, 4, 8, 16, 32, 64)
        if 64 * elements <= column_block * channel_block <= 256 * elements
    ]
    column_block, channel_block = min(
        candidates, key=lambda c: (round(waste(columns, c[0]) * waste(channels, c[1]), 1), -c[1], c[0])
    )
    row_block = min(range(1, most_rows + 1), key=lambda r: waste(rows, r) * (r + 1) / r)  # blocks read neighbours' rows
    return Block(row_block, column_block, channel_block, column_block * channel_block // (32 * elements))


def reason_unsupported(x_BxHxWxC: jax.Array, window: Window) -> str | None:
    """Returns why the kernels do not support this convolution, or None if they do."""
    batch, devices = x_BxHxWxC.shape[0], max(jax.sharding.get_abstract_mesh().size, 1)
    if not isinstance(batch, int):
        return "the number of images is not known"
    if batch % devices:
        return f"{batch} images do not divide over {devices} devices"
    if x_BxHxWxC.dtype not in (jnp.float32, jnp.bfloat16):
        return f"{x_BxHxWxC.dtype} is neither float32 nor bfloat16"
    if window.side > LARGEST_SIDE:
        return f"the sums of a {window.side} x {window.side} kernel do not fit the registers"
    return None


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def depthwise(
    x_BxHxWxC: jax.Array, kernels_BxKxKxC: jax.Array, affine_1x2xC: jax.Array | None, act: Act, window: Window
) -> jax.Array:
    """Convolves act(x * scale + shift) of each image with the image's own depthwise kernel.

    A norm before the convolution is computed on the way, and its result is never stored: neither here nor in the
    backward pass, which computes all gradients in one pass over x and dy.

    Args:
      x_BxHxWxC: float32 or bfloat16.
      kernels_BxKxKxC: in the dtype of x; with a leading axis of 1 all images share the kernel.
      affine_1x2xC: scale and shift, float32; None convolves x.
      act: elementwise, on float32; ignored without affine.
      window: side, stride and padding of the kernel.

    Returns:
      [B, P, Q, C] in the dtype of x.
    """
    return pallas_common.on_each_device(
        partial(_depthwise, act=act, window=window), x_BxHxWxC, kernels_BxKxKxC, affine_1x2xC
    )


def _depthwise_forward(x_BxHxWxC, kernels_BxKxKxC, affine_1x2xC, act, window):
    arrays = x_BxHxWxC, kernels_BxKxKxC, affine_1x2xC
    return depthwise(*arrays, act, window), arrays


def _depthwise_backward(act, window, residuals, dy_BxPxQxC):
    x_BxHxWxC, kernels_BxKxKxC, affine_1x2xC = residuals
    shared = kernels_BxKxKxC.shape[0] == 1
    run = partial(_depthwise_gradients, act=act, window=window, shared=shared)
    dx_BxHxWxC, *sums_BxSxTxC = pallas_common.on_each_device(run, x_BxHxWxC, kernels_BxKxKxC, affine_1x2xC, dy_BxPxQxC)
    total_TxC = jnp.sum(sums_BxSxTxC[-1], axis=(0, 1))
    dkernels = total_TxC[: window.side**2] if shared else jnp.sum(sums_BxSxTxC[0], axis=1)
    dkernels_BxKxKxC = dkernels.reshape(kernels_BxKxKxC.shape).astype(kernels_BxKxKxC.dtype)
    return dx_BxHxWxC, dkernels_BxKxKxC, None if affine_1x2xC is None else total_TxC[None, -2:]


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def multiply_add(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """Returns a * b + c in one instruction, rounded once; XLA would not contract the two operations."""
    shape = jnp.broadcast_shapes(a.shape, b.shape, c.shape)
    (result,) = triton.elementwise_inline_asm(
        "fma.rn.f32 $0, $1, $2, $3;",
        args=[jnp.broadcast_to(array, shape) for array in (a, b, c)],
        constraints="=f,f,f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(shape, jnp.float32)],
    )
    return result


class _Pixels:
    """Columns x channels of one image's array [B, H, W, C]: loads and stores rows, masked outside the image."""

    def __init__(self, ref, image, columns, channels):
        _, self.height, width, depth = ref.shape
        self.at = lambda row: ref.at[image, row, columns[:, None], channels[None]]
        self.mask = ((columns >= 0) & (columns < width))[:, None] & (channels < depth)[None]

    def inside(self, row):
        return self.mask & (row >= 0) & (row < self.height)

    def load(self, row):
        return triton.load(self.at(row), mask=self.inside(row), other=0).astype(jnp.float32)

    def store(self, row, value):
        triton.store(self.at(row), value, mask=self.inside(row))


class _Vectors:
    """Reads and writes float32 vectors of one program's channels."""

    def __init__(self, channels, depth):
        self.channels, self.mask = channels, channels < depth

    def load(self, ref, *index):
        """Returns [1, channels]."""
        return triton.load(ref.at[*index, self.channels], mask=self.mask, other=0).astype(jnp.float32)[None]

    def store(self, ref, *index, value):
        triton.store(ref.at[*index, self.channels], value, mask=self.mask)


def _rows_of(taps: list[tuple[int, int]], rows: int, stride: int) -> dict[int, list[tuple[int, int]]]:
    """Returns {row read: [(row computed, tap)]} for the taps (offset, tap), so that each row is loaded once."""
    users: dict[int, list[tuple[int, int]]] = {}
    for row in range(rows):
        for offset, tap in taps:
            users.setdefault(row * stride + offset, []).append((row, tap))
    return dict(sorted(users.items()))


def _program(block: Block, column_blocks: int, step):
    """Returns (first row, columns) of a program's step through the blocks of an image."""
    # No `//` and `%`: in a loop, their lowering takes a comparison's zero for an operand.
    row_block, column_block = lax.div(step, column_blocks), lax.rem(step, column_blocks)
    return row_block * block.rows, column_block * block.columns + jnp.arange(block.columns)


def _depthwise(x_BxHxWxC, kernels_BxKxKxC, affine_1x2xC, *, act: Act, window: Window):
    batch, height, width, depth = x_BxHxWxC.shape
    side, stride = window.side, window.stride
    block = block_of(*window.output, depth, most_rows=8, elements=4)
    column_blocks = pl.cdiv(window.output[1], block.columns)
    shared = kernels_BxKxKxC.shape[0] == 1

    def body(x_ref, kernels_ref, *refs):
        *affine_ref, y_ref = refs
        image, vectors = (
            pl.program_id(2),
            _Vectors(pl.program_id(1) * block.channels + jnp.arange(block.channels), depth),
        )
        first_row, columns = _program(block, column_blocks, pl.program_id(0))
        affine = [vectors.load(ref, 0, n) for ref in affine_ref for n in range(2)]
        users = _rows_of([(i, i) for i in range(side)], block.rows, stride)

        def add_column(j, sums):
            sums = list(sums)
            pixels = _Pixels(x_ref, image, columns * stride + j - window.before[1], vectors.channels)
            taps = [vectors.load(kernels_ref, 0 if shared else image, i, j) for i in range(side)]
            for offset, outputs_and_taps in users.items():
                row = first_row * stride + offset - window.before[0]
                pixel = pixels.load(row)
                if affine:
                    pixel = jnp.where(pixels.inside(row), act(multiply_add(pixel, *affine)), 0)
                for p, i in outputs_and_taps:
                    sums[p] = multiply_add(pixel, taps[i], sums[p])
            return tuple(sums)

        zero = jnp.zeros((block.columns, block.channels), jnp.float32)
        sums = lax.fori_loop(0, side, add_column, (zero,) * block.rows)  # a loop, since it is compiled K times faster
        outputs = _Pixels(y_ref, image, columns, vectors.channels)
        for p in range(block.rows):
            outputs.store(first_row + p, sums[p].astype(y_ref.dtype))

    return call(
        f"depthwise_{side}x{side}_{height}x{width}x{depth}_stride{stride}",
        body,
        grid=(pl.cdiv(window.output[0], block.rows) * column_blocks, pl.cdiv(depth, block.channels), batch),
        warps=block.warps,
        shapes=jax.ShapeDtypeStruct((batch, *window.output, depth), x_BxHxWxC.dtype),
    )(x_BxHxWxC, kernels_BxKxKxC, *([] if affine_1x2xC is None else [affine_1x2xC]))


def _depthwise_gradients(
    x_BxHxWxC, kernels_BxKxKxC, affine_1x2xC, dy_BxPxQxC, *, act: Act, window: Window, shared: bool
):
    """Returns dx, then float32[B, S, T, C]: S partial sums of an image's K * K taps of dkernels and 2 rows of daffine.

    The rows are one array where all images share the kernel (`shared`): both are then summed over the images. Else they
    are two.
    """
    batch, height, width, depth = x_BxHxWxC.shape
    side, stride = window.side, window.stride
    # In each axis, pixel stride * v + a of x is seen by output v + offset through the taps (offset, tap) of phase a.
    phases = [
        [
            [((a + before - i) // stride, i) for i in range(side) if (a + before - i) % stride == 0]
            for a in range(stride)
        ]
        for before in window.before
    ]
    steps = pl.cdiv(height, stride), pl.cdiv(width, stride)
    elements = {1: 4, 3: 4, 5: 2}.get(side, 1)  # so that all taps and their sums stay in registers
    block = block_of(*steps, depth, most_rows=4 if side <= 3 else 2, elements=elements)
    row_blocks, column_blocks = pl.cdiv(steps[0], block.rows), pl.cdiv(steps[1], block.columns)
    channel_blocks = pl.cdiv(depth, block.channels)
    parts = min(row_blocks, pl.cdiv(PROGRAMS, channel_blocks * batch))
    part_rows = pl.cdiv(row_blocks, parts)
    normed = affine_1x2xC is not None
    counts = [side**2, *[2] * normed]
    counts = [sum(counts)] if shared else counts

    def body(x_ref, kernels_ref, *refs):
        *affine_ref, dy_ref, dx_ref = refs[: 2 + normed]
        sums_rows = [(ref, n) for ref, count in zip(refs[2 + normed :], counts, strict=True) for n in range(count)]
        part, image = pl.program_id(0), pl.program_id(2)
        vectors = _Vectors(pl.program_id(1) * block.channels + jnp.arange(block.channels), depth)
        affine = [vectors.load(ref, 0, n) for ref in affine_ref for n in range(2)]
        taps = [[vectors.load(kernels_ref, 0 if shared else image, i, j) for j in range(side)] for i in range(side)]
        zero = jnp.zeros((block.columns, block.channels), jnp.float32)

        def step(n, sums):
            dtaps, daffine = list(sums[: side**2]), list(sums[side**2 :])
            first_row, steps = _program(block, column_blocks, part * part_rows * column_blocks + n)
            for a, b in ((a, b) for a in range(stride) for b in range(stride)):
                pixels = _Pixels(x_ref, image, steps * stride + b, vectors.channels)
                gradients = _Pixels(dx_ref, image, steps * stride + b, vectors.channels)
                rows = [(first_row + v) * stride + a for v in range(block.rows)]
                values = loaded = [pixels.load(row) for row in rows]
                if affine:
                    values = [
                        jnp.where(pixels.inside(row), act(multiply_add(pixel, *affine)), 0)
                        for row, pixel in zip(rows, loaded, strict=True)
                    ]
                dvalues = [zero] * block.rows
                for column, j in phases[1][b]:
                    outputs = _Pixels(dy_ref, image, steps + column, vectors.channels)
                    for offset, users in _rows_of(phases[0][a], block.rows, 1).items():
                        dy = outputs.load(first_row + offset)
                        for v, i in users:
                            dvalues[v] = multiply_add(dy, taps[i][j], dvalues[v])
                            dtaps[i * side + j] = multiply_add(dy, values[v], dtaps[i * side + j])
                for row, pixel, dvalue in zip(rows, loaded, dvalues, strict=True):
                    if affine:
                        (dz,) = jax.vjp(act, multiply_add(pixel, *affine))[1](dvalue)
                        dz = jnp.where(pixels.inside(row), dz, 0)
                        daffine = [multiply_add(dz, pixel, daffine[0]), daffine[1] + dz]
                        dvalue = dz * affine[0]
                    gradients.store(row, dvalue.astype(dx_ref.dtype))
            return (*dtaps, *daffine)

        sums = lax.fori_loop(0, part_rows * column_blocks, step, (zero,) * (side**2 + 2 * normed))
        for (ref, n), value in zip(sums_rows, sums, strict=True):
            vectors.store(ref, image, part, n, value=jnp.sum(value, axis=0))

    return call(
        f"depthwise_gradients_{side}x{side}_{height}x{width}x{depth}_stride{stride}",
        body,
        grid=(parts, channel_blocks, batch),
        warps=block.warps,
        shapes=[
            jax.ShapeDtypeStruct(x_BxHxWxC.shape, x_BxHxWxC.dtype),
            *(jax.ShapeDtypeStruct((batch, parts, count, depth), jnp.float32) for count in counts),
        ],
    )(x_BxHxWxC, kernels_BxKxKxC, *([affine_1x2xC] if normed else []), dy_BxPxQxC)


def call(name: str, body: Callable, *, grid, warps: int, shapes) -> Callable:
    """Makes a Pallas kernel for a GPU from a function of references to whole arrays; grid steps run in any order."""
    return pl.pallas_call(
        body,
        name=name,
        grid=grid,
        out_shape=shapes,
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),  # the backend: the only line that knows
    )
