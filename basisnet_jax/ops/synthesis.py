"""The paper's core: each image's kernels are combined from N basis kernels.

`kernel[b] = sum_n coefficients[b, n] * bases[n]` (arXiv 2105.03014; US20230297852A1), and image b is convolved with
its own kernel. The obvious way, a convolution with one group for each image, is slow everywhere. With the batch
sharded over a mesh, XLA gathers the batch for such a convolution (openxla/xla#47945), and on CPU gave wrong values
(benchmarks/vmapped_kernels.py). The forms below never put the batch into a convolution's groups. The form is chosen
where the program is lowered, so a program that is compiled for a TPU on a CPU host gets the TPU's form. TPUs and NVIDIA
GPUs can run Pallas kernels for depthwise layers. No TPU and no GPU has been measured (docs/design/tpu.md,
docs/guides/gpu.md).

Shapes: B images, H and W pixels, I input and O output channels, C channels, K the kernel's side, N bases. Coefficients
are [B, N], or [B, G, N]: one vector for each of G groups of output channels, see `by_group`.
Products of bfloat16 are accumulated in float32.
"""

from collections.abc import Callable, Iterator
from functools import partial, reduce

import jax
import jax.numpy as jnp
from absl import logging
from jax import lax

from basisnet_jax.errors import UserError
from basisnet_jax.ops import pallas_depthwise, pallas_depthwise_gpu, pallas_pointwise, taps
from basisnet_jax.ops.normalized import Normalized, value_of


def combination_coefficients(
    scores_BxLxN: jax.Array, temperature: jax.Array | float, uniform_mix: jax.Array | float
) -> jax.Array:
    """Returns float32[B, L, N]: coefficients that sum to one over the bases.

    Args:
      scores_BxLxN: the preview's scores, one vector of N for each image and coefficient vector.
      temperature: divides the scores before the softmax; a high one keeps the coefficients near uniform.
      uniform_mix: weight in [0, 1] of the uniform vector, the warm start's epsilon; at 1 the scores are ignored, and
        every basis gets the same gradient.
    """
    softmax_BxLxN = jax.nn.softmax(scores_BxLxN.astype(jnp.float32) / temperature)
    return uniform_mix / scores_BxLxN.shape[-1] + (1.0 - uniform_mix) * softmax_BxLxN


def annealed(
    temperature: jax.Array | float, start_temperature: float, warm_start: jax.Array | float
) -> jax.Array | float:
    """Returns the temperature: linear in `warm_start`, from `start_temperature` (at 1) to `temperature` (at 0)."""
    return temperature + warm_start * (start_temperature - temperature)


