"""Compares the throughput of two-stage inference with running both stages on every image, over exit rates.

    python benchmarks/two_stage.py [--turn 0.05] [--json two_stage.json]
    python benchmarks/two_stage.py --config imagenet_mbv3 --channels 3 --classes 1000 --batches 64 --rounds 3

The gain is the throughput relative to both stages in one program, on every image. The ideal gain at exit rate r follows
from the time of the preview plus 1 - r of the time of the specialist, each measured alone on the full batch, from NumPy
arrays to NumPy arrays; so an ideal specialist takes the same time per image at any batch size. By default a turn is one
call, and the contestants take turns, so each finds caches that another one filled, like the stages of a classifier.
With --turn each contestant repeats its call for that time, and a stage alone finds warm caches, which the stages of a
classifier never do; the ideal gain is then even harder to reach.

Goal: at least 85% of the ideal gain at batch 64 and above, at every rate from 0 to 90%. The weights are random, which
does not change the time; the threshold lies between the confidences that they give. Wall time, float32. Compiling takes
minutes at first.
"""

import argparse
import dataclasses
import functools
import importlib
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import rivals
import timing

from basisnet_jax.experiment.model import make_model, model_cost
from basisnet_jax.host import compilation_cache, malloc
from basisnet_jax.inference.jax_classifier import TwoStageClassifier, jit_stages
from basisnet_jax.serving.exit_curve import all_thresholds
from basisnet_jax.serving.exit_rule import ExitRule

BOTH, PREVIEW, SPECIALIST = "always both", "preview", "specialist"


def make_classifier(settings: ml_collections.ConfigDict, channels: int, classes: int) -> TwoStageClassifier:
    """Returns a classifier with random weights, its stages as `TwoStageClassifier.from_checkpoint` makes them.

    Args:
      settings: `config.model` of a config with a preview.
      channels: channels of the images.
      classes: number of classes.
    """
    model, side = make_model(settings, classes), settings.specialist.resolution
    images_1xHxWxC = jnp.zeros((1, side, side, channels))
    variables = rivals.run_once(lambda: model.init(jax.random.key(0), images_1xHxWxC, train=False))
    first, second = jit_stages(model, variables, 0.0)
    return TwoStageClassifier(
        first_stage=first,
        second_stage=second,
        rule=ExitRule(),
        cost=model_cost(model, side, channels),
        classes=tuple(map(str, range(classes))),
        side=side,
        channels=channels,
    )


def contestants(classifier: TwoStageClassifier, batch: int, rates: Sequence[int]) -> dict[str, Callable[[], object]]:
    """Calls on one batch: both stages in one program, each stage alone, and the classifier at each exit rate."""
    shape = (batch, classifier.side, classifier.side, classifier.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    first, second = classifier.first_stage, classifier.second_stage
    assert isinstance(first, functools.partial)
    assert isinstance(second, functools.partial)
    both = jax.jit(lambda halves, images: second.func(halves[1], images, first.func(halves[0], images)[1]))
    logits, coefficients = jax.device_get(first(images))
    calls: dict[str, Callable[[], object]] = {
        BOTH: lambda: jax.device_get(both((first.args[0], second.args[0]), images)),
        PREVIEW: lambda: jax.device_get(first(images)),
        SPECIALIST: lambda: jax.device_get(second(images, coefficients)),
    }
    thresholds = all_thresholds(classifier.rule.confidence(logits))
    for rate in rates:
        rule = ExitRule(threshold=float(thresholds[round(rate / 100 * batch)]))
        calls[f"{rate}%"] = functools.partial(dataclasses.replace(classifier, rule=rule).classify, images)
    return calls


def main() -> None:
    """Prints a table a batch size; writes all turns as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="fashion_mnist", help="a file of configs/ with a preview")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rates", type=int, nargs="+", default=range(0, 100, 10), help="percent that exit")
    parser.add_argument("--turn", type=float, default=0.0, help="seconds that a call is repeated for; 0 is one call")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()

    malloc.restart_with_malloc_settings()
    compilation_cache.use_compilation_cache()
    settings = importlib.import_module(f"configs.{options.config}").get_config().model
    settings.dtype = "float32"
    classifier = make_classifier(settings, options.channels, options.classes)
    print(f"{options.config} on {jax.devices()[0].device_kind}, {timing.machine()}; medians of {options.rounds} rounds")
    report = {}
    for batch in options.batches:
        times = timing.interleaved(
            contestants(classifier, batch, options.rates), rounds=options.rounds, turn=options.turn
        )
        median = timing.medians(times)
        stages = ", ".join(f"{name} {median[name]:.1f} ms" for name in (BOTH, PREVIEW, SPECIALIST))
        print(f"batch {batch}: {stages}\n{'exit rate':>10}{'images/s':>10}{'gain':>8}{'ideal':>8}{'share':>8}")
        rows = []
        for rate in options.rates:
            taken, exited = median[f"{rate}%"], round(rate / 100 * batch) / batch
            gain = median[BOTH] / taken
            ideal = median[BOTH] / (median[PREVIEW] + (1 - exited) * median[SPECIALIST])
            rows.append({"exit_rate": exited, "images_per_second": 1e3 * batch / taken, "gain": gain, "ideal": ideal})
            print(f"{exited:10.1%}{1e3 * batch / taken:10.1f}{gain:8.2f}{ideal:8.2f}{gain / ideal:8.1%}", flush=True)
        report[batch] = {"rates": rows, "all_ms": times}
    timing.write_json(options.json, {"config": options.config, "machine": timing.machine(), "batches": report})


if __name__ == "__main__":
    main()
