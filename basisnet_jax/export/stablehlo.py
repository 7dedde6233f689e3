"""StableHLO by jax.export: one file for several platforms and any batch, which a server loads without this package."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

PLATFORMS = ("cpu", "cuda", "tpu")
DTYPES = {"image": jnp.uint8, "coefficients": jnp.float32}  # a quarter of the bytes that float32 pixels would be


def to_stablehlo(function: Callable[..., Any], inputs: Mapping[str, tuple[int, ...]]) -> bytes:
    """A pure function, serialized for PLATFORMS with a symbolic batch.

    Args:
      function: takes an array an input, in order, the batch first.
      inputs: {name: shape without the batch}.

    Returns:
      The file: the same bytes for the same function and weights, whoever exports them from whatever folder.
    """
    (batch,) = export.symbolic_shape("batch")
    arguments = [jax.ShapeDtypeStruct((batch, *shape), DTYPES[name]) for name, shape in inputs.items()]
    with _no_locations():
        return bytes(export.export(jax.jit(function), platforms=PLATFORMS)(*arguments).serialize())


@contextlib.contextmanager
def _no_locations() -> Iterator[None]:
    """Has JAX note no source files: their paths would make each checkout's file another, and say whose it is."""
    name = "jax_traceback_in_locations_limit"
    was = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, was)


def load_stablehlo(content: bytes) -> Callable[..., list[jax.Array]]:
    """The function of such a file, which compiles for each new batch size; it gives a list of its outputs."""
    call = jax.jit(export.deserialize(bytearray(content)).call)
    return lambda *arrays_Bx: jax.tree.leaves(call(*arrays_Bx))