def by_group(coefficients_BxGxN: jax.Array, *arrays: jax.Array) -> Iterator[tuple[jax.Array, ...]]:
    """Yields (coefficients_BxN, each array's channels in the group) for every group.

    Args:
      coefficients_BxGxN: [B, G, N], or [B, N] for one group.
      arrays: [..., channels]; a group is neighbouring channels, and groups are as equal as can be.

    Raises:
      UserError: more groups than channels.
    """
    vectors = jnp.unstack(coefficients_BxGxN if coefficients_BxGxN.ndim == 3 else coefficients_BxGxN[:, None], axis=1)
    channels = arrays[0].shape[-1]
    if len(vectors) > channels:
        raise UserError(
            f"config.model.channel_groups = {len(vectors)}: a layer to synthesize has {channels} output channels; "
            "choose fewer groups."
        )
    for group, vector in enumerate(vectors):
        start, stop = (edge * channels // len(vectors) for edge in (group, group + 1))
        yield vector, *(x[..., start:stop] for x in arrays)


@jax.custom_vjp
def combine(coefficients_BxGxN: jax.Array, bases_Nx: jax.Array) -> jax.Array:
    """Returns [B, ...] in the bases' dtype: one kernel an image, from bases [N, ...]; linear in both arguments."""
    kernels = [
        jnp.einsum("bn,n...->b...", coefficients_BxN, part_Nx, preferred_element_type=jnp.float32)
        for coefficients_BxN, part_Nx in by_group(coefficients_BxGxN, bases_Nx)
    ]
    return jnp.concatenate(kernels, -1).astype(bases_Nx.dtype)


def _combine_forward(coefficients_BxGxN, bases_Nx):
    return combine(coefficients_BxGxN, bases_Nx), (coefficients_BxGxN, bases_Nx)


def _combine_backward(residuals, dkernels_Bx):
    coefficients_BxGxN, bases_Nx = residuals
    groups = list(by_group(coefficients_BxGxN, dkernels_Bx, bases_Nx))
    dcoefficients = [_coefficient_gradient(dpart_Bx, part_Nx) for _, dpart_Bx, part_Nx in groups]
    dbases = [jnp.einsum("b...,bn->n...", d, c, preferred_element_type=jnp.float32) for c, d, _ in groups]
    dcoefficients_BxGxN = jnp.stack(dcoefficients, 1).reshape(coefficients_BxGxN.shape)
    return dcoefficients_BxGxN, jnp.concatenate(dbases, -1).astype(bases_Nx.dtype)


combine.defvjp(_combine_forward, _combine_backward)


def _coefficient_gradient(dkernels_Bx: jax.Array, bases_Nx: jax.Array) -> jax.Array:
    """Returns float32[B, N]: the product of each image's kernel gradient with each basis.

    Few results are sums of many terms. For NVIDIA GPUs XLA cuts such a sum into parts; where their number does not
    divide the terms, it first copies both arrays to longer ones. So there the sum comes in parts of eight rows of the
    last axis, or of one, which no split has to pad.
    """

    def whole(dkernels_BxM, bases_NxM):
        return jnp.einsum("bm,nm->bn", dkernels_BxM, bases_NxM)

    def in_parts(dkernels_BxM, bases_NxM):
        channels = dkernels_Bx.shape[-1]
        size = channels * (8 if dkernels_BxM.shape[1] % (8 * channels) == 0 else 1)
        dkernels_BxPxS, bases_NxPxS = (x.reshape(x.shape[0], -1, size) for x in (dkernels_BxM, bases_NxM))
        return jnp.sum(jnp.einsum("bps,nps->pbn", dkernels_BxPxS, bases_NxPxS), 0)

    flat = (x.reshape(x.shape[0], -1).astype(jnp.float32) for x in (dkernels_Bx, bases_Nx))
    return lax.platform_dependent(*flat, default=whole, cuda=in_parts)


# Pointwise convolution


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def pointwise(
    x_BxHxWxI: jax.Array, bases_NxIxO: jax.Array, coefficients_BxGxN: jax.Array, pallas_kernels: bool = False
) -> jax.Array:
    """Convolves each image with its own combination of the 1x1 bases.

    Args:
      x_BxHxWxI: activations, float32 or bfloat16.
      bases_NxIxO: basis kernels in the dtype of x.
      coefficients_BxGxN: float32.
      pallas_kernels: whether a TPU computes the kernels' gradient by `pallas_pointwise`, where that supports the layer.

    Returns:
      [B, H, W, O] in the dtype of x.
    """
    return lax.platform_dependent(
        x_BxHxWxI, bases_NxIxO, coefficients_BxGxN, tpu=_mix_inputs_of_groups, default=_batched_matmul
    )


def _batched_matmul(x_BxHxWxI, bases_NxIxO, coefficients_BxGxN):
    kernels_BxIxO = combine(coefficients_BxGxN, bases_NxIxO)
    return jnp.einsum("bhwi,bio->bhwo", x_BxHxWxI, kernels_BxIxO, preferred_element_type=jnp.float32).astype(
        x_BxHxWxI.dtype
    )


def _batched_matmul_transposed(dy_BxHxWxO, bases_NxIxO, coefficients_BxGxN):
    # The same `combine` as in the forward pass, so that the compiler computes the kernels once.
    kernels_BxIxO = combine(coefficients_BxGxN, bases_NxIxO)
    return jnp.einsum("bhwo,bio->bhwi", dy_BxHxWxO, kernels_BxIxO, preferred_element_type=jnp.float32).astype(
        dy_BxHxWxO.dtype
    )


def _mix_inputs_of_groups(x_BxHxWxI, bases_NxIxO, coefficients_BxGxN):
    groups = by_group(coefficients_BxGxN, bases_NxIxO)
    return jnp.concatenate([_mix_inputs(x_BxHxWxI, part, c) for c, part in groups], -1)


def _mix_inputs_of_groups_transposed(dy_BxHxWxO, bases_NxIxO, coefficients_BxGxN):
    groups = by_group(coefficients_BxGxN, dy_BxHxWxO, bases_NxIxO)
    return reduce(jnp.add, (_mix_inputs(dy, jnp.swapaxes(part, 1, 2), c) for c, dy, part in groups))


def _mix_inputs(x_BxHxWxI, bases_NxIxO, coefficients_BxN):
    """Computes one product over (n, i) of x * coefficient_n: the batch never enters the dot and stays in the lanes."""
    scale_Bx1x1xNx1 = coefficients_BxN[:, None, None, :, None].astype(x_BxHxWxI.dtype)
    mixed_BxHxWxNI = (x_BxHxWxI[..., None, :] * scale_Bx1x1xNx1).reshape(*x_BxHxWxI.shape[:3], -1)
    stacked_NIxO = bases_NxIxO.reshape(-1, bases_NxIxO.shape[-1])
    return jnp.einsum("bhwk,ko->bhwo", mixed_BxHxWxNI, stacked_NIxO, preferred_element_type=jnp.float32).astype(
        x_BxHxWxI.dtype
    )


def _kernel_gradient(x_BxHxWxI, dy_BxHxWxO):
    return jnp.einsum("bhwi,bhwo->bio", x_BxHxWxI, dy_BxHxWxO, preferred_element_type=jnp.float32)


def _kernel_gradient_of_pixels(x_BxHxWxI, dy_BxHxWxO):
    """Returns the same as `_kernel_gradient`; summed over one axis, XLA's CPU compiler transposes less."""
    x_BxPxI, dy_BxPxO = (z.reshape(z.shape[0], -1, z.shape[-1]) for z in (x_BxHxWxI, dy_BxHxWxO))
    return jnp.einsum("bpi,bpo->bio", x_BxPxI, dy_BxPxO, preferred_element_type=jnp.float32)


def _pointwise_forward(x_BxHxWxI, bases_NxIxO, coefficients_BxGxN, pallas_kernels):
    if pallas_kernels and not pallas_pointwise.reason_unsupported(x_BxHxWxI, bases_NxIxO.shape[-1]):
        # Without the barrier XLA computes x twice, once for the product and once for the kernel.
        x_BxHxWxI = lax.platform_dependent(x_BxHxWxI, tpu=lax.optimization_barrier, default=lambda x: x)
    return pointwise(x_BxHxWxI, bases_NxIxO, coefficients_BxGxN), (x_BxHxWxI, bases_NxIxO, coefficients_BxGxN)


def _pointwise_backward(pallas_kernels, residuals, dy_BxHxWxO):
    x_BxHxWxI, bases_NxIxO, coefficients_BxGxN = residuals
    gradient_forms = {"default": _kernel_gradient, "cpu": _kernel_gradient_of_pixels}
    if pallas_kernels and not pallas_pointwise.reason_unsupported(x_BxHxWxI, bases_NxIxO.shape[-1]):
        dy_BxHxWxO = lax.platform_dependent(dy_BxHxWxO, tpu=lax.optimization_barrier, default=lambda x: x)
        gradient_forms["tpu"] = pallas_pointwise.kernel_gradient
    dx_BxHxWxI = lax.platform_dependent(
        dy_BxHxWxO,
        bases_NxIxO,
        coefficients_BxGxN,
        tpu=_mix_inputs_of_groups_transposed,
        default=_batched_matmul_transposed,
    )
    dkernels_BxIxO = lax.platform_dependent(x_BxHxWxI, dy_BxHxWxO, **gradient_forms)
    dcoefficients_BxGxN, dbases_NxIxO = _combine_backward((coefficients_BxGxN, bases_NxIxO), dkernels_BxIxO)
    return dx_BxHxWxI, dbases_NxIxO, dcoefficients_BxGxN


pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def static_pointwise(x_BxHxWxI: jax.Array, kernel_IxO: jax.Array) -> jax.Array:
    """Convolves all images with one 1x1 kernel, as one product over all pixels on CPUs and NVIDIA GPUs.

    XLA's CPU compiler computes the gradient of a convolution's 1x1 kernel as a convolution with a window of the image's
    size, which took 3 to 14 times the product's time. On a GPU, cuDNN's convolution needs more launches. TPUs run XLA's
    convolution, for which no array changes its layout.
    """

    def product(x_BxHxWxI, kernel_IxO):
        x_PxI = x_BxHxWxI.reshape(-1, x_BxHxWxI.shape[-1])
        y_PxO = jnp.dot(x_PxI, kernel_IxO, preferred_element_type=jnp.float32).astype(x_BxHxWxI.dtype)
        return y_PxO.reshape(*x_BxHxWxI.shape[:3], -1)

    def convolution(x_BxHxWxI, kernel_IxO):
        kernel_1x1xIxO, dimensions = kernel_IxO[None, None], ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x_BxHxWxI, kernel_1x1xIxO, (1, 1), "VALID", dimension_numbers=dimensions)

    return _by_platform({"default": convolution, "cpu": product, "cuda": product}, x_BxHxWxI, kernel_IxO)


