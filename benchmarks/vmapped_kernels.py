"""Shows whether vmapped 1x1 convolutions, one kernel per image, are right if the batch is sharded over 8 CPU devices.

    python benchmarks/vmapped_kernels.py

`jax.vmap` of a convolution over its kernel becomes one grouped convolution with a group per image. The script
compares it with NumPy, on one device and with the batch sharded over eight, prints the largest errors with the
versions, and ends with code 1 if one of them is wrong.

Seen with jax and jaxlib 0.10.2: right on one device, errors of the size of the values on eight; with 12 output
channels it does not compile there. openxla/xla#47945 is about grouped convolutions over a sharded batch, too, but
about their speed: it calls the result semantically correct.
"""

import argparse
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import jaxlib
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def convolve(image_HxWxI: jax.Array, kernel_IxO: jax.Array) -> jax.Array:
    """Convolves one image with its 1x1 kernel."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        image_HxWxI[None], kernel_IxO[None, None], (1, 1), "SAME", dimension_numbers=layout
    )[0]


def main() -> None:
    """Compares, prints, and ends with code 1 if a value is wrong."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    rng = np.random.default_rng(0)
    images_BxHxWxI = rng.normal(size=(16, 6, 6, 8)).astype(np.float32)
    kernels_BxIxO = rng.normal(size=(16, 8, 8)).astype(np.float32)
    expected_BxHxWxO = np.einsum("bhwi,bio->bhwo", images_BxHxWxI, kernels_BxIxO)
    print(f"jax {jax.__version__}, jaxlib {jaxlib.__version__}, {jax.device_count()} CPU devices")
    errors = {}
    for devices in (1, 8):
        mesh = jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices])
        arrays = jax.device_put((images_BxHxWxI, kernels_BxIxO), NamedSharding(mesh, PartitionSpec("data")))
        errors[devices] = float(np.abs(jax.jit(jax.vmap(convolve))(*arrays) - expected_BxHxWxO).max())
        print(f"{devices} devices: largest error {errors[devices]:.1e}; values up to {expected_BxHxWxO.max():.1f}")
    sys.exit(int(max(errors.values()) > 1e-3))


if __name__ == "__main__":
    main()
