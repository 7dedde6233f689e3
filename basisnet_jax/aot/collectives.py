"""Counts the bytes that a program's collectives send between the devices of a host or slice, and beyond it."""

import math
import re
from collections.abc import Sequence

import numpy as np

from basisnet_jax.aot.hlo import Computation, Op, array_bytes

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")


def collective(op: Op) -> str | None:
    """Returns the kind of a collective, 'all-reduce' for an 'all-reduce-start' too; None for other operations."""
    kind = op.kind.removesuffix("-start")
    return kind if kind in _KINDS else None


def is_communication(op: Op) -> bool:
    """Returns whether an operation is a collective, or sends or receives, or waits for one of these."""
    return op.kind.removesuffix("-start").removesuffix("-done") in (*_KINDS, "send", "recv")


def sent_bytes(op: Op, computation: Computation, devices: int) -> int:
    """Returns the bytes that a device sends for a collective in a ring, which needs the fewest; 0 otherwise."""
    kind = collective(op)
    if kind is None:
        return 0
    size = _operand_bytes(op, computation)
    n = len(_group(op.attributes, devices))
    if kind == "all-gather":
        return size * (n - 1)
    if kind == "collective-permute":
        return size
    return size * (n - 1) // n * (2 if kind == "all-reduce" else 1)


def outside_bytes(op: Op, computation: Computation, places: Sequence[int]) -> int:
    """Returns the bytes that an operation sends to other places, a device: the mean of the devices of its place.

    A place is a slice of TPUs or a host with GPUs. Between slices a TPU program sends by its hosts. On GPUs one
    collective spans the hosts: each host passes on once what one device of the ring sends, by as many network cards
    as the host has devices in the group.

    Args:
      op: any operation.
      computation: the operation's computation.
      places: number of each device's slice or host, in the order of the mesh.
    """
    kind = collective(op)
    if op.kind == "send" and "is_host_transfer=true" in op.attributes:
        return _operand_bytes(op, computation)
    if kind is None:
        return 0
    if kind == "collective-permute":
        text = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", op.attributes)
        pairs = re.findall(r"\{(\d+),(\d+)\}", text.group(1)) if text else []
        crossing = sum(places[int(source)] != places[int(target)] for source, target in pairs)
        return _operand_bytes(op, computation) * crossing // max(len(pairs), 1)
    group = _group(op.attributes, len(places))
    together = len(group) // len({places[device] for device in group})  # devices of the group in one place
    if together == len(group):
        return 0
    if kind in ("all-to-all", "ragged-all-to-all"):
        return _operand_bytes(op, computation) * (len(group) - together) // len(group)
    return sent_bytes(op, computation, len(places)) // together


def _operand_bytes(op: Op, computation: Computation) -> int:
    return sum(array_bytes(computation[name].type) for name in op.operands)


def _group(attributes: str, devices: int) -> list[int]:
    """Returns the devices of a collective's first group, from any of three notations of replica groups."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return [int(device) for device in listed.group(1).split(",")]
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        sizes = [int(size) for size in iota.group(3).split(",")]
        axes = [int(axis) for axis in iota.group(4).split(",")] if iota.group(4) else None
        numbers = np.arange(math.prod(sizes)).reshape(sizes).transpose(axes)
        return numbers.reshape(int(iota.group(1)), int(iota.group(2)))[0].tolist()
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        sizes_of = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", mesh.group(1))}
        joined = re.findall(r"'([^']+)'", mesh.group(2))
        numbers = np.arange(math.prod(sizes_of.values())).reshape(list(sizes_of.values()))
        return numbers[tuple(slice(None) if axis in joined else 0 for axis in sizes_of)].flatten().tolist()
    return list(range(devices))
