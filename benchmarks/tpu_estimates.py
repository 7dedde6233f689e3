"""Prints a TPU compiler's estimates for a network's step, without a TPU: cycles, bytes, memory; static and synthesized.

    pip install -e '.[tpu]'
    python benchmarks/tpu_estimates.py [--rows=train-static,train-pallas] [--blocks=all] [--output=tpu.json]

The networks are MobileNetV3-Large at 224, N = 16, one coefficient vector per block, bfloat16, on one chip; --blocks
keeps some of its 15 blocks. A row is train or inference, then static (plain kernels), static-pallas, taps (synthesized,
by XLA alone) or pallas (synthesized, by ops/pallas_*.py). A row takes minutes to compile.

cycles   the compiler's estimates over the scheduled program, a loop's times its trips; only compare like with like.
kernels  cycles of the Pallas kernels, which have no estimate: for each the larger of its final instruction bundles
         times trips, and its bytes at the chip's bandwidth.
HBM      bytes that operations and copies move from and to HBM, padded to tiles.
ms       sum over operations of the larger of cycles at the chip's clock and bytes at its bandwidth.
temp     memory of the step's temporary arrays.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from basisnet_jax.aot import hlo
from basisnet_jax.aot.chips import Chip
from basisnet_jax.aot.costs import costs
from basisnet_jax.aot.topology import devices_of
from basisnet_jax.host import mesh as mesh_lib
from basisnet_jax.models import architectures, routing
from basisnet_jax.models.layers import Backbone

ROWS = [f"{what}-{how}" for what in ("train", "inference") for how in ("static", "static-pallas", "taps", "pallas")]


def executed_bundles(listing: str) -> int:
    """Returns instruction bundles that a kernel executes: those of loops as often as their exit tests say."""
    trips: dict[str, int] = {}
    for match in re.finditer(r"%(\w+) = scmp\.ge\.s32\.totalorder [^;]*?, (\d+) /\* loop exit test", listing):
        trips[match[1]] = int(match[2])
    counts = [0]
    for line in listing.splitlines():
        if not (head := re.match(r"\s*0(?:x[0-9a-f]+)?\s+(\w*):", line)) and not re.match(r"\s*0\s", line):
            continue
        if head and head[1] == "LB":
            counts.append(0)
        counts[-1] += 1
        back = re.search(r"sbr\.rel \(!%(\w+)\)", line)
        if back and back[1] in trips:
            body = counts.pop()
            counts[-1] += body * trips[back[1]]
    if len(counts) != 1:
        raise ValueError("a loop of the listing has no end")
    return counts[0]


def make_step(row: str, blocks: list[int], batch: int, mesh) -> tuple[Callable, tuple]:
    """Returns (jitted step, the shapes of its arguments) of a row."""
    what, how = row.split("-", 1)
    table = architectures.MOBILENET_V3_LARGE
    table = dataclasses.replace(table, blocks=tuple(table.blocks[index] for index in blocks))
    model = Backbone(table, num_classes=1000, dtype=jnp.bfloat16, pallas_kernels="pallas" in how)
    vectors = routing.coefficient_vectors(table.block_layers(), "block")

    def apply(variables, images, coefficients, **kwargs):
        route = routing.static_route if how.startswith("static") else routing.route_of(coefficients, vectors)
        return model.apply(variables, images, route, **kwargs)

    def train(variables, images, coefficients, labels):
        def loss(params, coefficients):
            everything = {**variables, "params": params}
            outputs, updated = apply(everything, images, coefficients, train=True, mutable=["batch_stats"])
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(outputs.logits_BxK), labels[:, None], 1)), updated

        gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
        (dparams, dcoefficients), updated = gradient(variables["params"], coefficients)
        params = jax.tree.map(lambda value, slope: value - 0.1 * slope, variables["params"], dparams)
        return {"params": params, **updated}, dcoefficients

    def infer(variables, images, coefficients):
        return apply(variables, images, coefficients, train=False).logits_BxK

    def shapes(batch):
        images = jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.float32)
        return images, jax.ShapeDtypeStruct((batch, routing.number_of_vectors(vectors), 16), jnp.float32)

    def init(images, coefficients):
        route = routing.static_route if how.startswith("static") else routing.route_of(coefficients, vectors)
        return model.init(jax.random.key(0), images, route, False)

    arguments = (jax.eval_shape(init, *shapes(1)), *shapes(batch))
    if what == "train":
        arguments += (jax.ShapeDtypeStruct((batch,), jnp.int32),)
    split = (mesh_lib.batch_sharding(mesh),) * (len(arguments) - 1)
    step = mesh_lib.with_mesh_in_context(mesh, train if what == "train" else infer)
    donated = (0,) if what == "train" else ()
    return jax.jit(step, in_shardings=(mesh_lib.replicated(mesh), *split), donate_argnums=donated), arguments


def estimate(step: Callable, arguments: tuple, chip: Chip, dumped: pathlib.Path) -> dict[str, float]:
    """Returns the figures of one row."""
    start = time.monotonic()
    compiled = step.lower(*arguments).compile()
    seconds = time.monotonic() - start
    bundles = {}
    for path in dumped.glob("*final_bundles.txt"):
        if match := re.match(r"\d+-((?:depthwise|pointwise)_.*?)-\d+-final_bundles", path.name):
            bundles[match[1]] = executed_bundles(path.read_text())
    for path in dumped.iterdir():
        path.unlink()

    program = hlo.parse(compiled.as_text())
    total = costs(program, lambda label: "", chip)[""]
    kernels = 0.0
    for op, computation, times in hlo.scheduled(program):
        if "tpu_custom_call" in op.attributes:
            types = [op.type, *(computation[name].type for name in op.operands)]
            moved = sum(hlo.array_bytes(text, in_hbm=True) for text in types) / chip.bandwidth * chip.clock
            kernels += times * max(bundles[op.name], moved)
            total.seconds += times * max(bundles[op.name] - moved, 0) / chip.clock  # by its bytes it is in there
    return {
        "cycles": total.cycles,
        "kernels": kernels,
        "seconds": total.seconds,
        "hbm_bytes": total.memory_bytes,
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "compile_seconds": seconds,
    }


def main() -> None:
    """Prints a table; writes the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2", help="compile for its first device")
    parser.add_argument("--blocks", default="0,1,3,6,10,12,13", help="of MobileNetV3-Large, by index; 'all' is all 15")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--output", type=pathlib.Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    rows = arguments.rows.split(",")
    if unknown := [row for row in rows if row not in ROWS]:
        parser.error(f"{unknown[0]} is not a row; the rows are {', '.join(ROWS)}")
    blocks = list(range(15)) if arguments.blocks == "all" else [int(index) for index in arguments.blocks.split(",")]

    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        os.environ["LIBTPU_INIT_ARGS"] = f"{flags} --xla_jf_dump_llo_pass_label_regex=final_bundles"
        devices, chip = devices_of(arguments.topology)
        mesh = mesh_lib.make_mesh(devices[:1])
        figures = {}
        print(f"{'':<24}{'cycles M':>9}{'kernels M':>10}{'ms':>7}{'HBM GB':>8}{'temp GB':>9}{'compiled in s':>14}")
        for row in rows:
            figures[row] = f = estimate(*make_step(row, blocks, arguments.batch, mesh), chip, pathlib.Path(folder))
            columns = f"{f['cycles'] / 1e6:>9.1f}{f['kernels'] / 1e6:>10.1f}{f['seconds'] * 1e3:>7.1f}"
            columns += f"{f['hbm_bytes'] / 1e9:>8.2f}{f['temp_bytes'] / 1e9:>9.2f}{f['compile_seconds']:>14.0f}"
            print(f"{row:<24}{columns}", flush=True)
    if arguments.output:
        record = {"topology": arguments.topology, "blocks": blocks, "batch": arguments.batch, "figures": figures}
        arguments.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
