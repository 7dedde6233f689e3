"""Counts the bytes that an operation reads from and writes to a device's memory; a slice counts as the slice."""

from basisnet_jax.aot.hlo import Computation, Op, Program, array_bytes, arrays, elements

# Operations that need all of their operands for any part of their result. Others read at most as many elements of an
# operand as they are asked for.
_WHOLE = (
    *("dot", "convolution", "custom-call", "sort", "scatter", "reduce-window", "tuple"),
    *("reduce-scatter", "all-to-all", "fft", "cholesky", "triangular-solve"),
)


def moved_bytes(program: Program, op: Op, computation: Computation) -> int:
    """Returns the bytes of the device's memory that an operation reads and writes.

    An operand of a fusion counts as far as the operations inside need it, at most once: a slice of it counts as the
    slice. An update in place writes the update. An asynchronous operation reads at its start and writes at its end.
    """
    moved = 0.0
    if not op.kind.endswith("-done"):
        needed = _needed(program, op, computation, elements(op.type))
        for name, count in zip(op.operands, needed, strict=True):
            operand = computation[name].type
            moved += array_bytes(operand, in_hbm=True) * count / max(elements(operand), 1)
    if not op.kind.endswith("-start"):
        moved += _written_bytes(program, op, computation)
    return round(moved)


def _needed(program: Program, op: Op, computation: Computation, wanted: int) -> list[int]:
    """Returns how many elements of each operand an operation reads to give `wanted` elements of its result."""
    sizes = [elements(computation[name].type) for name in op.operands]
    if op.kind.removesuffix("-start") in ("fusion", "async"):
        return _parameters_needed(program, program[op.called()[0]])
    if op.kind.startswith(_WHOLE):
        return sizes
    if op.kind == "reduce":
        return [size * wanted // max(elements(op.type), 1) for size in sizes]
    if op.kind.endswith("slice-start"):  # its type has the operands, then the result
        wanted = elements(arrays(op.type)[len(op.operands)])
    return [min(wanted, size) for size in sizes]


def _parameters_needed(program: Program, body: Computation) -> list[int]:
    """Returns how many elements of each parameter the operations of a fusion read."""
    needed = dict.fromkeys(body, 0)
    parameters: dict[int, int] = {}
    in_place = _updates(body)
    for op in reversed(body.values()):
        size = elements(op.type)
        wanted = size if op.root else min(size, needed[op.name])
        if op.kind == "parameter":
            parameters[int(op.attributes.split(")")[0])] = wanted
            continue
        for position, (name, count) in enumerate(zip(op.operands, _needed(program, op, body, wanted), strict=True)):
            if op.name not in in_place or position:
                needed[name] += count
    return [parameters[number] for number in range(len(parameters))]


def _updates(body: Computation) -> dict[str, Op]:
    """Returns by name the operations that update a result of the fusion in place."""
    return {op.name: op for op in _results(body) if op.kind == "dynamic-update-slice"}


def _results(body: Computation) -> list[Op]:
    """Returns the operations that compute the results of a fusion, in order."""

    def behind(op: Op) -> Op:
        return behind(body[op.operands[0]]) if op.kind == "bitcast" else op

    root = next(op for op in body.values() if op.root)
    return [behind(body[name]) for name in root.operands] if root.kind == "tuple" else [behind(root)]


def _written_bytes(program: Program, op: Op, computation: Computation) -> float:
    """Returns the bytes of an operation's results; of an update in place, the update's."""
    written = [float(array_bytes(array, in_hbm=True)) for array in arrays(op.type)]
    body = program[op.called()[0]] if op.kind == "fusion" else {**computation, op.name: op}
    results = _results(body) if op.kind == "fusion" else [op]
    if len(results) == len(written):
        for number, result in enumerate(results):
            if result.kind == "dynamic-update-slice":
                written[number] *= elements(body[result.operands[1]].type) / max(elements(result.type), 1)
    return sum(written)
