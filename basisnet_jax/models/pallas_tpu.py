"""Pallas kernels for TPUs with the batch in the lanes: what XLA does badly where each image has its own kernel.

On a TPU, XLA keeps these activations with the batch minor and the channels second. The same bytes are a row-major
[H, W, C, B], so the transposes around the kernels below cost nothing. In that form eight channels of 128 images are a
vector register, and so is one tap of those images' own kernels; a shift in H or W is only another address.

Where a mesh is in the context (`mesh.traced_under`), the batch is split over all of its devices, and each runs the
kernel on its own images.

Shapes: B images, H x W pixels and P x Q output pixels, C, I and O channels, K the kernel's side.
Products are accumulated in float32.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

LANES, SUBLANES = 128, 8
# Bytes of VMEM for a kernel's blocks, twice each, and its scratch: the smallest that a TPU has is 16 MiB.
VMEM = 12 * 2**20
TILE = 8  # pixels of a row that are summed side by side; more would not fit the registers


class Window(NamedTuple):
    """How a depthwise kernel meets the image; pairs are (rows, columns)."""

    size: tuple[int, int]  # H, W
    output: tuple[int, int]  # P, Q
    before: tuple[int, int]  # padding
    side: int
    stride: int

    def rows_read(self, rows: int) -> int:
        """Image rows that so many output rows see."""
        return (rows - 1) * self.stride + self.side

    def shifts(self, axis: int) -> range:
        """Pixel stride * v + a of the image is seen by outputs v + shift alone, whatever a."""
        offsets = [
            (a + self.before[axis] - i) // self.stride
            for a in range(self.stride)
            for i in range(self.side)
            if (a + self.before[axis] - i) % self.stride == 0
        ]
        return range(min(offsets), max(offsets) + 1)


def unfit(batch: int, dtype: jnp.dtype, *channels: int) -> str:
    """Why the kernels are not for a layer of these channels; '' if they are."""
    devices = max(jax.sharding.get_abstract_mesh().size, 1)
    if batch % (devices * LANES):
        return f"{batch} images on {devices} device(s) do not fill each one's {LANES} lanes"
    if unaligned := [c for c in channels if c % SUBLANES]:
        return f"{unaligned[0]} channels are no multiple of {SUBLANES}"
    if dtype not in (jnp.float32, jnp.bfloat16):
        return f"{dtype} is neither float32 nor bfloat16"
    return ""


Act = Callable[[jax.Array], jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def depthwise(
    x_BxHxWxC: jax.Array, kernels_BxKxKxC: jax.Array, affine_Bx2xC: jax.Array, act: Act, window: Window
) -> jax.Array:
    """Depthwise convolution of act(x * scale + shift) of each image with its own kernel.

    A norm before the convolution is computed on the way, and what it gives is never stored: neither here nor in the
    backward pass, which gives all three gradients in one pass over x and dy.

    Args:
      x_BxHxWxC: float32 or bfloat16.
      kernels_BxKxKxC: in the dtype of x.
      affine_Bx2xC: scale and shift, float32.
      act: elementwise, on float32.
      window: side, stride and padding of the kernel.

    Returns:
      [B, P, Q, C] in the dtype of x.
    """
    run = partial(_depthwise, act=act, window=window)
    return _on_each_device(run, x_BxHxWxC, kernels_BxKxKxC, affine_Bx2xC)


def _depthwise_forward(x_BxHxWxC, kernels_BxKxKxC, affine_Bx2xC, act, window):
    arrays = x_BxHxWxC, kernels_BxKxKxC, affine_Bx2xC
    return depthwise(*arrays, act, window), arrays


def _depthwise_backward(act, window, residuals, dy_BxPxQxC):
    run = partial(_depthwise_gradients, act=act, window=window)
    dx_BxHxWxC, dkernels_BxKxKxC, daffine_Bx2xC = _on_each_device(run, *residuals, dy_BxPxQxC)
    return dx_BxHxWxC, dkernels_BxKxKxC.astype(residuals[1].dtype), daffine_Bx2xC


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def pointwise_kernel_gradient(x_BxHxWxI: jax.Array, dy_BxHxWxO: jax.Array) -> jax.Array:
    """Each image's sum over pixels of x outer dy, float32[B, I, O]."""
    return _on_each_device(_pointwise_kernel_gradient, x_BxHxWxI, dy_BxHxWxO)


