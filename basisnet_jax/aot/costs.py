"""What a compiled program costs on a chip: launches, operations, bytes, and an estimate of seconds, by group of layers.

Seconds are a sum over operations, as if no two overlapped, of the slowest of arithmetic, memory and network, and of
the time to start the operation. XLA's TPU compiler writes the cycles that it expects into each operation; for GPUs,
the arithmetic is that of products and convolutions. docs/guides/compile.md says what is known of the bias.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

from basisnet_jax.aot import collectives, hlo
from basisnet_jax.aot.chips import Chip
from basisnet_jax.aot.flops import count_flops
from basisnet_jax.aot.traffic import moved_bytes

# Operations that start nothing on the device.
_FREE = (
    *("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast"),
    *("after-all", "partition-id", "replica-id"),
)


@dataclasses.dataclass
class Cost:
    """The cost of some operations, on one device, in one run of the program."""

    launches: int = 0  # operations started; on a GPU at least one kernel each
    flops: int = 0  # of products and convolutions, without custom calls that are not known
    cycles: int = 0  # the TPU compiler's estimate; a negative one means 'unknown' and counts as 0
    memory_bytes: int = 0  # read from and written to the device's memory
    network_bytes: int = 0  # sent by collectives, in rings
    outside_bytes: int = 0  # sent to other slices or hosts
    seconds: float = 0.0
    unestimated: int = 0  # custom calls of unknown arithmetic, such as Pallas kernels: their bytes count

    def add(self, other: "Cost") -> None:
        """Adds another cost, field by field."""
        for field in dataclasses.fields(Cost):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def costs(
    program: hlo.Program, group_of: Callable[[str], str], chip: Chip, places: Sequence[int] = (0,)
) -> dict[str, Cost]:
    """Returns {group: cost of its operations}.

    Args:
      program: the compiled program.
      group_of: returns the group of an operation's label.
      chip: the chip that the program is compiled for.
      places: number of each device's slice or host, in the order of the mesh.
    """
    by_group: dict[str, Cost] = {}
    for op, computation, times in hlo.scheduled(program):
        if op.kind in _FREE:
            continue
        cost = _cost(program, op, computation, chip, places)
        group = "collectives" if cost.network_bytes or collectives.is_communication(op) else group_of(op.label)
        scaled = Cost(**{name: value * times for name, value in dataclasses.asdict(cost).items()})
        by_group.setdefault(group, Cost()).add(scaled)
    return by_group


def _cost(program: hlo.Program, op: hlo.Op, computation: hlo.Computation, chip: Chip, places: Sequence[int]) -> Cost:
    """Returns the cost of one operation, run once."""
    parts = list(hlo.inside(program, op, computation))
    counted = [count_flops(part, where) for part, where in parts]
    estimate = re.search(r'"estimated_cycles":"(-?\d+)"', re.sub(r'"\w*data":\{[^{}]*\}', "", op.attributes))
    cost = Cost(
        launches=not op.kind.endswith("-done"),
        flops=sum(flops or 0 for flops in counted),
        cycles=max(int(estimate.group(1)), 0) if estimate else 0,
        memory_bytes=moved_bytes(program, op, computation),
        network_bytes=sum(collectives.sent_bytes(part, where, len(places)) for part, where in parts),
        outside_bytes=sum(collectives.outside_bytes(part, where, places) for part, where in parts),
        unestimated=None in counted and not estimate,
    )
    slowest = max(
        cost.flops / chip.per_device(chip.flops),
        cost.cycles / chip.clock if chip.clock else 0.0,
        cost.memory_bytes / chip.per_device(chip.bandwidth),
        cost.network_bytes / chip.per_device(chip.network),
        cost.outside_bytes / chip.per_device(chip.outside) if chip.outside else 0.0,
    )
    cost.seconds = slowest + cost.launches * chip.launch_seconds
    return cost
