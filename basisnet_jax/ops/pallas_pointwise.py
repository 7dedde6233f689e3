"""Gradient of each image's own pointwise kernel, as a Pallas kernel (pallas_tpu).

Shapes: B images, H x W pixels, I input and O output channels.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from basisnet_jax.ops import pallas_common
from basisnet_jax.ops.pallas_common import LANES, SUBLANES

# For fewer pixels, XLA's matrix product is faster by the compiler's estimates, though it first moves the batch out of
# the lanes (docs/design/tpu.md).
FEWEST_PIXELS = 784


def reason_unsupported(x_BxHxWxI: jax.Array, outputs: int) -> str | None:
    """Returns why the kernel does not support this gradient, or None if it does."""
    batch, height, width, inputs = x_BxHxWxI.shape
    if why := pallas_common.reason_unsupported(batch, x_BxHxWxI.dtype, inputs, outputs):
        return why
    if height * width < FEWEST_PIXELS:
        return f"{height * width} pixels are fewer than {FEWEST_PIXELS}"
    if _bytes(x_BxHxWxI.dtype.itemsize, 1, inputs, outputs) > pallas_common.VMEM:
        return f"the sums of {inputs} times {outputs} channels do not fit VMEM"
    return None


def _bytes(itemsize: int, pixels: int, inputs: int, outputs: int) -> int:
    """Returns the bytes of VMEM for a step of `pixels`: blocks twice, the scratch once."""
    return LANES * (pixels * (2 * (inputs + outputs) * itemsize + 4 * inputs) + 2 * 4 * inputs * outputs)


def kernel_gradient(x_BxHxWxI: jax.Array, dy_BxHxWxO: jax.Array) -> jax.Array:
    """Returns float32[B, I, O]: each image's sum over pixels of x outer dy.

    The vector unit computes the sum: for a product on the matrix unit the batch would have to leave the lanes.
    """
    return pallas_common.on_each_device(_kernel_gradient, x_BxHxWxI, dy_BxHxWxO)


def _kernel_gradient(x_BxHxWxI, dy_BxHxWxO):
    batch, height, width, inputs = x_BxHxWxI.shape
    outputs, lanes = dy_BxHxWxO.shape[-1], min(batch, LANES)
    total = height * width

    itemsize = x_BxHxWxI.dtype.itemsize
    fitting = (d for d in pallas_common.divisors(total) if _bytes(itemsize, d, inputs, outputs) <= pallas_common.VMEM)
    pixels = next(fitting)
    groups = outputs // SUBLANES
    # The sums of 8 inputs times `together` groups of 8 outputs stay in registers.
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
            # Not // and %: on traced integers these operators ask for the platform.
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

    dkernels = pallas_common.call(
        f"pointwise_gradient_{height}x{width}_{inputs}to{outputs}",
        body,
        grid=(batch // lanes, total // pixels),
        inputs=[
            pl.BlockSpec((pixels, inputs, lanes), lambda b, p: (p, 0, b)),
            pl.BlockSpec((pixels, outputs, lanes), lambda b, p: (p, 0, b)),
        ],
        outputs=pl.BlockSpec((inputs, outputs, lanes), lambda b, p: (0, 0, b)),
        shapes=jax.ShapeDtypeStruct((inputs, outputs, batch), jnp.float32),
        scratch=(pixels, inputs, lanes),
    )(*(pallas_common.batch_last(x.reshape(batch, total, -1)) for x in (x_BxHxWxI, dy_BxHxWxO)))
    return pallas_common.batch_first(dkernels)
