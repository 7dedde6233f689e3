"""Starts a stage from trained weights."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from basisnet_jax.models.basisnet import Variables
from basisnet_jax.weights.conversion import take


def start_stage(
    variables: Variables, stage: str, sources: Sequence[Variables], *, noise: float, key: jax.Array
) -> Variables:
    """Returns a model's variables with one stage started from trained networks.

    Bases are copied from a source that has as many. From static networks, basis n becomes a copy of the kernel of
    source n modulo their number. One source gives equal bases, which need the noise to become different; N checkpoints
    give one basis each. The noise sums to zero over the bases, so uniform coefficients, with which a warm start
    begins, give the trained network whatever the noise.
    All else of the stage comes from the first source, but a classifier for another number of classes stays as it is.

    Args:
      variables: variables of a `BasisNet`; they are not changed.
      stage: 'specialist' or 'preview'.
      sources: variables of a `Backbone` of the stage's architecture, as `Published.variables`: one, or several static.
      noise: standard deviation of the noise on a basis, relative to that of the output channel's weights.
      key: random key of the noise.

    Raises:
      UserError: a source is of another architecture; the message names the first mismatch.
    """
    flat_sources = [flatten_dict(source, sep="/") for source in sources]
    collections = {name: dict(collection) for name, collection in variables.items()}
    target = flatten_dict({name: tree[stage] for name, tree in collections.items()}, sep="/")
    bias = "params/classifier/bias"
    same_classes = target[bias].shape == flat_sources[0][bias].shape
    started = {}
    for index, (path, leaf) in enumerate(target.items()):
        if path.startswith("params/classifier/") and not same_classes:
            started[path] = leaf
            continue
        is_bases = path.endswith("/bases") and path not in flat_sources[0]
        name, shape = (f"{path.removesuffix('bases')}kernel", leaf.shape[1:]) if is_bases else (path, leaf.shape)
        copies = [
            jnp.asarray(take(source, name, [shape], f"source {number} does not fit the {stage}"), leaf.dtype)
            for number, source in enumerate(flat_sources)
        ]
        if is_bases:
            bases = jnp.stack([copies[n % len(copies)] for n in range(leaf.shape[0])])
            drawn = jax.random.normal(jax.random.fold_in(key, index), bases.shape, bases.dtype)
            deviations = jnp.std(bases, axis=range(1, bases.ndim - 1), keepdims=True)
            bases += noise * deviations * (drawn - jnp.mean(drawn, axis=0))
        started[path] = bases if is_bases else copies[0]
    for name, tree in unflatten_dict(started, sep="/").items():
        collections[name][stage] = tree
    return collections
