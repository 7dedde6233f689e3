"""What ours is compared with: convolutions of JAX's own, and the networks made of them."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax import lax

from basisnet_jax import config
from basisnet_jax.experiment import model as model_lib
from basisnet_jax.models.basisnet import BasisNet
from basisnet_jax.ops import synthesis

CLASSES, SIDE = 1000, 224
GPU_KERNELS = "pallas_kernels"  # the setting that has GPUs run kernels of ours


def convolution(x_BxHxWxI: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """XLA's, of all images with one kernel: [I, O] is pointwise, [K, K, C] depthwise."""
    depthwise = kernel.ndim == 3
    return lax.conv_general_dilated(
        x_BxHxWxI,
        kernel[:, :, None] if depthwise else kernel[None, None],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x_BxHxWxI.shape[-1] if depthwise else 1,
    )


def vmapped(x_BxHxWxI: jax.Array, bases: jax.Array, coefficients_BxN: jax.Array, stride: int = 1) -> jax.Array:
    """Convolves each image with its own kernel by `jax.vmap`: one group an image."""
    one_image = jax.vmap(lambda image, kernel: convolution(image[None], kernel, stride)[0])
    return one_image(x_BxHxWxI, synthesis.combine(coefficients_BxN, bases))


@contextlib.contextmanager
def layers_of(form: str) -> Iterator[None]:
    """Traces the context with 'ours' or 'vmapped' synthesized layers, or static depthwise ones of 'xla'."""
    replaced = {
        "ours": {},
        "vmapped": {
            "pointwise": lambda x, bases, coefficients, *_: vmapped(x, bases, coefficients),
            "depthwise": lambda x, bases, coefficients, stride, *_: vmapped(
                synthesis.value_of(x), bases, coefficients, stride
            ),
        },
        "xla": {"static_depthwise": lambda x, kernel, stride, *_: convolution(synthesis.value_of(x), kernel, stride)},
    }
    with mock.patch.multiple(synthesis, **replaced[form]) if replaced[form] else contextlib.nullcontext():
        yield


def network(num_bases: int, preview: str = "tiny") -> BasisNet:
    """Returns MobileNetV3-Large at 224, all bottlenecks synthesized from N bases, or static where N is 0.

    Args:
      num_bases: N.
      preview: 'tiny', whose cost does not count (its coefficients still depend on the image), or 'large', the preview
        of configs/imagenet_mbv3.py: MobileNetV3-Large at width 0.75 and 128 x 128.
    """
    model = config.default().model
    model.granularity = "block"
    model.num_bases = num_bases or 1
    model.routing = "preview" if num_bases else "static"
    model.specialist.update(backbone="mobilenet_v3_large", resolution=SIDE)
    if preview == "large":
        model.preview.update(backbone="mobilenet_v3_large", width=0.75, resolution=128)
    return model_lib.make_model(model, CLASSES)


def run_once(function: Callable[[], Any]) -> Any:
    """Computes a value on the CPU, in a program compiled in a hurry, and moves the value to the first device."""
    with jax.default_device(jax.devices("cpu")[0]):
        value = jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})()
    return jax.device_put(jax.device_get(value), jax.devices()[0])


def depthwise_kernels() -> dict[str, dict[str, bool]]:
    """Returns {'kernels': keywords} with which `synthesis.depthwise` runs a GPU's kernels; {} where it has none."""
    keywords = inspect.signature(synthesis.depthwise).parameters
    return {"kernels": {GPU_KERNELS: True}} if GPU_KERNELS in keywords else {}


def step_forms() -> dict[str, dict[str, bool]]:
    """Returns {form of depthwise layers on a GPU: changes of config.model}: 'taps', and 'kernels' if there are any."""
    if GPU_KERNELS not in config.default().model:
        return {"taps": {}}
    return {"taps": {GPU_KERNELS: False}, "kernels": {GPU_KERNELS: True}}


def batch_of(images: int) -> dict[str, jax.Array]:
    """Returns a batch as the training step takes it."""
    rng = jax.random.key(0)
    return {
        "image": jax.random.randint(rng, (images, SIDE, SIDE, 3), 0, 256).astype(jnp.uint8),
        "label": jax.random.randint(rng, (images,), 0, CLASSES),
        "mask": jnp.ones(images),
    }
