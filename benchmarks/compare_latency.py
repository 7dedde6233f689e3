"""Measures the latency of finished runs' networks on one image, on this machine.

    python benchmarks/compare_latency.py runs/fashion_mnist_* [--json compare_latency.json]

One run of each network is timed, with the weights of its best checkpoint, jitted, in float32. The networks take turns,
so that other load on the machine affects all of them alike. A network with a preview is timed on an image that goes
through both stages, and its preview alone: the cost of an image that exits early. Wall time; quartiles over the rounds.
"""

import argparse
import functools
import pathlib
import statistics
import sys
from collections.abc import Callable

import jax
import numpy as np
import timing

from basisnet_jax import compare
from basisnet_jax.errors import UserError
from basisnet_jax.experiment.trained import load_trained
from basisnet_jax.host import compilation_cache, malloc
from basisnet_jax.models.stages import normalize


def classify(workdir: str) -> dict[str, Callable[[], object]]:
    """Calls that classify one image: {'': by the whole network, 'the preview alone': by its first stage, if any}."""
    trained = load_trained(workdir)
    shape = (1, trained.resolution, trained.resolution, trained.channels)
    image = jax.device_put(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    variables = jax.device_put(trained.variables)
    methods = {"": "__call__"} | ({"the preview alone": "first_stage"} if trained.model.preview else {})

    def logits(method: str, variables, image):
        outputs = trained.model.apply(variables, normalize(image), train=False, method=method)
        return outputs.logits_BxK if method == "__call__" else outputs[0]

    def call(method: str) -> Callable[[], object]:
        function = jax.jit(functools.partial(logits, method))
        return lambda: jax.block_until_ready(function(variables, image))

    return {part: call(method) for part, method in methods.items()}


def main() -> None:
    """Prints a table; writes all rounds as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="workdirs of finished runs")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--turn", type=float, default=0.1, help="shortest duration of a turn, in seconds")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()

    malloc.restart_with_malloc_settings()
    compilation_cache.use_compilation_cache()
    try:
        rows, left_out = compare.read(options.runs)
    except UserError as error:
        parser.error(str(error))
    for sentence in left_out:
        print(f"left out: {sentence}", file=sys.stderr)
    calls = {f"{row.workdir} {part}": call for row in rows for part, call in classify(row.workdir).items()}
    times = timing.interleaved(calls, rounds=options.rounds, turn=options.turn)

    print(f"{jax.devices()[0].device_kind}, {timing.machine()}; one image, medians of {options.rounds} rounds\n")
    print("| network | routing | multiply-adds | latency | quartiles | the preview alone |")
    print("|---|---|---|---|---|---|")
    result = {}
    for row in rows:
        whole, preview = times[f"{row.workdir} "], times.get(f"{row.workdir} the preview alone")
        low, median, high = timing.quartiles(whole)
        alone = f"{statistics.median(preview):.3f} ms" if preview else ""
        print(
            f"| {row.name} | {row.routing} | {row.madds:,} | {median:.3f} ms | {low:.3f} to {high:.3f} ms | {alone} |",
            flush=True,
        )
        result[row.workdir] = {"madds": row.madds, "ms": median, "all_ms": whole, "preview_all_ms": preview}
    timing.write_json(options.json, {"machine": timing.machine(), "networks": result})


if __name__ == "__main__":
    main()
