"""Measures CPU time per image of each augmentation at 224 x 224, on one thread.

    python benchmarks/augment.py [--json augment.json]

Goal: AutoAugment adds at most 1 ms on average. All augmentations get the same images.
"""

import argparse
import pathlib
import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import timing

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
    """Returns blurred noise, uint8[224, 224, 3]: photographs' smoothness, without their files."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)
    return [cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for image in small]


def augment_all(change: Augment, images: list[np.ndarray]) -> None:
    """Augments each image in its own way, its random generator made as in the pipeline."""
    for position, image in enumerate(images):
        change(image, np.random.default_rng((0, position)))


def main() -> None:
    """Prints a table; writes the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=250, help="images per round, each augmented differently")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()

    cv2.setNumThreads(1)
    images = photographs(arguments.images)
    calls = {name: partial(augment_all, change, images) for name, change in AUGMENTATIONS.items()}
    times = timing.interleaved(calls, rounds=arguments.rounds, clock=time.process_time)
    figures = {name: median / len(images) for name, median in timing.medians(times).items()}
    print(f"{'CPU ms an image at 224 x 224':<32}{'total':>8}{'added':>8}")
    for name, median in figures.items():
        print(f"{name:<32}{median:>8.3f}{median - figures['none']:>8.3f}")
    added = {name: median - figures["none"] for name, median in figures.items()}
    record = {"side": SIDE, "rounds": arguments.rounds, "images": arguments.images}
    timing.write_json(arguments.json, {**record, "cpu_ms": figures, "added_cpu_ms": added})


if __name__ == "__main__":
    main()