# Dense convolution of a larger side


@partial(jax.checkpoint, static_argnums=(3, 4))  # else the backward pass keeps a copy of the image for each tap
def dense(
    x_BxHxWxI: jax.Array, bases_NxKxKxIxO: jax.Array, coefficients_BxGxN: jax.Array, stride: int, padding: str
) -> jax.Array:
    """Convolves each image with its own combination of the KxK bases, as a sum of K*K pointwise convolutions.

    Args:
      x_BxHxWxI: activations, float32 or bfloat16.
      bases_NxKxKxIxO: basis kernels in the dtype of x.
      coefficients_BxGxN: float32.
      stride: of both spatial axes.
      padding: see `taps.pads`.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), O] in the dtype of x; with bfloat16 each tap's product is rounded.
    """
    side = bases_NxKxKxIxO.shape[1]
    output = [taps.pads(size, side, stride, padding)[2] for size in x_BxHxWxI.shape[1:3]]
    padded_BxHxWxI = taps.pad(x_BxHxWxI, side, stride, padding)
    products = (
        pointwise(taps.window(padded_BxHxWxI, i, j, output, stride), bases_NxKxKxIxO[:, i, j], coefficients_BxGxN)
        for i in range(side)
        for j in range(side)
    )
    return reduce(jnp.add, (product.astype(jnp.float32) for product in products)).astype(x_BxHxWxI.dtype)


