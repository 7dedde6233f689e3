"""Depthwise convolution of each image with its own kernel, and its gradients, as Pallas kernels (pallas_tpu).

Shapes: B images, H x W pixels and P x Q output pixels, C channels, K the kernel's side. Inside, arrays are
[H, W, C, B], and the grid is (groups of channels, groups of images, groups of output rows). A grid step copies
the rows that it needs, 8 channels at a time, to a scratch with zeros around the image: no sum checks for borders.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from basisnet_jax.ops import pallas_common
from basisnet_jax.ops.pallas_common import LANES, SUBLANES

TILE = 8  # pixels of a row that are summed side by side; more would not fit the registers

Act = Callable[[jax.Array], jax.Array]


class Window(NamedTuple):
    """Geometry of a depthwise convolution; pairs are (rows, columns)."""

    size: tuple[int, int]  # H, W
    output: tuple[int, int]  # P, Q
    before: tuple[int, int]  # zeros before the image
    side: int  # of the kernel
    stride: int

    def rows_read(self, rows: int) -> int:
        """Returns how many image rows `rows` output rows see."""
        return (rows - 1) * self.stride + self.side

    def shifts(self, axis: int) -> range:
        """Returns the shifts: only the outputs v + shift see pixel stride * v + a of the image, for any a < stride."""
        offsets = [
            (a + self.before[axis] - i) // self.stride
            for a in range(self.stride)
            for i in range(self.side)
            if (a + self.before[axis] - i) % self.stride == 0
        ]
        return range(min(offsets), max(offsets) + 1)

    def forward_bytes(self, itemsize: int, rows: int, channels: int) -> int:
        """Returns the bytes of VMEM for a step of `rows` output rows and `channels`: blocks twice, the scratch once."""
        read = min(self.rows_read(rows), self.size[0])
        moved = (read * self.size[1] + rows * self.output[1] + self.side**2) * itemsize + 2 * 4
        scratch = self.rows_read(rows) * self.padded_width() * SUBLANES
        return LANES * (2 * moved * channels + 4 * scratch)

    def backward_bytes(self, itemsize: int, rows: int, channels: int) -> int:
        """Returns the bytes of VMEM for a step of the gradients; see `forward_bytes`."""
        shifts = self.shifts(0)
        read = min(rows + len(shifts) - 1, self.output[0])
        pixels = 2 * rows * self.stride * self.size[1] + read * self.output[1]
        moved = (pixels + self.side**2) * itemsize + (self.side**2 + 2 * 2) * 4
        scratch = (rows + len(shifts) - 1) * self.padded_output_width() * SUBLANES
        return LANES * (2 * moved * channels + 4 * scratch)

    def padded_width(self) -> int:
        """Returns the columns of the padded image: those that the outputs see, or all columns of the image if more."""
        return max(self.rows_read(self.output[1]), self.before[1] + self.size[1])

    def padded_output_width(self) -> int:
        """Returns the columns of the padded outputs: those that see the image, or would see it if they existed."""
        return self.output[1] + len(self.shifts(1)) - 1


def reason_unsupported(x_BxHxWxC: jax.Array, window: Window) -> str | None:
    """Returns why the kernels do not support this convolution, or None if they do."""
    batch, _, width, channels = x_BxHxWxC.shape
    itemsize = x_BxHxWxC.dtype.itemsize
    if why := pallas_common.reason_unsupported(batch, x_BxHxWxC.dtype, channels):
        return why
    if max(f(itemsize, 1, SUBLANES) for f in (window.forward_bytes, window.backward_bytes)) > pallas_common.VMEM:
        return f"the data for a row of {width} pixels does not fit VMEM"
    return None


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def depthwise(
    x_BxHxWxC: jax.Array, kernels_BxKxKxC: jax.Array, affine_Bx2xC: jax.Array, act: Act, window: Window
) -> jax.Array:
    """Convolves act(x * scale + shift) of each image with the image's own depthwise kernel.

    A norm before the convolution is computed on the way, and its result is never stored: neither here nor in the
    backward pass, which computes all three gradients in one pass over x and dy.

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
    return pallas_common.on_each_device(run, x_BxHxWxC, kernels_BxKxKxC, affine_Bx2xC)


def _depthwise_forward(x_BxHxWxC, kernels_BxKxKxC, affine_Bx2xC, act, window):
    arrays = x_BxHxWxC, kernels_BxKxKxC, affine_Bx2xC
    return depthwise(*arrays, act, window), arrays


