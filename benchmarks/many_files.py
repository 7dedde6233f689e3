"""Measures how a folder of a million images is listed, and checks that 64 hosts read each example once an epoch.

    python benchmarks/many_files.py [--files 1000000] [--folder FOLDER] [--hosts 64] [--examples 100003]

The files are empty and made once, in 1,000 classes: listing reads none of them. The hosts are simulated one after the
other in this process, with the training pipeline of a run, over an epoch and a half.
"""

import argparse
import collections
import os
import pathlib
import resource
import tempfile
import time
from collections.abc import Sequence

import cv2
import numpy as np
import timing

from basisnet_jax.data import folder, pipeline, preprocess

CLASSES = 1000
PIXEL = cv2.imencode(".png", np.zeros((1, 1), np.uint8))[1].tobytes()


class Numbered:
    """A source whose example i has the label i."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict]:
        return [{"image": PIXEL, "label": index} for index in indices]


def make_files(place: pathlib.Path, count: int) -> None:
    """Makes `count` empty files in class folders."""
    for label in range(CLASSES):
        where = place / f"class{label:04}"
        where.mkdir(parents=True, exist_ok=True)
        for number in range(count // CLASSES):
            os.close(os.open(where / f"image{number:06}.jpg", os.O_CREAT | os.O_WRONLY))


def list_files(place: pathlib.Path) -> None:
    """Prints the time and memory of listing the folder with a share for evaluation, and of naming its identity."""
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    train, evaluation, _ = folder.open_splits(str(place), "train", "test", 0.1)
    after, listed = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - began
    train.identity()
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"{len(train):,} + {len(evaluation):,} files: listed in {listed:.1f} s ({own:.1f} s of CPU), identity in "
        f"{time.monotonic() - began - listed:.1f} s, {(after.ru_maxrss - before.ru_maxrss) / 1024:.0f} MB more"
    )


def check_hosts(hosts: int, examples: int, batch_size: int = 4096) -> None:
    """Checks that all hosts together read each index once an epoch, and prints how long it took."""
    steps, began = -(-3 * examples // (2 * batch_size)), time.monotonic()
    reads: list[np.ndarray] = []  # of each host: int32[steps, batch_size // hosts]
    for host in range(hosts):
        stream = pipeline.train_batches(
            Numbered(examples),
            batch_size=batch_size,
            side=1,
            channels=1,
            num_classes=examples,
            augmentation=preprocess.Augmentation(),
            max_bad_share=0.0,
            seed=0,
            start_step=0,
            process=host,
            processes=hosts,
            threads=1,
        )
        reads.append(np.stack([next(stream)["label"] for _ in range(steps)]))
    positions = np.concatenate(reads, axis=1).ravel()  # in the order of the stream
    counts = collections.Counter(positions[:examples].tolist())
    assert len(counts) == examples, f"{examples - len(counts)} examples are not read in the first epoch"
    assert max(counts.values()) == 1
    rest = positions[examples:].tolist()
    assert len(set(rest)) == len(rest), "an example is read twice in the second epoch"
    print(f"{hosts} hosts, {examples:,} examples, {steps} steps: each once an epoch ({time.monotonic() - began:.0f} s)")


def main() -> None:
    """Lists the files, then simulates the hosts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--folder", type=pathlib.Path, help="kept for the next time; default: a temporary one")
    parser.add_argument("--hosts", type=int, default=64)
    parser.add_argument("--examples", type=int, default=100_003)
    options = parser.parse_args()
    print(timing.machine())
    check_hosts(options.hosts, options.examples)
    with tempfile.TemporaryDirectory() as scratch:
        place = options.folder or pathlib.Path(scratch)
        make_files(place, options.files)
        list_files(place)


if __name__ == "__main__":
    main()
