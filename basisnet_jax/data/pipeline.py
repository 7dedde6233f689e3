"""Batches for this host: {'image': uint8[B, H, W, C], 'label': int32[B], 'mask': float32[B]}.

Position i of the endless training stream holds the same example, augmented in the same way, on any number of hosts:
its epoch is i // len(source), and each epoch has an order of its own. Step t takes the positions t * B to t * B + B,
and host h of P the h-th of their P parts. So a run goes on from nothing but its step.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from basisnet_jax.data import preprocess

Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Encoded examples, {'image': bytes, 'label': int}, read many at a time."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]: ...


@dataclasses.dataclass(frozen=True)
class _TrainBatches:
    """Consecutive pieces of the training stream, by number."""

    source: Source
    order: grain.MapDataset  # position in the stream -> index in the source
    size: int
    side: int
    channels: int
    augmentation: preprocess.Augmentation
    seed: int

    def __len__(self) -> int:
        return len(self.order) // self.size

    def __getitem__(self, number: int) -> Batch:
        positions = range(number * self.size, (number + 1) * self.size)
        examples = self.source.__getitems__([self.order[position] for position in positions])
        return _stack([self._prepare(*pair) for pair in zip(positions, examples, strict=True)])

    def _prepare(self, position: int, example: dict[str, Any]) -> Batch:
        loaded = preprocess.load(example, self.side, self.channels)
        rng = np.random.default_rng((self.seed, position))
        return {**loaded, "image": preprocess.augment(loaded["image"], self.augmentation, rng)}


@dataclasses.dataclass(frozen=True)
class _EvalBatches:
    """Consecutive pieces of a split, by number; beyond its end the last example is repeated with mask 0."""

    source: Source
    count: int  # pieces
    size: int
    side: int
    channels: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Batch:
        last = len(self.source) - 1
        positions = range(number * self.size, (number + 1) * self.size)
        examples = self.source.__getitems__([min(position, last) for position in positions])
        loaded = _stack([preprocess.load(example, self.side, self.channels) for example in examples])
        return {**loaded, "mask": np.array([position <= last for position in positions], np.float32)}


def _stack(examples: Sequence[Batch]) -> Batch:
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def train_batches(
    source: Source,
    *,
    batch_size: int,
    side: int,
    channels: int,
    augmentation: preprocess.Augmentation,
    seed: int,
    start_step: int,
    process: int = 0,
    processes: int = 1,
    threads: int = 8,
    workers: int = 0,
) -> Iterator[Batch]:
    """The endless batches of host `process` of `processes`, from step `start_step` on.

    Args:
      source: encoded examples.
      batch_size: images a step over all hosts, a multiple of `processes`.
      side: of the images in pixels.
      channels: 1 or 3.
      augmentation: what is done to the images.
      seed: of the order and the augmentation.
      start_step: steps done before.
      process: this host's number.
      processes: number of hosts.
      threads: that read and decode in each process.
      workers: processes that read and decode; 0 is none but this one.
    """
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    pieces = _TrainBatches(source, order, batch_size // processes, side, channels, augmentation, seed)
    # Pieces are numbered step * processes + process; the slice takes this host's, from start_step on.
    own = grain.MapDataset.source(pieces)[start_step * processes + process :: processes]
    return iter(_read(own, threads, workers))


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    side: int,
    channels: int,
    process: int = 0,
    processes: int = 1,
    threads: int = 8,
) -> Iterator[Batch]:
    """Every example once, in order, over all hosts; the last batch is filled up with examples whose mask is 0.

    Arguments as in `train_batches`. Every host gets the same number of batches.
    """
    steps = -(-len(source) // batch_size)
    pieces = _EvalBatches(source, steps * processes, batch_size // processes, side, channels)
    return iter(_read(grain.MapDataset.source(pieces)[process::processes], threads, workers=0))


def _read(batches: grain.MapDataset, threads: int, workers: int) -> grain.IterDataset:
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    stream = batches.to_iter_dataset(options)
    return stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)) if workers else stream
