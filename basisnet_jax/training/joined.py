"""A tree of parameters whose small arrays are joined to vectors, or all of them.

Most parameters are small: biases, batch norm's scales. A program that updates each of them by itself has some
operations for each, and a GPU a launch or more for each. Joined, they are updated together.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import struct

from basisnet_jax.host import mesh
from basisnet_jax.ops import vectors

VECTOR = ""  # the path of a group's joined arrays; no array of its own has this path


class Leaf(NamedTuple):
    """The place of an array of the tree."""

    group: str
    path: str  # VECTOR: the array is a part of its group's vector
    shape: tuple[int, ...]
    room: int  # the numbers that it takes in a vector


class Layout(NamedTuple):
    """How a tree is joined: its structure, and the places of its arrays in the structure's order."""

    structure: Any
    leaves: tuple[Leaf, ...]

    def parts(self, group: str) -> tuple[vectors.Part, ...]:
        """Returns the parts of a group's vector, in order."""
        return tuple((leaf.shape, leaf.room) for leaf in self.leaves if (leaf.group, leaf.path) == (group, VECTOR))


@struct.dataclass
class Joined:
    """A tree of arrays, in groups: {group: {path: array}}; at the path VECTOR are a group's joined arrays, raveled."""

    groups: dict[str, dict[str, Any]]
    layout: Layout = struct.field(pytree_node=False)

    def tree(self, pallas_kernels: bool = False) -> Any:
        """Returns the tree. Its joined arrays are NumPy's, except in a traced function and of abstract vectors.

        `pallas_kernels` goes to `vectors.cut`.
        """
        cut = {
            group: iter(_cut(arrays[VECTOR], self.layout.parts(group), pallas_kernels))
            for group, arrays in self.groups.items()
            if VECTOR in arrays
        }
        leaves = [
            next(cut[leaf.group]) if leaf.path == VECTOR else self.groups[leaf.group][leaf.path]
            for leaf in self.layout.leaves
        ]
        return jax.tree.unflatten(self.layout.structure, leaves)

    def like_this(self, tree: Any) -> "Joined":
        """Joins another tree of this structure alike. The vectors are NumPy's, except in a traced function."""
        groups: dict[str, dict[str, Any]] = {group: {} for group in self.groups}
        together: dict[str, list[Any]] = {}
        for leaf, array in zip(self.layout.leaves, self.layout.structure.flatten_up_to(tree), strict=True):
            if leaf.path == VECTOR:
                together.setdefault(leaf.group, []).append(array)
            else:
                groups[leaf.group][leaf.path] = array
        for group, arrays in together.items():
            groups[group][VECTOR] = _join(arrays, self.layout.parts(group))
        return Joined(groups, self.layout)


def _cut(vector: Any, parts: tuple[vectors.Part, ...], pallas_kernels: bool) -> Sequence[Any]:
    if isinstance(vector, jax.core.Tracer):
        return vectors.cut(vector, parts, pallas_kernels)
    if isinstance(vector, jax.ShapeDtypeStruct):
        return [jax.ShapeDtypeStruct(shape, vector.dtype, sharding=vector.sharding) for shape, _ in parts]
    # A copy: a checkpoint is written while the next step reuses the vector's memory, which a CPU's array would share.
    rooms = np.split(np.array(vector), list(itertools.accumulate(room for _, room in parts))[:-1])
    return [numbers[: math.prod(shape)].reshape(shape) for numbers, (shape, _) in zip(rooms, parts, strict=True)]


def _join(arrays: Sequence[Any], parts: tuple[vectors.Part, ...]) -> Any:
    if isinstance(arrays[0], jax.core.Tracer):
        return vectors.joined(arrays, parts)
    pairs = zip(jax.device_get(arrays), parts, strict=True)
    return np.concatenate([np.pad(np.ravel(array), (0, room - array.size)) for array, (_, room) in pairs])


def join(
    tree: Any,
    group_of: Callable[[str], str] = lambda path: "all",
    *,
    apart: Sequence[str] = (),
    in_rows: Sequence[str] = (),
    largest: int = mesh.SMALLEST_SHARDED - 1,
) -> Joined:
    """Joins arrays, the small ones unless `largest` says otherwise.

    Args:
      tree: of arrays of one dtype.
      group_of: returns the group of a path such as 'specialist/stem/kernel'.
      apart: groups whose arrays stay apart.
      in_rows: groups in whose vector each array has rows of its own, for `vectors.norms`.
      largest: numbers of an array that joins, at most. Larger ones may be sharded.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = []
    for keys, array in flat:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        group = group_of(path)
        joins = array.size <= largest and group not in apart
        room = -(-array.size // vectors.ROW) * vectors.ROW if group in in_rows else array.size
        leaves.append(Leaf(group, VECTOR if joins else path, array.shape, room))
    layout = Layout(structure, tuple(leaves))
    return Joined({leaf.group: {} for leaf in leaves}, layout).like_this(tree)


def is_joined(node: Any) -> bool:
    """Returns whether a node of a tree is a `Joined`; for `is_leaf`."""
    return isinstance(node, Joined)


def whole(tree: Any) -> Any:
    """Returns a tree with each `Joined` in it replaced by its tree."""
    return jax.tree.map(lambda node: node.tree() if is_joined(node) else node, tree, is_leaf=is_joined)


def joined_like(joined: Any, tree: Any) -> Any:
    """Returns `tree`, which is like `whole(joined)`, with its parts joined as in `joined`."""
    return jax.tree.map(
        lambda node, part: node.like_this(part) if is_joined(node) else part, joined, tree, is_leaf=is_joined
    )