def _on_each_device(run: Callable, *arrays_B: jax.Array):
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return run(*arrays_B)
    batch = PartitionSpec(mesh.axis_names)
    # What a kernel's output varies over is not known, so it cannot be checked.
    return jax.shard_map(run, in_specs=batch, out_specs=batch, check_vma=False)(*arrays_B)


def _lanes(x_Bx: jax.Array) -> jax.Array:
    return jnp.moveaxis(x_Bx, 0, -1)


def _batch_first(x_xB: jax.Array) -> jax.Array:
    return jnp.moveaxis(x_xB, -1, 0)


def _divisors(n: int) -> list[int]:
    return [d for d in range(n, 0, -1) if n % d == 0]


def _call(body, name, grid, in_specs, outputs, out_specs, scratch):
    return pl.pallas_call(
        body,
        name=name,
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=outputs,
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=(*[pltpu.PARALLEL] * (len(grid) - 1), pltpu.ARBITRARY)
        ),
    )


# Depthwise convolution. The grid is (groups of channels, groups of images, groups of output rows).


def _blocks(rows: int, channels: int, footprint: Callable[[int, int], int]) -> tuple[int, int]:
    """(rows, channels) of a block, as many as VMEM has room for: rows first, since blocks share rows at their edges."""
    fit = (r for r in _divisors(rows) if footprint(r, SUBLANES) <= VMEM)
    block_rows = next(fit, 1)
    groups = (c for c in _divisors(channels // SUBLANES) if footprint(block_rows, c * SUBLANES) <= VMEM)
    return block_rows, next(groups, 1) * SUBLANES


def _sliding(rows: int, first_row: Callable[[jax.Array], jax.Array], shape: Sequence[int], channels: int, lanes: int):
    """Blocks that overlap: `rows` of an [H, W, C, B] from a row on that is moved to where they are all in it."""

    def index(c, b, r):
        return jnp.clip(first_row(r), 0, shape[0] - rows), 0, c * channels, b * lanes

    return pl.BlockSpec(tuple(pl.Element(n) for n in (rows, shape[1], channels, lanes)), index)


def _fill(padded_ref, image_ref, channels, first_row, height: int, columns_before: int, prepare: Act = lambda x: x):
    """Rows from `first_row` on of 8 channels, in float32 and prepared, with zeros around the image.

    image_ref holds the rows of the image that these are, moved to where they are all in it.
    """
    rows, width, *_ = image_ref.shape
    start = jnp.clip(first_row, 0, height - rows)
    zero = jnp.zeros(padded_ref.shape[2:], jnp.float32)

    def row(r, _):
        inside = jnp.logical_and(first_row + r >= 0, first_row + r < height)
        source = jnp.clip(first_row + r, 0, height - 1) - start
        for column in (*range(columns_before), *range(columns_before + width, padded_ref.shape[1])):
            padded_ref[r, column] = zero

        def columns(first, count):
            for column in range(count):
                pixel = image_ref[source, first + column, channels, :].astype(jnp.float32)
                padded_ref[r, columns_before + first + column] = jnp.where(inside, prepare(pixel), zero)

        _tiles(width, TILE, lambda first, count, _: columns(first, count), None)

    lax.fori_loop(0, padded_ref.shape[0], row, None)


def _tiles(count: int, size: int, body: Callable, carry):
    """body(first, size, carry) over tiles of a row, and once more over what is left of it."""
    whole = count // size
    if whole:
        carry = lax.fori_loop(0, whole, lambda t, carry: body(t * size, size, carry), carry)
    return body(whole * size, count % size, carry) if count % size else carry


def _each_group(block_channels: int, body: Callable[[Any], None]):
    """body(slice of 8 channels) over those of a block."""

    def group(c, _):
        body(pl.ds(pl.multiple_of(c * SUBLANES, SUBLANES), SUBLANES))

    lax.fori_loop(0, block_channels // SUBLANES, group, None)


def _tile(width: int) -> int:
    """The largest tile that leaves no part of a row, if there is one of some size."""
    return next((d for d in _divisors(width) if TILE // 2 < d <= TILE), TILE)


def _plus(total, term):
    return term if total is None else total + term


def _depthwise(x_BxHxWxC, kernels_BxKxKxC, affine_Bx2xC, *, act: Act, window: Window):
    batch, height, width, channels = x_BxHxWxC.shape
    side, stride = window.side, window.stride
    rows_out, columns_out = window.output
    lanes = min(batch, LANES)
    padded_width = window.rows_read(columns_out)

    def footprint(rows: int, block_channels: int) -> int:
        read = min(window.rows_read(rows), height)
        moved = read * width + rows * columns_out + side**2
        scratch = window.rows_read(rows) * padded_width * SUBLANES
        return lanes * (2 * moved * block_channels * x_BxHxWxC.dtype.itemsize + 4 * scratch)

    rows, block_channels = _blocks(rows_out, channels, footprint)
    tile = _tile(columns_out)

    def first_row(r):
        return r * rows * stride - window.before[0]

    def body(x_ref, kernels_ref, affine_ref, y_ref, padded_ref):
        r = pl.program_id(2)

        def group(group_channels):
            scale, shift = affine_ref[0, group_channels, :], affine_ref[1, group_channels, :]
            _fill(
                padded_ref,
                x_ref,
                group_channels,
                first_row(r),
                height,
                window.before[1],
                lambda pixel: act(pixel * scale + shift),
            )
            taps = [
                [kernels_ref[i, j, group_channels, :].astype(jnp.float32) for j in range(side)] for i in range(side)
            ]

            def row(p, _):
                def pixels(q, count, _):
                    sums: list[Any] = [None] * count
                    for i in range(side):
                        for column in range(window.stride * (count - 1) + side):
                            pixel = padded_ref[p * stride + i, q * stride + column]
                            for n in range(count):
                                if 0 <= column - n * stride < side:
                                    sums[n] = _plus(sums[n], pixel * taps[i][column - n * stride])
                    for n in range(count):
                        y_ref[p, q + n, group_channels, :] = sums[n].astype(y_ref.dtype)

                _tiles(columns_out, tile, pixels, None)

            lax.fori_loop(0, rows, row, None)

        _each_group(block_channels, group)

    read = min(window.rows_read(rows), height)
    y = _call(
        body,
        f"depthwise_{side}x{side}_{height}x{width}x{channels}_stride{stride}",
        (channels // block_channels, batch // lanes, rows_out // rows),
        [
            _sliding(read, first_row, (height, width), block_channels, lanes),
            pl.BlockSpec((side, side, block_channels, lanes), lambda c, b, r: (0, 0, c, b)),
            pl.BlockSpec((2, block_channels, lanes), lambda c, b, r: (0, c, b)),
        ],
        jax.ShapeDtypeStruct((rows_out, columns_out, channels, batch), x_BxHxWxC.dtype),
        pl.BlockSpec((rows, columns_out, block_channels, lanes), lambda c, b, r: (r, 0, c, b)),
        [(window.rows_read(rows), padded_width, SUBLANES, lanes)],
    )(_lanes(x_BxHxWxC), _lanes(kernels_BxKxKxC), _lanes(affine_Bx2xC))
    return _batch_first(y)


def _depthwise_gradients(x_BxHxWxC, kernels_BxKxKxC, affine_Bx2xC, dy_BxPxQxC, *, act: Act, window: Window):
    batch, height, width, channels = x_BxHxWxC.shape
    side, stride = window.side, window.stride
    rows_out, columns_out = window.output
    lanes = min(batch, LANES)
    row_shifts, column_shifts = window.shifts(0), window.shifts(1)
    padded_width = -(-width // stride) + len(column_shifts) - 1

    def footprint(rows: int, block_channels: int) -> int:
        read = min(rows + len(row_shifts) - 1, rows_out)
        moved = (2 * rows * stride * width + read * columns_out + side**2) * x_BxHxWxC.dtype.itemsize + side**2 * 4
        scratch = (rows + len(row_shifts) - 1) * padded_width * SUBLANES
        return lanes * (2 * moved * block_channels + 4 * scratch)

    rows, block_channels = _blocks(rows_out, channels, footprint)
    tile = max(_tile(width) // stride, 1)
    # An image whose height the stride does not divide has no last row in the last block.
    past_the_end = rows_out * stride > height

    def first_row(r):
        return r * rows + row_shifts.start

    def body(x_ref, kernels_ref, affine_ref, dy_ref, dx_ref, dkernels_ref, daffine_ref, padded_ref):
        r = pl.program_id(2)

        def group(group_channels):
            _fill(padded_ref, dy_ref, group_channels, first_row(r), rows_out, -column_shifts.start)
            taps = [
                [kernels_ref[i, j, group_channels, :].astype(jnp.float32) for j in range(side)] for i in range(side)
            ]
            zero = jnp.zeros(padded_ref.shape[2:], jnp.float32)
            scale, shift = affine_ref[0, group_channels, :], affine_ref[1, group_channels, :]

            def phase(a, u, sums):
                """Image row stride * u + a of the block."""
                row = u * stride + a
                inside = (r * rows + u) * stride + a < height

                def within(pixel):
                    return jnp.where(inside, pixel, zero) if past_the_end else pixel

                def pixels(q, count, sums):
                    dtaps, (dscale, dshift) = list(sums[:-2]), sums[-2:]

                    def image(n):
                        return within(x_ref[row, q + n, group_channels, :].astype(jnp.float32))

                    seen = [within(act(image(n) * scale + shift)) for n in range(count)]
                    dseen = [zero] * count
                    for i in range(side):
                        if (a + window.before[0] - i) % stride:
                            continue
                        padded_row = u + (a + window.before[0] - i) // stride - row_shifts.start
                        for column in range(-(-count // stride) + len(column_shifts) - 1):
                            # Tap j of this output is on image column q + n.
                            first = window.before[1] - (column + column_shifts.start) * stride
                            touched = [(n, n + first) for n in range(count) if 0 <= n + first < side]
                            if touched:
                                dy = padded_ref[padded_row, lax.div(q, stride) + column]
                            for n, j in touched:
                                dseen[n] += dy * taps[i][j]
                                dtaps[i * side + j] += dy * seen[n]
                    for n in range(count):
                        x = image(n)  # read once more: registers are scarce
                        (da,) = jax.vjp(act, x * scale + shift)[1](within(dseen[n]))
                        dshift, dscale = dshift + da, dscale + da * x
                        dx_ref[row, q + n, group_channels, :] = (da * scale).astype(dx_ref.dtype)
                    return (*dtaps, dscale, dshift)

                return _tiles(width, tile * stride, pixels, sums)

            def row(u, sums):
                for a in range(stride):
                    sums = phase(a, u, sums)
                return sums

            *dtaps, dscale, dshift = lax.fori_loop(0, rows, row, (zero,) * (side**2 + 2))

            @pl.when(r == 0)
            def _():
                dkernels_ref[:, :, group_channels, :] = jnp.zeros((side, side, *zero.shape), jnp.float32)
                daffine_ref[:, group_channels, :] = jnp.zeros((2, *zero.shape), jnp.float32)

            for t in range(side**2):
                dkernels_ref[t // side, t % side, group_channels, :] += dtaps[t]
            daffine_ref[0, group_channels, :] += dscale
            daffine_ref[1, group_channels, :] += dshift

        _each_group(block_channels, group)

    read = min(rows + len(row_shifts) - 1, rows_out)
    x_spec = pl.BlockSpec((rows * stride, width, block_channels, lanes), lambda c, b, r: (r, 0, c, b))
    kernels_spec = pl.BlockSpec((side, side, block_channels, lanes), lambda c, b, r: (0, 0, c, b))
    affine_spec = pl.BlockSpec((2, block_channels, lanes), lambda c, b, r: (0, c, b))
    dy_spec = _sliding(read, first_row, (rows_out, columns_out), block_channels, lanes)
    gradients = _call(
        body,
        f"depthwise_gradients_{side}x{side}_{height}x{width}x{channels}_stride{stride}",
        (channels // block_channels, batch // lanes, rows_out // rows),
        [x_spec, kernels_spec, affine_spec, dy_spec],
        [
            jax.ShapeDtypeStruct((height, width, channels, batch), x_BxHxWxC.dtype),
            jax.ShapeDtypeStruct((side, side, channels, batch), jnp.float32),
            jax.ShapeDtypeStruct((2, channels, batch), jnp.float32),
        ],
        [x_spec, kernels_spec, affine_spec],
        [(rows + len(row_shifts) - 1, padded_width, SUBLANES, lanes)],
    )(*(_lanes(array) for array in (x_BxHxWxC, kernels_BxKxKxC, affine_Bx2xC, dy_BxPxQxC)))
    return tuple(_batch_first(gradient) for gradient in gradients)


# Pointwise convolution. The grid is (groups of images, groups of pixels).


def _pointwise_kernel_gradient(x_BxHxWxI, dy_BxHxWxO):
    """Outer products on the vector unit: a matrix unit's product would first move the batch out of the lanes."""
    batch, height, width, inputs = x_BxHxWxI.shape
    outputs, lanes = dy_BxHxWxO.shape[-1], min(batch, LANES)
    total = height * width

    def footprint(pixels: int) -> int:
        return lanes * (
            pixels * (2 * (inputs + outputs) * x_BxHxWxI.dtype.itemsize + 4 * inputs) + 8 * inputs * outputs
        )

    pixels = next(d for d in _divisors(total) if footprint(d) <= VMEM)
    groups = outputs // SUBLANES
    # 8 inputs times these groups of 8 outputs are summed in registers.
    together = next(n for n in (4, 3, 2, 1) if groups % n == 0)
    unroll = next(n for n in (4, 3, 2, 1) if pixels % n == 0)

    def body(x_ref, dy_ref, dkernels_ref, x32_ref):
        def convert(p, _):
            x32_ref[p] = x_ref[p].astype(jnp.float32)

        lax.fori_loop(0, pixels, convert, None)

        @pl.when(pl.program_id(1) == 0)
        def _():
            def clear(i, _):
                dkernels_ref[i] = jnp.zeros(dkernels_ref.shape[1:], jnp.float32)

            lax.fori_loop(0, inputs, clear, None)

        def block(index, _):
            # Not // and %: on traced integers these ask which platform it is.
            first_input = pl.multiple_of(lax.div(index, groups // together) * SUBLANES, SUBLANES)
            first_output = lax.rem(index, groups // together) * (together * SUBLANES)
            chosen = [pl.ds(pl.multiple_of(first_output + n * SUBLANES, SUBLANES), SUBLANES) for n in range(together)]

            def add(step, sums):
                sums = list(sums)
                for p in range(unroll):
                    pixel = step * unroll + p
                    dy = [dy_ref[pixel, channels, :].astype(jnp.float32) for channels in chosen]
                    for i in range(SUBLANES):
                        x = jnp.broadcast_to(x32_ref[pixel, pl.ds(first_input + i, 1), :], (SUBLANES, lanes))
                        for n in range(together):
                            sums[i * together + n] += x * dy[n]
                return tuple(sums)

            zeros = (jnp.zeros((SUBLANES, lanes), jnp.float32),) * (SUBLANES * together)
            sums = lax.fori_loop(0, pixels // unroll, add, zeros)
            for i in range(SUBLANES):
                for n in range(together):
                    dkernels_ref[first_input + i, chosen[n], :] += sums[i * together + n]

        lax.fori_loop(0, inputs // SUBLANES * (groups // together), block, None)

    dkernels = _call(
        body,
        f"pointwise_kernel_gradient_{height}x{width}_{inputs}to{outputs}",
        (batch // lanes, total // pixels),
        [
            pl.BlockSpec((pixels, inputs, lanes), lambda b, p: (p, 0, b)),
            pl.BlockSpec((pixels, outputs, lanes), lambda b, p: (p, 0, b)),
        ],
        jax.ShapeDtypeStruct((inputs, outputs, batch), jnp.float32),
        pl.BlockSpec((inputs, outputs, lanes), lambda b, p: (0, 0, b)),
        [(pixels, inputs, lanes)],
    )(*(_lanes(x.reshape(batch, total, -1)) for x in (x_BxHxWxI, dy_BxHxWxO)))
    return _batch_first(dkernels)
