"""What a compiled program costs and what it sends between devices, read from its HLO text.

XLA's TPU compiler writes into each scheduled operation the cycles that it expects. `Cost.seconds` is the sum over
operations of max(cycles / clock, bytes in HBM / bandwidth), and of what the collectives send / the network's
bandwidth, as if none of it overlapped with anything. docs/performance.md says what is known of the bias.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator

BYTES = {"pred": 1, "s8": 1, "u8": 1, "f16": 2, "bf16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
BYTES |= {"f64": 8, "s64": 8, "u64": 8}
_ARRAY = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\](?:{{([^}}]*)}})?")

# Operations that move nothing, or whose work is booked where they start.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all", "partition-id")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|branch_computations|true_computation|false_computation)={?(%[^,}\s]+(?:, %[^,}\s]+)*)"
)


@dataclasses.dataclass(frozen=True)
class Op:
    """One instruction."""

    name: str
    type: str  # of its result, 'bf16[128,24]{1,0:T(8,128)}', or a tuple of such
    kind: str  # 'fusion', 'all-reduce', ...
    operands: tuple[str, ...]  # names
    attributes: str  # all that stands behind the operands
    root: bool  # whether its value is the computation's

    @property
    def label(self) -> str:
        """The path that JAX gave it, 'jit(train_step)/jvp(BasisNet)/preview/stem/...'; '' if the compiler made it."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found.group(1).replace("\\'", "'") if found else ""

    @property
    def body(self) -> str:
        """Name of the computation that a loop repeats."""
        return re.findall(r"body=%?([\w.\-]+)", self.attributes)[0]

    def called(self) -> list[str]:
        """Names of the computations that it runs once."""
        return [name.strip().lstrip("%") for group in _CALLED.findall(self.attributes) for name in group.split(",")]


Computation = dict[str, Op]  # by name, in the order in which they run
Program = dict[str, Computation]  # by name; the program's own is 'ENTRY'
Run = tuple[Op, Computation, int]  # an operation, where it stands, and how often it runs


def parse(text: str) -> Program:
    """Reads `compiled.as_text()`."""
    program: Program = {}
    current: Computation | None = None
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line)
        if head:
            current = program.setdefault("ENTRY" if head.group(1) else head.group(2), {})
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := re.match(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$", line)):
            root, name, rest = found.groups()
            cut = _closing(rest, 1) + 1 if rest.startswith("(") else rest.index(" ")
            kind, _, inside = rest[cut:].strip().partition("(")
            end = _closing(inside, 0)
            operands = tuple(re.findall(r"%([\w.\-]+)", inside[:end]))
            # A parameter's number and a constant's value stand where operands do.
            attributes = inside[end + 1 :] if operands else inside
            current[name] = Op(name, rest[:cut], kind, operands, attributes, bool(root))
    return program


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes one opened before `start`."""
    depth = 1
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if not depth:
            return index
    return len(text)


def scheduled(program: Program, name: str = "ENTRY", times: int = 1) -> Iterator[Run]:
    """What the program runs; a fusion is one operation.

    A loop's body counts as often as its known trip count says, once if none is known; of a conditional each branch
    counts.
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
    """Bytes of a result type; if `in_hbm`, those that lie in HBM, padded to the layout's tiles."""
    total = 0
    for dtype, dims_text, layout in _ARRAY.findall(type_text):
        dims = [int(size) for size in dims_text.split(",") if size]
        if in_hbm:
            if re.search(r"S\([1-9]\)", layout):  # in a memory of its own, as VMEM is
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
    """Of some operations, on one device, in one run of the program."""

    cycles: int = 0  # the compiler's estimate; negative ones, which mean 'unknown', as 0
    hbm_bytes: int = 0  # read and written
    network_bytes: int = 0  # sent to other devices of the slice
    seconds: float = 0.0
    unestimated: int = 0  # operations without the compiler's estimate, such as Pallas kernels: their bytes count

    def add(self, other: "Cost") -> None:
        """Adds, field by field."""
        for field in dataclasses.fields(Cost):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def costs(
    program: Program, group_of: Callable[[str], str], *, clock: float, bandwidth: float, ring: float, devices: int
) -> dict[str, Cost]:
    """What the operations of each group cost.

    Args:
      program: compiled for a TPU.
      group_of: an operation's label -> its group.
      clock: in Hz.
      bandwidth: of HBM, in bytes a second.
      ring: bytes that a device can send to its neighbours in a second.
      devices: that run the program; taken where a collective does not say among how many it is.
    """
    found: dict[str, Cost] = {}
    for op, computation, times in scheduled(program):
        if op.kind in _FREE:
            continue
        operand_types = [computation[name].type for name in op.operands if name in computation]
        sent = sum(sent_bytes(inner, where, devices) for inner, where in _with_inside(program, op, computation))
        # An asynchronous operation reads where it starts and writes until it is done.
        read = 0 if op.kind.endswith("-done") else sum(array_bytes(text, in_hbm=True) for text in operand_types)
        moved = read + (0 if op.kind.endswith("-start") else array_bytes(op.type, in_hbm=True))
        estimate = re.search(r'"estimated_cycles":"(-?\d+)"', re.sub(r'"\w*data":\{[^{}]*\}', "", op.attributes))
        cycles = max(int(estimate.group(1)), 0) if estimate else 0
        network = sent or op.kind.removesuffix("-start").removesuffix("-done") in (*_COLLECTIVES, "send", "recv")
        group = "collectives" if network else group_of(op.label)
        found.setdefault(group, Cost()).add(
            Cost(
                cycles=cycles * times,
                hbm_bytes=moved * times,
                network_bytes=sent * times,
                seconds=max(cycles / clock, moved / bandwidth, sent / ring) * times,
                unestimated=0 if estimate or op.kind.endswith(("-start", "-done")) else times,
            )
        )
    return found


def _with_inside(program: Program, op: Op, computation: Computation) -> Iterator[tuple[Op, Computation]]:
    """An operation and, if it is a fusion, those in it."""
    yield op, computation
    if op.kind in ("fusion", "async-start"):
        for called in op.called():
            for inner, where, _ in scheduled(program, called):
                yield from _with_inside(program, inner, where)


def collective(op: Op) -> str | None:
    """Its kind if it is one, 'all-reduce' for an 'all-reduce-start', too."""
    kind = op.kind.removesuffix("-start")
    return kind if kind in _COLLECTIVES else None


def sent_bytes(op: Op, computation: Computation, devices: int) -> int:
    """Bytes that a device sends for a collective in a ring, the way of the fewest; 0 for any other operation."""
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
    """Devices among which a collective runs, from one of the three forms that replica groups are written in."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return listed.group(1).count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(iota.group(1))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh.group(2)))
    return devices


def between_slices_bytes(program: Program) -> int:
    """Bytes that a device sends to other slices: what its host takes and passes on."""
    return sum(
        times * sum(array_bytes(computation[name].type) for name in op.operands)
        for op, computation, times in scheduled(program)
        if op.kind == "send" and "is_host_transfer=true" in op.attributes
    )
