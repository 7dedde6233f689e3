"""Reads the HLO text of a compiled program: which operations it runs, how often, and on arrays of which size."""

import dataclasses
import math
import re
from collections.abc import Iterator

BYTES = {"pred": 1, "s8": 1, "u8": 1, "f16": 2, "bf16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
BYTES |= {"f64": 8, "s64": 8, "u64": 8}
_ARRAY = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\](?:{{([^}}]*)}})?")
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


def inside(program: Program, op: Op, computation: Computation) -> Iterator[tuple[Op, Computation]]:
    """Yields an operation with its computation, and the operations inside if it is a fusion or asynchronous."""
    yield op, computation
    if op.kind.removesuffix("-start") in ("fusion", "async"):
        for called in op.called():
            for within, where, _ in scheduled(program, called):
                yield from inside(program, within, where)


def arrays(type_text: str) -> list[str]:
    """Returns the types of the arrays in a result type, which may be a tuple."""
    return [match.group(0) for match in _ARRAY.finditer(type_text)]


def shape(type_text: str) -> list[int]:
    """Returns the shape of the first array in a result type."""
    match = _ARRAY.search(type_text)
    return [int(size) for size in match.group(2).split(",") if size] if match else []


def elements(type_text: str) -> int:
    """Returns the number of elements of all arrays in a result type."""
    return sum(math.prod(shape(array)) for array in arrays(type_text))


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
