"""Throughput of two-stage inference against running both stages on every image, over exit rates.

    python benchmarks/two_stage.py [--config imagenet_mbv3] [--batches 64 256] [--output two_stage.json]

The ideal at exit rate r takes the preview's time for all images and the specialist's for a share of 1 - r, as measured
on the full batch; a gain is a throughput over that of both stages in one program. Reach: at least 85% of the ideal gain
at batch 64 and above, at every rate from 0 to 90%. Weights are drawn at random, which changes no time; the threshold
lies between the confidences that they give. Each round times everything once, one after the other, so that what else
the machine does meets all alike; a figure is the median over the rounds. Compiling takes minutes at first.
"""

import argparse
import dataclasses
import functools
import importlib
import json
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import optax

from basisnet_jax import allocator, state, step
from basisnet_jax.networks import make_model, model_cost
from basisnet_jax.predict import TwoStageClassifier
from basisnet_jax.termination import ExitRule, all_thresholds

RATES = tuple(percent / 100 for percent in range(0, 100, 10))


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call, its results waited for."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def main() -> None:
    """Prints a table a batch size; writes the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="imagenet_mbv3", help="a file of configs/ with a preview")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=pathlib.Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()

    allocator.keep_freed_memory()
    config = importlib.import_module(f"configs.{arguments.config}").get_config()
    model, side = make_model(config.model, arguments.classes), config.model.specialist.resolution
    shape = (side, side, arguments.channels)
    weights = jax.jit(functools.partial(state.init_state, model, optax.identity(), shape, 0))()
    first, second = map(jax.jit, step.make_stages(model, ema=False, warm_start_steps=0))
    both = jax.jit(lambda state, images: second(state, images, first(state, images)[1]))
    classifier = TwoStageClassifier(
        first_stage=functools.partial(first, weights),
        second_stage=functools.partial(second, weights),
        rule=ExitRule(),
        cost=model_cost(model, side, arguments.channels),
        classes=tuple(map(str, range(arguments.classes))),
        side=side,
        channels=arguments.channels,
    )
    report = {}
    for batch in arguments.batches:
        images = np.random.default_rng(0).integers(0, 256, (batch, *shape), np.uint8)
        logits, coefficients = first(weights, images)
        thresholds = all_thresholds(classifier.rule.confidence(np.asarray(logits)))
        contestants: dict[str, Callable[[], object]] = {
            "always both": functools.partial(both, weights, images),
            "preview": functools.partial(first, weights, images),
            "specialist": functools.partial(second, weights, images, coefficients),
        }
        for rate in RATES:
            rule = ExitRule(threshold=float(thresholds[round(rate * batch)]))
            used = dataclasses.replace(classifier, rule=rule)
            contestants[f"{rate:.0%}"] = functools.partial(used.classify, images)
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(-1, arguments.rounds):  # the first compiles
            for name, function in contestants.items():
                taken = seconds(function)
                if number >= 0:
                    times[name].append(taken)
        median = {name: statistics.median(taken) for name, taken in times.items()}
        print(f"batch {batch}: always both {batch / median['always both']:.1f} images/s")
        print(f"{'exit rate':>10}{'images/s':>10}{'gain':>8}{'ideal':>8}{'share':>8}")
        rows = []
        for rate in RATES:
            taken, exited = median[f"{rate:.0%}"], round(rate * batch) / batch
            gain = median["always both"] / taken
            ideal = median["always both"] / (median["preview"] + (1 - exited) * median["specialist"])
            rows.append({"exit_rate": exited, "images_per_second": batch / taken, "gain": gain, "ideal_gain": ideal})
            print(f"{exited:>10.1%}{batch / taken:>10.1f}{gain:>8.2f}{ideal:>8.2f}{gain / ideal:>8.1%}")
        report[batch] = {"seconds": median, "rates": rows}
    if arguments.output:
        record = {"config": arguments.config, "device": jax.devices()[0].device_kind, "rounds": arguments.rounds}
        arguments.output.write_text(json.dumps({**record, "batches": report}, indent=2) + "\n")


if __name__ == "__main__":
    main()
