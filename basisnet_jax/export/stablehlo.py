"""StableHLO by jax.export: one file for several platforms and any batch; a server loads it without this package."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

PLATFORMS = ("cpu", "cuda", "tpu")
DTYPES = {"image": jnp.uint8, "coefficients": jnp.float32}  # uint8 pixels take a quarter of the bytes of float32


def to_stablehlo(function: Callable[..., Any], inputs: Mapping[str, tuple[int, ...]]) -> bytes:
    """Serializes a pure function for PLATFORMS, with a symbolic batch.

    Args:
      function: takes one array for each input, in order, with the batch as first axis.
      inputs: {name: shape without the batch}.

    Returns:
      The file's content: the same bytes for the same function and weights, whatever user and folder export them.
    """
    (batch,) = export.symbolic_shape("batch")
    arguments = [jax.ShapeDtypeStruct((batch, *shape), DTYPES[name]) for name, shape in inputs.items()]
    with no_locations():
        return bytes(export.export(jax.jit(function), platforms=PLATFORMS)(*arguments).serialize())


@contextlib.contextmanager
def no_locations() -> Iterator[None]:
    """Makes JAX record no source paths: those would differ between checkouts, and reveal whose checkout it is."""
    name = "jax_traceback_in_locations_limit"
    was = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, was)


def expiry() -> str:
    """Returns a sentence on which versions of JAX read the files that this JAX writes."""
    return (
        f"JAX {jax.__version__} wrote the .stablehlo files. Every JAX that is released within six months of that "
        "version reads them; later ones may refuse them: then export again."
    )


def load_stablehlo(content: bytes) -> Callable[..., list[jax.Array]]:
    """Loads the function of a file; it compiles for each new batch size, and returns a list of outputs."""
    call = jax.jit(export.deserialize(bytearray(content)).call)
    return lambda *arrays_Bx: jax.tree.leaves(call(*arrays_Bx))
