"""CPU time an image of each augmentation at 224 x 224, on one thread.

    python benchmarks/augment.py [--output augment.json]

Reach: AutoAugment adds at most 1 ms on average. Each round times every augmentation on the same images, one after the
other, so that what else the machine does meets all of them alike; a figure is the median over the rounds.
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np

from basisnet_jax.data import augment

SIDE = 224
Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]

AUGMENTATIONS: dict[str, Augment] = {
    "none": lambda image, rng: image,
    "AutoAugment": augment.auto_augment,
    "RandAugment, 2 of magnitude 9": lambda image, rng: augment.rand_augment(image, 2, 9, rng),
    "random erasing, always": lambda image, rng: augment.random_erasing(image, 1.0, rng),
}


def photographs(count: int) -> list[np.ndarray]:
    """Blurred noise, uint8[224, 224, 3]: photographs' smoothness, without their files."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)
    return [cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for image in small]


def milliseconds(change: Augment, images: list[np.ndarray], seed: int) -> float:
    """CPU time an image, in ms; with the making of its generator, as in the pipeline."""
    start = time.process_time_ns()
    for position, image in enumerate(images):
        change(image, np.random.default_rng((seed, position)))
    return (time.process_time_ns() - start) / 1e6 / len(images)


def main() -> None:
    """Prints a table; writes the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=250, help="a round, each in its own way")
    parser.add_argument("--output", type=pathlib.Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()

    cv2.setNumThreads(1)
    images = photographs(arguments.images)
    rounds: dict[str, list[float]] = {name: [] for name in AUGMENTATIONS}
    for number in range(-1, arguments.rounds):  # the first warms up
        for name, change in AUGMENTATIONS.items():
            taken = milliseconds(change, images, seed=max(number, 0))
            if number >= 0:
                rounds[name].append(taken)

    figures = {name: statistics.median(times) for name, times in rounds.items()}
    print(f"{'CPU ms an image at 224 x 224':<32}{'total':>8}{'added':>8}")
    for name, median in figures.items():
        print(f"{name:<32}{median:>8.3f}{median - figures['none']:>8.3f}")
    if arguments.output:
        added = {name: median - figures["none"] for name, median in figures.items()}
        record = {"side": SIDE, "rounds": arguments.rounds, "images": arguments.images}
        arguments.output.write_text(json.dumps({**record, "cpu_ms": figures, "added_cpu_ms": added}, indent=2) + "\n")


if __name__ == "__main__":
    main()