# Depthwise convolution


def depthwise(
    x_BxHxWxC: jax.Array | Normalized,
    bases_NxKxKxC: jax.Array,
    coefficients_BxGxN: jax.Array,
    stride: int,
    padding: str = "same",
    pallas_kernels: bool = False,
) -> jax.Array:
    """Convolves each image with its own combination of the depthwise bases.

    Args:
      x_BxHxWxC: activations, float32 or bfloat16.
      bases_NxKxKxC: basis kernels in the dtype of x.
      coefficients_BxGxN: float32.
      stride: of both spatial axes.
      padding: see `taps.pads`.
      pallas_kernels: whether a TPU runs `pallas_depthwise` and an NVIDIA GPU `pallas_depthwise_gpu`, where these
        support the layer.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), C] in the dtype of x.
    """
    kernels_BxKxKxC = combine(coefficients_BxGxN, bases_NxKxKxC)
    by_taps = partial(taps.depthwise, stride=stride, padding=padding)
    return _depthwise(x_BxHxWxC, kernels_BxKxKxC, {"default": by_taps}, stride, padding, pallas_kernels)


def static_depthwise(
    x_BxHxWxC: jax.Array | Normalized,
    kernel_KxKxC: jax.Array,
    stride: int,
    padding: str = "same",
    pallas_kernels: bool = False,
) -> jax.Array:
    """Convolves all images with one depthwise kernel; otherwise like `depthwise`.

    CPUs sum taps, since XLA's grouped convolution is many times slower there. Without the Pallas kernels, other
    platforms run XLA's convolution, whose groups are the channels, not the batch.
    """
    by_taps = partial(taps.depthwise, stride=stride, padding=padding)
    xla = partial(xla_depthwise, stride=stride, padding=padding)
    return _depthwise(x_BxHxWxC, kernel_KxKxC[None], {"default": xla, "cpu": by_taps}, stride, padding, pallas_kernels)


