"""A tree of parameters whose small arrays are joined to vectors.

Most parameters are small: biases, and batch norm's scales. A program that updates them one by one has some operations
for each of them, and on a GPU a launch or more for each. Joined, they are updated together.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from basisnet_jax.host.mesh import SMALLEST_SHARDED

VECTOR = ""  # the path of the joined arrays of a group; no parameter has it


class Leaf(NamedTuple):
    """Where an array of the tree is: the path in its group, or VECTOR if it is a part of the group's vector."""

    group: str
    path: str
    shape: tuple[int, ...]
    size: int


class Layout(NamedTuple):
    """How a tree is joined: its structure, and the places of its arrays in the order of the structure."""

    structure: Any
    leaves: tuple[Leaf, ...]

    def sizes(self, group: str) -> list[int]:
        """Returns the sizes of the arrays in the group's vector, in their order."""
        return [leaf.size for leaf in self.leaves if (leaf.group, leaf.path) == (group, VECTOR)]


@struct.dataclass
class Joined:
    """A tree in groups: {group: {path: array}}, where the path VECTOR has the group's small arrays one after another."""

    groups: dict[str, dict[str, Any]]
    layout: Layout = struct.field(pytree_node=False)

    def tree(self) -> Any:
        """Returns the tree as it was; of NumPy arrays if the vectors are such."""
        small = {
            group: iter(_split(arrays[VECTOR], self.layout.sizes(group)))
            for group, arrays in self.groups.items()
            if VECTOR in arrays
        }
        leaves = [
            self.groups[leaf.group][leaf.path] if leaf.path else next(small[leaf.group]).reshape(leaf.shape)
            for leaf in self.layout.leaves
        ]
        return jax.tree.unflatten(self.layout.structure, leaves)

    def like(self, tree: Any) -> "Joined":
        """Joins another tree of the same structure in the same way."""
        groups: dict[str, dict[str, Any]] = {group: {} for group in self.groups}
        small: dict[str, list[Any]] = {}
        for leaf, array in zip(self.layout.leaves, jax.tree.leaves(tree), strict=True):
            if leaf.path:
                groups[leaf.group][leaf.path] = array
            else:
                small.setdefault(leaf.group, []).append(array.ravel())
        for group, arrays in small.items():
            concatenate = np.concatenate if isinstance(arrays[0], np.ndarray) else jnp.concatenate
            groups[group][VECTOR] = concatenate(arrays)
        return Joined(groups, self.layout)


def _split(vector: Any, sizes: list[int]) -> Any:
    if isinstance(vector, np.ndarray):
        return np.split(vector, np.cumsum(sizes)[:-1])
    return jax.lax.split(vector, sizes)  # its transpose is one concatenation; that of slices is a sum of padded ones


def join(tree: Any, group_of: Callable[[str], str] = lambda path: "all", apart: str = "") -> Joined:
    """Joins the arrays of less than SMALLEST_SHARDED elements, which are on every device.

    Args:
      tree: of arrays of one dtype.
      group_of: returns the group of a path such as 'specialist/stem/kernel'.
      apart: a group in which nothing is joined.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = []
    for keys, array in flat:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        group = group_of(path)
        is_small = array.size < SMALLEST_SHARDED and group != apart
        leaves.append(Leaf(group, VECTOR if is_small else path, array.shape, array.size))
    layout = Layout(structure, tuple(leaves))
    return Joined({leaf.group: {} for leaf in leaves}, layout).like(tree)
