"""Notices when a jitted function is compiled again, and says why."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from absl import logging


def count_recompilations(function: Any, name: str, compiled_again: Callable[[], None]) -> Callable[..., Any]:
    """Returns a jitted function that logs what makes it compile again, after its first call.

    Args:
      function: the jitted function.
      name: of the function, for the log.
      compiled_again: is called at each new compilation.
    """
    first: dict[str, str] = {}

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        nonlocal first
        programs = function._cache_size()
        result = function(*args)
        if not first:
            first = _described(args)
        elif function._cache_size() > programs:
            compiled_again()
            logging.warning("the %s was compiled again: %s", name, _difference(first, _described(args)))
        return result

    return call


def _described(args: Any) -> dict[str, str]:
    """Returns what a program is compiled for: {the name of an argument's array: its type and sharding}."""

    def described(leaf: Any) -> str:
        return f"{jax.typeof(leaf)} on {leaf.sharding}" if isinstance(leaf, jax.Array) else f"{jax.typeof(leaf)}"

    return {jax.tree_util.keystr(path): described(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(args)}


def _difference(before: dict[str, str], after: dict[str, str]) -> str:
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            return f"its argument{name} was {before.get(name, 'not there')} and is {after.get(name, 'not there')}"
    return "its arguments are the same, so JAX's settings have changed, or JAX's caches were cleared"
