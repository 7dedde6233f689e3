"""Reads from a compiled program's HLO text what the program costs and sends between devices.

XLA's TPU compiler writes into each scheduled operation the cycles that it expects. `Cost.seconds` is the sum over
operations of max(cycles / clock, bytes in HBM / bandwidth, bytes sent by collectives / bandwidth of the network), as
if no two operations overlapped. docs/performance.md says what is known of the bias.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator

BYTES = {"pred": 1, "s8": 1, "u8": 1, "f16": 2, "bf16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
BYTES |= {"f64": 8, "s64": 8, "u64": 8}
_ARRAY = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\](?:{{([^}}]*)}})?")

# Operations that move nothing, or whose work is counted at their start.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all", "partition-id")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|branch_computations|true_computation|false_computation)={?(%[^,}\s]+(?:, %[^,}\s]+)*)"
)


@dataclasses.dataclass(frozen=True)
class Op:
    """One instruction of a program."""

    name: str
    type: str  # type of the result, 'bf16[128,24]{1,0:T(8,128)}', or a tuple of such types
    kind: str  # 'fusion', 'all-reduce', ...
    operands: tuple[str, ...]  # names of the operands
    attributes: str  # the text behind the operands
    root: bool  # whether its value is the computation's result

    @property
    def label(self) -> str:
        """JAX's path, 'jit(train_step)/jvp(BasisNet)/preview/stem/...'; '' if the compiler made the operation."""
        match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return match.group(1).replace("\\'", "'") if match else ""

    @property
    def body(self) -> str:
        """Name of the computation that a loop repeats."""
        return re.findall(r"body=%?([\w.\-]+)", self.attributes)[0]

    def called(self) -> list[str]:
        """Returns the names of the computations that the operation runs once."""
        return [name.strip().lstrip("%") for group in _CALLED.findall(self.attributes) for name in group.split(",")]


Computation = dict[str, Op]  # by name, in the order in which they run
Program = dict[str, Computation]  # by name; the main computation is 'ENTRY'
Run = tuple[Op, Computation, int]  # an operation, its computation, and how often it runs


