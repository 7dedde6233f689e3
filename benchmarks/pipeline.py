"""Compares both stages at once (`TwoStagePipeline`, two threads) with one after the other, over exit rates.

    python benchmarks/pipeline.py PREVIEW.tflite SPECIALIST.tflite [--json pipeline.json]

One image a call, and one LiteRT thread a stage. Images are random, and which of them exit is drawn, since neither
changes a stage's time. The ideal gain is that of the slower thread alone. Latency is the time from `submit` to the
answer while two images are in flight.
"""

import argparse
import itertools
import pathlib
import statistics
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import timing

from basisnet_jax.runtime import TwoStageClassifier, TwoStagePipeline
from basisnet_jax.serving.tflite import LiteRTStage


def classifier_of(preview: pathlib.Path, specialist: pathlib.Path, exits: np.ndarray) -> TwoStageClassifier:
    """Makes a classifier of two files that lets the n-th image of each round exit where `exits` says so."""
    first, second = (LiteRTStage(path.read_bytes()) for path in (preview, specialist))
    _, side, _, channels = first.inputs["image"]
    drawn = itertools.cycle(exits[:, None])
    rule: Any = SimpleNamespace(exits=lambda logits_BxK: next(drawn))
    cost: Any = SimpleNamespace(preview=1, total=2)
    return TwoStageClassifier(first, second, rule, cost, (), side, channels)


def latencies(classifier: TwoStageClassifier, images: np.ndarray) -> list[float]:
    """Returns the seconds from `submit` to the answer of each image, while two images are in flight."""
    seconds: list[float] = []
    with TwoStagePipeline(classifier) as pipeline:
        futures: list[Any] = []
        for number, image in enumerate(images):
            if number > 1:
                futures[number - 2].result()
            futures.append(pipeline.submit(image))
            began = time.perf_counter()
            futures[-1].add_done_callback(lambda _, began=began: seconds.append(time.perf_counter() - began))
    return seconds


def compare(classifier: TwoStageClassifier, images: np.ndarray, exits: np.ndarray, rounds: int) -> dict[str, float]:
    """Times one exit rate."""

    def one_by_one() -> list[Any]:
        return [classifier.classify(image) for image in images]

    def at_once() -> list[Any]:
        with TwoStagePipeline(classifier) as pipeline:
            return list(pipeline.map(iter(images)))

    for one, other in zip(one_by_one(), at_once(), strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
    seen = classifier.preview_stage(images[0])._replace(exits_B=np.array([False]))
    contestants = {
        "one by one": one_by_one,
        "at once": at_once,
        "previews": lambda: [classifier.preview_stage(image) for image in images],
        "specialists": lambda: [classifier.specialist_stage(image, seen) for image in images[~exits]],
    }
    times = timing.interleaved(contestants, rounds=rounds)
    median = timing.medians(times)
    return {
        "exit_rate": float(exits.mean()),
        "one_by_one_per_second": 1e3 * len(images) / median["one by one"],
        "at_once_per_second": 1e3 * len(images) / median["at once"],
        "gain": timing.ratio(times, "one by one", "at once"),
        "ideal": median["one by one"] / max(median["previews"], median["specialists"]),
        "latency_ms": median["one by one"] / len(images),
        "latency_at_once_ms": 1e3 * statistics.mean(latencies(classifier, images)),
    }


def main() -> None:
    """Prints a row an exit rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preview", type=pathlib.Path)
    parser.add_argument("specialist", type=pathlib.Path)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rates", type=int, nargs="+", default=[0, 20, 40, 60, 80, 100], help="percent that exit")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    print(f"{timing.machine()}; medians of {options.rounds} rounds of {options.images} images")
    rows = []
    for rate in options.rates:
        exits = np.random.default_rng(0).permutation(options.images) < rate / 100 * options.images
        classifier = classifier_of(options.preview, options.specialist, exits)
        shape = (options.images, 1, classifier.side, classifier.side, classifier.channels)
        images = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
        rows.append(compare(classifier, images, exits, options.rounds))
        print(", ".join(f"{name} {value:.2f}" for name, value in rows[-1].items()), flush=True)
    timing.write_json(options.json, {"machine": timing.machine(), "rows": rows})


if __name__ == "__main__":
    main()
