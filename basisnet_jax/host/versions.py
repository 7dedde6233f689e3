"""Versions of everything that a result may depend on."""

import importlib.metadata
import platform

import jax

import basisnet_jax

PACKAGES = (
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "clu",
    "grain",
    "tensorflow-datasets",
    "ml-collections",
    "numpy",
)


def versions() -> dict[str, str]:
    """Returns {name: version} of everything that a result may depend on."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"basisnet_jax": basisnet_jax.__version__, "python": platform.python_version(), **packages}


def versions_line() -> str:
    """Returns the versions of this package, JAX and Python, as they are printed."""
    return f"basisnet_jax {basisnet_jax.__version__}, JAX {jax.__version__}, Python {platform.python_version()}"
