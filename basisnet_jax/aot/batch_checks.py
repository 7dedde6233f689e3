"""Checks that a step neither gathers the batch from the devices nor puts it into a convolution's groups."""

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax.extend.core

from basisnet_jax.aot import hlo
from basisnet_jax.aot.collectives import collective
from basisnet_jax.errors import UserError


def refuse_groups(jaxpr: Any, of_twice_the_batch: Any) -> None:
    """Raises UserError, naming the layers, if a convolution's number of groups grows with the batch.

    Args:
      jaxpr: the traced step.
      of_twice_the_batch: the same step traced with twice the images.
    """
    layers = [
        name
        for (name, groups), (_, more_groups) in zip(
            grouped_convolutions(jaxpr), grouped_convolutions(of_twice_the_batch), strict=True
        )
        if groups != more_groups
    ]
    if layers:
        raise UserError(
            f"{_some(layers)}: a convolution has the batch in its groups, which is many times slower than needed, and "
            "wrong where the batch is sharded; use the forms of ops/synthesis.py."
        )


def grouped_convolutions(jaxpr: Any, prefix: str = "") -> Iterator[tuple[str, tuple[int, int]]]:
    """Yields (label, (feature groups, batch groups)) of every traced convolution, in order."""
    for equation in jaxpr.eqns:
        label = "/".join(filter(None, [prefix, str(equation.source_info.name_stack)]))
        if equation.primitive.name == "conv_general_dilated":
            yield label, (equation.params["feature_group_count"], equation.params["batch_group_count"])
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from grouped_convolutions(inner, label)


def refuse_gathers(program: hlo.Program) -> None:
    """Raises UserError, naming the layers, if images or activations move between devices."""
    layers = batch_gathers(program, lambda label: label.startswith("batch["))
    if layers:
        raise UserError(
            f"{_some(layers)}: images or activations are sent from device to device, but only parameters and sums "
            "over the batch may be; check the shardings of that layer, or set config.mesh.fsdp = 1."
        )


def _some(names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    return ", ".join(unique[:3]) + (f" and {len(unique) - 3} more" if len(unique) > 3 else "")


def batch_gathers(program: hlo.Program, is_batch: Callable[[str], bool]) -> list[str]:
    """Returns labels of the collectives that carry images or activations from one device to another.

    Values computed from the batch differ between devices until they are summed over the devices; gradients and batch
    norm's statistics are such sums. A collective that gathers or exchanges such values before the sum moves the batch.

    Args:
      program: compiled for several devices.
      is_batch: returns whether a label names an argument that holds a share of the batch.
    """
    moving: dict[str, None] = {}

    def holds(value: Any) -> bool:
        """Returns whether a value, or an element of a tuple, depends on this device's images."""
        return any(map(holds, value)) if isinstance(value, tuple) else value

    def either(one: Any, other: Any) -> Any:
        if isinstance(one, tuple) and isinstance(other, tuple):
            return tuple(map(either, one, other))
        return holds(one) or holds(other)

    @functools.cache
    def run(name: str, arguments: tuple[Any, ...]) -> Any:
        """Computes the value of a computation's root."""
        values: dict[str, Any] = {}
        for op in program[name].values():
            inputs = tuple(values[operand] for operand in op.operands)
            values[op.name] = value_of(op, inputs, arguments, program[name])
        return next(values[op.name] for op in program[name].values() if op.root)

    def value_of(op: hlo.Op, inputs: tuple[Any, ...], arguments: tuple[Any, ...], computation: hlo.Computation) -> Any:
        if op.kind == "parameter":
            number = int(op.attributes.split(")")[0])
            return arguments[number] if arguments else is_batch(op.label)
        if op.kind == "tuple":
            return inputs
        if op.kind == "get-tuple-element":
            index = int(re.findall(r"index=(\d+)", op.attributes)[0])
            return inputs[0][index] if isinstance(inputs[0], tuple) else inputs[0]
        if op.kind.removesuffix("-start").removesuffix("-done") in ("all-reduce", "reduce-scatter", "recv"):
            return False
        if op.kind == "while":
            state = inputs[0]
            while (after := either(state, run(op.body, (state,)))) != state:
                state = after
            return state
        if op.kind == "conditional":
            branches = (run(called, (value,)) for called, value in zip(op.called(), inputs[1:], strict=True))
            return functools.reduce(either, branches)
        if op.kind in ("fusion", "call"):
            return run(op.called()[0], inputs)
        if op.kind == "async-start":
            return holds(run(op.called()[0], inputs))
        if collective(op) and holds(inputs):
            moving[op.label or _label_nearby(op, computation)] = None
        return holds(inputs)

    run("ENTRY", ())
    return list(moving)


def _label_nearby(op: hlo.Op, computation: hlo.Computation) -> str:
    """Returns the label of the nearest labelled operation that `op` depends on, or the name of `op`."""
    names: Iterable[str] = op.operands
    while names:
        ops = [computation[name] for name in names]
        for before in ops:
            if before.label:
                return before.label
        names = [name for before in ops for name in before.operands][:100]
    return op.name
