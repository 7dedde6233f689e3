"""Throughput of two-stage inference against running both stages on every image, over exit rates.

    python benchmarks/two_stage.py [--json two_stage.json]
    python benchmarks/two_stage.py --config imagenet_mbv3 --channels 3 --classes 1000 --batches 64 --rounds 3

The ideal at exit rate r takes the preview's time for all images and the specialist's for a share of 1 - r, as measured
on the full batch; a gain is a throughput over that of both stages in one program. Reach: at least 85% of the ideal gain
at batch 64 and above, at every rate from 0 to 90%. Weights are drawn at random, which changes no time; the threshold
lies between the confidences that they give. Wall time, float32. Compiling takes minutes at first.
"""

import argparse
import dataclasses
import functools
import importlib
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import optax
import rivals
import timing

from basisnet_jax import allocator, cache, state, step
from basisnet_jax.networks import make_model, model_cost
from basisnet_jax.predict import TwoStageClassifier
from basisnet_jax.termination import ExitRule, all_thresholds

RATES = tuple(percent / 100 for percent in range(0, 100, 10))
BOTH, PREVIEW, SPECIALIST = "always both", "preview", "specialist"


def make_classifier(config: str, channels: int, classes: int) -> TwoStageClassifier:
    """A classifier with random weights, its stages as `TwoStageClassifier.from_checkpoint` makes them."""
    settings = importlib.import_module(f"configs.{config}").get_config().model
    model, side = make_model(settings, classes), settings.specialist.resolution
    shape = (side, side, channels)
    weights = rivals.run_once(functools.partial(state.init_state, model, optax.identity(), shape, 0))
    first, second = step.make_stages(model, ema=False, warm_start_steps=0)
    return TwoStageClassifier(
        first_stage=functools.partial(jax.jit(first), weights),
        second_stage=functools.partial(jax.jit(second), weights),
        rule=ExitRule(),
        cost=model_cost(model, side, channels),
        classes=tuple(map(str, range(classes))),
        side=side,
        channels=channels,
    )


def contestants(classifier: TwoStageClassifier, batch: int) -> dict[str, Callable[[], object]]:
    """Calls on one batch: both stages in one program, each stage alone, and the classifier at each exit rate."""
    shape = (batch, classifier.side, classifier.side, classifier.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    first, second = classifier.first_stage, classifier.second_stage
    assert isinstance(first, functools.partial)
    assert isinstance(second, functools.partial)
    both = jax.jit(lambda state, images: second.func(state, images, first.func(state, images)[1]))
    logits, coefficients = jax.device_get(first(images))
    calls: dict[str, Callable[[], object]] = {
        BOTH: lambda: jax.device_get(both(first.args[0], images)),
        PREVIEW: lambda: jax.device_get(first(images)),
        SPECIALIST: lambda: jax.device_get(second(images, coefficients)),
    }
    thresholds = all_thresholds(classifier.rule.confidence(logits))
    for rate in RATES:
        rule = ExitRule(threshold=float(thresholds[round(rate * batch)]))
        calls[f"{rate:.0%}"] = functools.partial(dataclasses.replace(classifier, rule=rule).classify, images)
    return calls


def main() -> None:
    """Prints a table a batch size; writes all turns as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="fashion_mnist", help="a file of configs/ with a preview")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()

    allocator.keep_freed_memory()
    cache.use_compilation_cache()
    classifier = make_classifier(options.config, options.channels, options.classes)
    print(f"{options.config} on {jax.devices()[0].device_kind}, {timing.machine()}; medians of {options.rounds} rounds")
    report = {}
    for batch in options.batches:
        times = timing.interleaved(contestants(classifier, batch), rounds=options.rounds)
        median = timing.medians(times)
        stages = ", ".join(f"{name} {median[name]:.1f} ms" for name in (BOTH, PREVIEW, SPECIALIST))
        print(f"batch {batch}: {stages}\n{'exit rate':>10}{'images/s':>10}{'gain':>8}{'ideal':>8}{'share':>8}")
        rows = []
        for rate in RATES:
            taken, exited = median[f"{rate:.0%}"], round(rate * batch) / batch
            gain = median[BOTH] / taken
            ideal = median[BOTH] / (median[PREVIEW] + (1 - exited) * median[SPECIALIST])
            rows.append({"exit_rate": exited, "images_per_second": 1e3 * batch / taken, "gain": gain, "ideal": ideal})
            print(f"{exited:10.1%}{1e3 * batch / taken:10.1f}{gain:8.2f}{ideal:8.2f}{gain / ideal:8.1%}", flush=True)
        report[batch] = {"rates": rows, "all_ms": times}
    timing.write_json(options.json, {"config": options.config, "machine": timing.machine(), "batches": report})


if __name__ == "__main__":
    main()
