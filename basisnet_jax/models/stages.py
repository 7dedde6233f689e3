"""The two stages of a network, as functions of its variables and of pixels, and ablations of what goes between them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from basisnet_jax.models.basisnet import BasisNet, Variables


def normalize(pixels_BxHxWxC: jax.Array) -> jax.Array:
    """Maps pixels in [0, 255], of any dtype, to float32 in [-1, 1] (Inception's preprocessing)."""
    return pixels_BxHxWxC.astype(jnp.float32) / 127.5 - 1.0


class Stages(NamedTuple):
    """The two stages of a network as functions; `make_stages` documents their arguments.

    Attributes:
      first: the preview; None for a network without one.
      second: the specialist, or a network without a preview.
    """

    first: Callable[..., Any] | None
    second: Callable[..., Any]

    def of(self, *arguments: Any) -> "Stages":
        """Returns the stages with their leading arguments bound."""
        first = None if self.first is None else functools.partial(self.first, *arguments)
        return Stages(first, functools.partial(self.second, *arguments))

    def joined(self) -> "Stages":
        """Returns one stage that always runs both; the preview's classifier is unused, so compilers drop it."""
        first, second = self
        if first is None:
            return self
        return Stages(None, lambda *arguments: second(*arguments, first(*arguments)[1]))

    def named(self) -> dict[str, Callable[..., Any]]:
        """Returns {'preview': first, 'specialist': second}; the preview is left out where it is None."""
        first = {} if self.first is None else {"preview": self.first}
        return {**first, "specialist": self.second}


def make_stages(model: BasisNet) -> Stages:
    """Returns a network's stages for inference.

    Both take the network's variables, how much of the warm start is left (from 1 to 0), and pixels
    [B, side, side, channels] in [0, 255]. Their outputs are float32.

    Returns:
      first(variables, warm_start, pixels) -> (preview logits [B, K], coefficients [B, L, N]).
      second(variables, warm_start, pixels, coefficients) -> logits [B, K]. For a network without a preview, call
      second(variables, warm_start, pixels, None, task), where task int32[B] is for a routing that reads it.
    """

    def first(variables: Variables, warm_start: Any, pixels_BxHxWxC: jax.Array) -> Any:
        images_BxHxWxC = normalize(pixels_BxHxWxC)
        return model.apply(variables, images_BxHxWxC, train=False, warm_start=warm_start, method="first_stage")

    def second(
        variables: Variables,
        warm_start: Any,
        pixels_BxHxWxC: jax.Array,
        coefficients_BxLxN: jax.Array | None = None,
        task_B: jax.Array | None = None,
    ) -> Any:
        images_BxHxWxC = normalize(pixels_BxHxWxC)
        if coefficients_BxLxN is None:
            outputs: Any = model.apply(variables, images_BxHxWxC, train=False, warm_start=warm_start, task_B=task_B)
            return outputs.logits_BxK
        return model.apply(variables, images_BxHxWxC, coefficients_BxLxN, train=False, method="second_stage")

    return Stages(first if model.preview else None, second)


def random_cycle(count: int) -> np.ndarray:
    """Returns int64[count]: a fixed permutation of one cycle, so with two or more elements none keeps its place."""
    order = np.random.default_rng(0).permutation(count)
    cycle = np.empty(count, np.int64)
    cycle[order] = np.roll(order, 1)
    return cycle


def _uniform(coefficients_BxLxN: jax.Array) -> jax.Array:
    return jnp.full_like(coefficients_BxLxN, 1 / coefficients_BxLxN.shape[-1])


def _strongest(count: int, coefficients_BxLxN: jax.Array) -> jax.Array:
    """Keeps the `count` largest coefficients of each vector, scaled so that they keep their sum; the others are 0."""
    bases = coefficients_BxLxN.shape[-1]
    _, indices_BxLxC = jax.lax.top_k(coefficients_BxLxN, min(count, bases))
    kept_BxLxN = coefficients_BxLxN * jax.nn.one_hot(indices_BxLxC, bases).sum(axis=-2)
    return kept_BxLxN * (coefficients_BxLxN.sum(axis=-1, keepdims=True) / kept_BxLxN.sum(axis=-1, keepdims=True))


def _shuffle_layers(coefficients_BxLxN: jax.Array) -> jax.Array:
    return coefficients_BxLxN[:, random_cycle(coefficients_BxLxN.shape[1])]


# What the specialist gets in place of the preview's coefficients, to see what they carry.
# {name: coefficients_BxLxN -> coefficients_BxLxN}
ABLATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "predicted": lambda x: x,  # unchanged
    "uniform": _uniform,  # the same weight for every basis
    "argmax": functools.partial(_strongest, 1),  # the strongest basis alone
    "strongest_2": functools.partial(_strongest, 2),  # the two strongest bases: would mixing few bases do?
    "strongest_4": functools.partial(_strongest, 4),
    "shuffle_images": lambda x: x,  # unchanged here: the caller shows the preview another image
    "shuffle_layers": _shuffle_layers,  # each layer gets another layer's coefficients
}