def _depthwise(x, kernels_BxKxKxC, forms, stride: int, padding: str, pallas_kernels: bool):
    """Runs the platform's form, or a platform's Pallas kernels if they are asked for and support the layer.

    Args:
      x: [B, H, W, C] or Normalized.
      kernels_BxKxKxC: as in `taps.depthwise`.
      forms: {platform: form(x_BxHxWxC, kernels_BxKxKxC)}.
      stride: of both spatial axes.
      padding: see `taps.pads`.
      pallas_kernels: whether the Pallas kernels are asked for.
    """
    image, norm, act = (x.x_BxHxWxC, x[1:4], x.act) if isinstance(x, Normalized) else (x, (), lambda z: z)
    batch, *size, channels = image.shape
    side = kernels_BxKxKxC.shape[1]
    (top, _, rows), (left, _, columns) = (taps.pads(n, side, stride, padding) for n in size)
    window = pallas_depthwise.Window(tuple(size), (rows, columns), (top, left), side, stride)

    def affine_of(mean_C, scale_C, bias_C):
        return jnp.stack([scale_C, bias_C - mean_C * scale_C])[None]

    def on_tpu(image, kernels_BxKxKxC, *norm):
        affine = affine_of(*norm or (jnp.zeros(channels), jnp.ones(channels), jnp.zeros(channels)))
        kernels = jnp.broadcast_to(kernels_BxKxKxC, (batch, side, side, channels))
        return pallas_depthwise.depthwise(image, kernels, jnp.broadcast_to(affine, (batch, 2, channels)), act, window)

    def on_gpu(image, kernels_BxKxKxC, *norm):
        affine = affine_of(*norm) if norm else None
        return pallas_depthwise_gpu.depthwise(image, kernels_BxKxKxC, affine, act, window)

    def after_norm(form):
        def whole(image, kernels_BxKxKxC, mean_C, scale_C, bias_C):
            return form(Normalized(image, mean_C, scale_C, bias_C, act).value(), kernels_BxKxKxC)

        return whole if norm else form

    kernels = {}
    for platform, module, form in (("tpu", pallas_depthwise, on_tpu), ("cuda", pallas_depthwise_gpu, on_gpu)):
        if not pallas_kernels:
            continue
        if why := module.reason_unsupported(image, window):
            logging.debug("no %s kernel for a depthwise convolution of %s: %s", platform, image.shape, why)
        else:
            kernels[platform] = form
    if not kernels:
        return _by_platform(forms, value_of(x), kernels_BxKxKxC)
    forms = {platform: after_norm(form) for platform, form in forms.items()}
    return _by_platform({**forms, **kernels}, image, kernels_BxKxKxC, *norm)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_platform(forms: dict[str, Callable[..., jax.Array]], *arguments: jax.Array) -> jax.Array:
    """Runs the form of the platform that the program is lowered for, in both passes."""
    return lax.platform_dependent(*arguments, **forms)


def _by_platform_forward(forms, *arguments):
    return _by_platform(forms, *arguments), arguments


def _by_platform_backward(forms, arguments, dy):
    def gradient_of(form):
        return lambda dy, *arguments: jax.vjp(form, *arguments)[1](dy)

    return lax.platform_dependent(dy, *arguments, **{platform: gradient_of(form) for platform, form in forms.items()})


_by_platform.defvjp(_by_platform_forward, _by_platform_backward)


def xla_depthwise(x_BxHxWxC: jax.Array, kernel_1xKxKxC: jax.Array, stride: int, padding: str) -> jax.Array:
    """Returns the same as `static_depthwise`, by XLA's convolution on every platform."""
    kernel_KxKx1xC = jnp.moveaxis(kernel_1xKxKxC, 0, 2)
    return lax.conv_general_dilated(
        x_BxHxWxC,
        kernel_KxKx1xC,
        (stride, stride),
        [taps.pads(size, kernel_KxKx1xC.shape[0], stride, padding)[:2] for size in x_BxHxWxC.shape[1:3]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x_BxHxWxC.shape[-1],
    )
