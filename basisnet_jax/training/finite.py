"""The search for numbers that are not finite, and for the layer where they began.

Checks are a dictionary {name: bool[]} whose names begin with a number, because jit sorts a dictionary by its keys and
the first check that fails is the one to report.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

Checks = dict[str, jax.Array]
_OUTPUT, _GRADIENT = "the output of ", "the gradient of "


def all_finite(tree: Any) -> jax.Array:
    """Returns bool[]: whether every float of a tree is finite; leaves that are not arrays are ignored."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(array)) for array in arrays]))


def note(checks: Checks, name: str, tree: Any) -> None:
    """Adds the check that a tree is finite, after the existing checks."""
    checks[f"{len(checks):04} {name}"] = all_finite(tree)


@contextlib.contextmanager
def watched_layers(checks: Checks) -> Iterator[None]:
    """Adds a check of the outputs of each Flax module called in the context, in the order in which the calls return."""

    def interceptor(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        outputs = call(*args, **kwargs)
        if context.method_name == "__call__":
            note(checks, _OUTPUT + ("/".join(context.module.path) or "the network"), outputs)
        return outputs

    with nn.intercept_methods(interceptor):
        yield


def note_gradients(checks: Checks, gradients: Any) -> None:
    """Adds a check of each layer's own gradients, the last layer first, as they are computed."""
    layers: dict[str, dict[str, jax.Array]] = {}
    for name, gradient in flatten_dict(gradients, sep="/").items():
        layers.setdefault(name.rpartition("/")[0], {})[name] = gradient
    for check in reversed(list(checks)):
        layer = check.partition(_OUTPUT)[2]
        if layer in layers:
            note(checks, _GRADIENT + layer, layers.pop(layer))


def first_failed(checks: Mapping[str, Any]) -> str | None:
    """Returns what the first failed check looked at, as 'the output of specialist/stem'; None if no check failed."""
    values = jax.device_get(checks)
    return next((check.partition(" ")[2] for check in sorted(values) if not values[check]), None)


def first_bad_leaf(tree: Any) -> str | None:
    """Returns the name of a tree's first array that is not finite in this host's shards; None if all are finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        mine = leaf.addressable_shards if isinstance(leaf, jax.Array) else ()
        shards = [shard.data for shard in mine if shard.replica_id == 0] if mine else [leaf]
        if not all(np.isfinite(np.asarray(shard)).all() for shard in shards):
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return None


def numbers(metrics: dict[str, float]) -> str:
    """Formats the metrics of a step, as 'loss nan, gradient norm nan, learning rate 0.1'."""
    shown = ("loss", "gradient_norm", "learning_rate")
    return ", ".join(f"{name.replace('_', ' ')} {metrics[name]:.4g}" for name in shown)


def sentence(step: int, metrics: dict[str, float], skipped: int, culprit: str) -> str:
    """Says why the run stops at a step: its metrics, how many steps in a row were skipped, and the culprit."""
    row = f", the last of {skipped} in a row that were skipped," if skipped > 1 else ""
    return (
        f"step {step}{row} has numbers that are not finite ({numbers(metrics)}), the first of them in {culprit}; "
        "lower config.optimizer.learning_rate or set config.optimizer.clip_norm; earlier checkpoints are kept."
    )