def parse(text: str) -> Program:
    """Parses the text of `compiled.as_text()`."""
    program: Program = {}
    current: Computation | None = None
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line)
        if head:
            current = program.setdefault("ENTRY" if head.group(1) else head.group(2), {})
        elif line.startswith("}"):
            current = None
        elif current is not None and (match := re.match(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$", line)):
            root, name, rest = match.groups()
            cut = _closing(rest, 1) + 1 if rest.startswith("(") else rest.index(" ")
            kind, _, inside = rest[cut:].strip().partition("(")
            end = _closing(inside, 0)
            operands = tuple(re.findall(r"%([\w.\-]+)", inside[:end]))
            # A parameter's number and a constant's value are written in the place of operands.
            attributes = inside[end + 1 :] if operands else inside
            current[name] = Op(name, rest[:cut], kind, operands, attributes, bool(root))
    return program


def _closing(text: str, start: int) -> int:
    """Returns the index of the parenthesis that closes one opened before `start`."""
    depth = 1
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if not depth:
            return index
    return len(text)


def scheduled(program: Program, name: str = "ENTRY", times: int = 1) -> Iterator[Run]:
    """Yields the operations that the program runs; a fusion is one operation.

    A loop's body counts as often as the known trip count says, or once without one; a conditional counts every
    branch.
    """
    for op in program[name].values():
        if op.kind == "while":
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', op.attributes)
            yield from scheduled(program, op.body, times * int(trips.group(1)) if trips else times)
        elif op.kind in ("call", "conditional"):
            for called in op.called():
                yield from scheduled(program, called, times)
        else:
            yield op, program[name], times


def array_bytes(type_text: str, *, in_hbm: bool = False) -> int:
    """Returns the bytes of a result type; if `in_hbm`, only the bytes in HBM, padded to the layout's tiles."""
    total = 0
    for dtype, dims_text, layout in _ARRAY.findall(type_text):
        dims = [int(size) for size in dims_text.split(",") if size]
        if in_hbm:
            if re.search(r"S\([1-9]\)", layout):  # in another memory, such as VMEM
                continue
            minor_to_major = [int(axis) for axis in layout.split(":")[0].split(",") if axis.strip().isdigit()]
            tile = re.search(r"T\(([\d,]+)\)", layout)
            if tile and len(minor_to_major) == len(dims):
                dims = [dims[axis] for axis in minor_to_major]
                for axis, size in enumerate(reversed([int(size) for size in tile.group(1).split(",")])):
                    if axis < len(dims):
                        dims[axis] = -(-dims[axis] // size) * size
        total += math.prod(dims) * BYTES[dtype]
    return total


@dataclasses.dataclass
class Cost:
    """The cost of some operations, on one device, in one run of the program."""

    cycles: int = 0  # the compiler's estimate; a negative one means 'unknown' and counts as 0
    hbm_bytes: int = 0  # read and written
    network_bytes: int = 0  # sent to other devices of the slice
    seconds: float = 0.0
    unestimated: int = 0  # operations without the compiler's estimate, such as Pallas kernels: their bytes count

    def add(self, other: "Cost") -> None:
        """Adds another cost, field by field."""
        for field in dataclasses.fields(Cost):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def costs(
    program: Program, group_of: Callable[[str], str], *, clock: float, bandwidth: float, ring: float, devices: int
) -> dict[str, Cost]:
    """Returns {group: cost of its operations}.

    Args:
      program: a program compiled for a TPU.
      group_of: returns the group of an operation's label.
      clock: clock in Hz.
      bandwidth: bandwidth of HBM, in bytes a second.
      ring: bytes that a device can send to its neighbours in a second.
      devices: devices that run the program; used where a collective does not tell its own number.
    """
    by_group: dict[str, Cost] = {}
    for op, computation, times in scheduled(program):
        if op.kind in _FREE:
            continue
        operand_types = [computation[name].type for name in op.operands if name in computation]
        sent = sum(sent_bytes(inner, where, devices) for inner, where in _with_inside(program, op, computation))
        # An asynchronous operation reads at its start and writes until it is done.
        read = 0 if op.kind.endswith("-done") else sum(array_bytes(text, in_hbm=True) for text in operand_types)
        moved = read + (0 if op.kind.endswith("-start") else array_bytes(op.type, in_hbm=True))
        estimate = re.search(r'"estimated_cycles":"(-?\d+)"', re.sub(r'"\w*data":\{[^{}]*\}', "", op.attributes))
        cycles = max(int(estimate.group(1)), 0) if estimate else 0
        network = sent or op.kind.removesuffix("-start").removesuffix("-done") in (*_COLLECTIVES, "send", "recv")
        group = "collectives" if network else group_of(op.label)
        by_group.setdefault(group, Cost()).add(
            Cost(
                cycles=cycles * times,
                hbm_bytes=moved * times,
                network_bytes=sent * times,
                seconds=max(cycles / clock, moved / bandwidth, sent / ring) * times,
                unestimated=0 if estimate or op.kind.endswith(("-start", "-done")) else times,
            )
        )
    return by_group


def _with_inside(program: Program, op: Op, computation: Computation) -> Iterator[tuple[Op, Computation]]:
    """Yields an operation and, if it is a fusion, the operations inside."""
    yield op, computation
    if op.kind in ("fusion", "async-start"):
        for called in op.called():
            for inner, where, _ in scheduled(program, called):
                yield from _with_inside(program, inner, where)


def collective(op: Op) -> str | None:
    """Returns the kind of a collective, 'all-reduce' for an 'all-reduce-start' too; None for other operations."""
    kind = op.kind.removesuffix("-start")
    return kind if kind in _COLLECTIVES else None


def sent_bytes(op: Op, computation: Computation, devices: int) -> int:
    """Returns the bytes that a device sends for a collective in a ring, which needs the fewest; 0 otherwise."""
    kind = collective(op)
    if kind is None:
        return 0
    size = sum(array_bytes(computation[name].type) for name in op.operands)
    n = _group_size(op.attributes, devices)
    if kind == "all-gather":
        return size * (n - 1)
    if kind == "collective-permute":
        return size
    return size * (n - 1) // n * (2 if kind == "all-reduce" else 1)


def _group_size(attributes: str, devices: int) -> int:
    """Returns the number of devices in a collective's group, from any of three notations of replica groups."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return listed.group(1).count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(iota.group(1))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh.group(2)))
    return devices


def between_slices_bytes(program: Program) -> int:
    """Returns the bytes that a device sends to other slices: its host receives them and passes them on."""
    return sum(
        times * sum(array_bytes(computation[name].type) for name in op.operands)
        for op, computation, times in scheduled(program)
        if op.kind == "send" and "is_host_transfer=true" in op.attributes
    )