def _depthwise_backward(act, window, residuals, dy_BxPxQxC):
    run = partial(_depthwise_gradients, act=act, window=window)
    dx_BxHxWxC, dkernels_BxKxKxC, daffine_Bx2xC = pallas_common.on_each_device(run, *residuals, dy_BxPxQxC)
    return dx_BxHxWxC, dkernels_BxKxKxC.astype(residuals[1].dtype), daffine_Bx2xC


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _blocks(rows: int, channels: int, size: Callable[[int, int], int]) -> tuple[int, int]:
    """Returns (rows, channels) of the largest block in VMEM: rows first, since blocks also read rows of neighbours."""
    block_rows = next(r for r in pallas_common.divisors(rows) if size(r, SUBLANES) <= pallas_common.VMEM)
    groups = pallas_common.divisors(channels // SUBLANES)
    return block_rows, SUBLANES * next(g for g in groups if size(block_rows, g * SUBLANES) <= pallas_common.VMEM)


def _sliding(rows: int, first_row: Callable[[jax.Array], jax.Array], shape: tuple[int, int], channels: int, lanes: int):
    """Makes overlapping blocks: `rows` rows of [H, W, C, B] from `first_row`, moved so that all rows exist."""

    def index(c, b, r):
        return jnp.clip(first_row(r), 0, shape[0] - rows), 0, c * channels, b * lanes

    return pl.BlockSpec(tuple(pl.Element(n) for n in (rows, shape[1], channels, lanes)), index)


def _fill(padded_ref, image_ref, channels, first_row, height: int, columns_before: int, prepare: Act = lambda x: x):
    """Writes rows of 8 channels from `first_row` on to padded_ref: prepared, in float32, zeros around the image.

    image_ref holds the same rows of the image, moved so that all rows exist.
    """
    rows, width, *_ = image_ref.shape
    start = jnp.clip(first_row, 0, height - rows)
    zero = jnp.zeros(padded_ref.shape[2:], jnp.float32)

    def row(r, _):
        inside = jnp.logical_and(first_row + r >= 0, first_row + r < height)
        source = jnp.clip(first_row + r, 0, height - 1) - start
        for column in (*range(columns_before), *range(columns_before + width, padded_ref.shape[1])):
            padded_ref[r, column] = zero

        def pixels(q, count, _):
            for n in range(count):
                pixel = image_ref[source, q + n, channels, :].astype(jnp.float32)
                padded_ref[r, columns_before + q + n] = jnp.where(inside, prepare(pixel), zero)

        _tiles(width, TILE, pixels, None)

    lax.fori_loop(0, padded_ref.shape[0], row, None)


def _tiles(count: int, size: int, body: Callable, carry):
    """Runs body(first, size, carry) over the tiles of a row, then over the pixels left, and returns the last carry."""
    whole = count // size
    if whole:
        carry = lax.fori_loop(0, whole, lambda t, carry: body(t * size, size, carry), carry)
    return body(whole * size, count % size, carry) if count % size else carry


def _each_group(block_channels: int, body: Callable[[Any], None]):
    """Runs body(slice of 8 channels) over the channels of a block."""

    def group(c, _):
        body(pl.ds(pl.multiple_of(c * SUBLANES, SUBLANES), SUBLANES))

    lax.fori_loop(0, block_channels // SUBLANES, group, None)


def _tile(width: int) -> int:
    """Returns the largest tile above TILE / 2 that divides the row, or TILE if there is none."""
    return next((d for d in pallas_common.divisors(width) if TILE // 2 < d <= TILE), TILE)


def _plus(total, term):
    return term if total is None else total + term


def _depthwise(x_BxHxWxC, kernels_BxKxKxC, affine_Bx2xC, *, act: Act, window: Window):
    batch, height, width, channels = x_BxHxWxC.shape
    side, stride = window.side, window.stride
    rows_out, columns_out = window.output
    lanes = min(batch, LANES)
    size = partial(window.forward_bytes, x_BxHxWxC.dtype.itemsize)
    rows, block_channels = _blocks(rows_out, channels, size)
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
            taps = kernels_ref[:, :, group_channels, :].astype(jnp.float32)

            def row(p, _):
                def pixels(q, count, _):
                    sums: list[Any] = [None] * count
                    for i in range(side):
                        for column in range(stride * (count - 1) + side):
                            pixel = padded_ref[p * stride + i, q * stride + column]
                            for n in range(count):
                                if 0 <= column - n * stride < side:
                                    sums[n] = _plus(sums[n], pixel * taps[i, column - n * stride])
                    for n in range(count):
                        y_ref[p, q + n, group_channels, :] = sums[n].astype(y_ref.dtype)

                _tiles(columns_out, tile, pixels, None)

            lax.fori_loop(0, rows, row, None)

        _each_group(block_channels, group)

    read = min(window.rows_read(rows), height)
    y = pallas_common.call(
        f"depthwise_{side}x{side}_{height}x{width}x{channels}_stride{stride}",
        body,
        grid=(channels // block_channels, batch // lanes, rows_out // rows),
        inputs=[
            _sliding(read, first_row, window.size, block_channels, lanes),
            pl.BlockSpec((side, side, block_channels, lanes), lambda c, b, r: (0, 0, c, b)),
            pl.BlockSpec((2, block_channels, lanes), lambda c, b, r: (0, c, b)),
        ],
        outputs=pl.BlockSpec((rows, columns_out, block_channels, lanes), lambda c, b, r: (r, 0, c, b)),
        shapes=jax.ShapeDtypeStruct((*window.output, channels, batch), x_BxHxWxC.dtype),
        scratch=(window.rows_read(rows), window.padded_width(), SUBLANES, lanes),
    )(
        pallas_common.batch_last(x_BxHxWxC),
        pallas_common.batch_last(kernels_BxKxKxC),
        pallas_common.batch_last(affine_Bx2xC),
    )
    return pallas_common.batch_first(y)


def _depthwise_gradients(x_BxHxWxC, kernels_BxKxKxC, affine_Bx2xC, dy_BxPxQxC, *, act: Act, window: Window):
    batch, height, width, channels = x_BxHxWxC.shape
    side, stride = window.side, window.stride
    rows_out = window.output[0]
    lanes = min(batch, LANES)
    row_shifts, column_shifts = window.shifts(0), window.shifts(1)
    size = partial(window.backward_bytes, x_BxHxWxC.dtype.itemsize)
    rows, block_channels = _blocks(rows_out, channels, size)
    tile = max(_tile(width) // stride, 1)
    # Where the stride does not divide the image's height, the last row of the last block is outside the image.
    past_the_end = rows_out * stride > height

    def first_row(r):
        return r * rows + row_shifts.start

    def body(x_ref, kernels_ref, affine_ref, dy_ref, dx_ref, dkernels_ref, daffine_ref, padded_ref):
        r = pl.program_id(2)

        def group(group_channels):
            _fill(padded_ref, dy_ref, group_channels, first_row(r), rows_out, -column_shifts.start)
            taps = kernels_ref[:, :, group_channels, :].astype(jnp.float32)
            zero = jnp.zeros(padded_ref.shape[2:], jnp.float32)
            scale, shift = affine_ref[0, group_channels, :], affine_ref[1, group_channels, :]

            def phase(a, u, sums):
                """Writes dx of the block's row stride * u + a, and adds the row's part to the sums."""
                row = u * stride + a
                inside = (r * rows + u) * stride + a < height

                def within(pixel):
                    return jnp.where(inside, pixel, zero) if past_the_end else pixel

                def pixels(q, count, sums):
                    dtaps, (dscale, dshift) = list(sums[:-2]), sums[-2:]

                    def image(n):
                        return within(x_ref[row, q + n, group_channels, :].astype(jnp.float32))

                    activated = [within(act(image(n) * scale + shift)) for n in range(count)]
                    dactivated = [zero] * count
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
                                dactivated[n] += dy * taps[i, j]
                                dtaps[i * side + j] += dy * activated[n]
                    for n in range(count):
                        x = image(n)  # read once more: registers are scarce
                        (da,) = jax.vjp(act, x * scale + shift)[1](within(dactivated[n]))
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
    gradients = pallas_common.call(
        f"depthwise_gradients_{side}x{side}_{height}x{width}x{channels}_stride{stride}",
        body,
        grid=(channels // block_channels, batch // lanes, rows_out // rows),
        inputs=[x_spec, kernels_spec, affine_spec, _sliding(read, first_row, window.output, block_channels, lanes)],
        outputs=[x_spec, kernels_spec, affine_spec],
        shapes=[
            jax.ShapeDtypeStruct((height, width, channels, batch), x_BxHxWxC.dtype),
            jax.ShapeDtypeStruct((side, side, channels, batch), jnp.float32),
            jax.ShapeDtypeStruct((2, channels, batch), jnp.float32),
        ],
        scratch=(rows + len(row_shifts) - 1, window.padded_output_width(), SUBLANES, lanes),
    )(*(pallas_common.batch_last(array) for array in (x_BxHxWxC, kernels_BxKxKxC, affine_Bx2xC, dy_BxPxQxC)))
    return tuple(pallas_common.batch_first(gradient) for gradient in gradients)
