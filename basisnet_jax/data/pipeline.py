"""Batches for this host: {'image': uint8[B, H, W, C], 'label': int32[B], 'mask': float32[B]}.

Position i of the endless training stream holds the same example, augmented in the same way, on any number of hosts:
its epoch is i // len(source), and each epoch has its own order. Step t takes the B positions from t * B on, and host h
of P takes the h-th of their P parts. A run is therefore resumed from its step alone.

In training, the next good index of the source replaces a bad example (not an image, or a label that is not a class),
whichever host reads it. In evaluation, a bad example ends the run, since no example may be left out silently.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np
from absl import logging

from basisnet_jax.data import preprocess
from basisnet_jax.errors import UserError
from basisnet_jax.images.crop import WHOLE_IMAGE, EvalCrop
from basisnet_jax.images.decode import BadExampleError

Batch = dict[str, np.ndarray]

PASSED_ON = ("teacher_logits",)  # arrays of an example that a training batch gets unchanged
MAX_BAD_IN_A_ROW = 100  # bad examples side by side after which the search for a good one ends


class Source(Protocol):
    """Encoded examples, {'image': bytes, 'label': int}, perhaps with 'task' and 'file_name', read many at a time."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]: ...


@dataclasses.dataclass(frozen=True)
class Reordered:
    """A source's examples in another order."""

    source: Source
    order: np.ndarray  # index here -> index in the source

    def __len__(self) -> int:
        return len(self.order)

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]:
        return self.source.__getitems__([int(self.order[index]) for index in indices])


@dataclasses.dataclass(frozen=True)
class _TrainBatches:
    """Consecutive pieces of the training stream, read by number."""

    source: Source
    order: grain.MapDataset  # position in the stream -> index in the source
    size: int
    side: int
    channels: int
    num_classes: int
    augmentation: preprocess.Augmentation
    seed: int

    def __len__(self) -> int:
        return len(self.order) // self.size

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Returns a batch with, beside its arrays, 'bad': {index of a replaced example: a sentence about it}."""
        positions = range(number * self.size, (number + 1) * self.size)
        indices = [int(self.order[position]) for position in positions]
        examples = self.source.__getitems__(indices)
        bad: dict[int, str] = {}
        triples = zip(positions, indices, examples, strict=True)
        return {**_batch((self._prepare(*triple, bad) for triple in triples), self.size), "bad": bad}

    def _prepare(self, position: int, index: int, example: dict[str, Any], bad: dict[int, str]) -> Batch:
        for _ in range(MAX_BAD_IN_A_ROW):
            rng = np.random.default_rng((self.seed, position))
            try:
                loaded = preprocess.load_train(
                    example, self.side, self.channels, self.num_classes, self.augmentation, rng
                )
                return {**loaded, **{key: example[key] for key in PASSED_ON if key in example}}
            except BadExampleError as error:
                bad[index] = f"{_name(index, example)} {error}"
            index = (index + 1) % len(self.source)
            (example,) = self.source.__getitems__([index])
        last = bad[(index - 1) % len(self.source)]
        raise UserError(f"{MAX_BAD_IN_A_ROW} training examples in a row cannot be used; the last: {last}.")


@dataclasses.dataclass(frozen=True)
class _EvalBatches:
    """Consecutive pieces of a split, read by number; past the split's end, the last example repeats with mask 0."""

    source: Source
    count: int  # pieces
    size: int
    side: int
    channels: int
    num_classes: int
    crop: EvalCrop
    blank_bad: bool

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Batch:
        last = len(self.source) - 1
        positions = range(number * self.size, (number + 1) * self.size)
        indices = [min(position, last) for position in positions]
        examples = self.source.__getitems__(indices)
        loaded = _batch((self._prepare(*pair) for pair in zip(indices, examples, strict=True)), self.size)
        return {**loaded, "mask": loaded["mask"] * np.array([position <= last for position in positions], np.float32)}

    def _prepare(self, index: int, example: dict[str, Any]) -> Batch:
        try:
            return preprocess.load_eval(example, self.side, self.channels, self.num_classes, self.crop)
        except BadExampleError as error:
            if self.blank_bad:
                black = np.zeros((self.side, self.side, self.channels), np.uint8)
                return {"image": black, "label": np.array(-1, np.int32), "mask": np.array(0.0, np.float32)}
            raise UserError(
                f"{_name(index, example)} of the evaluation split {error}, but evaluation skips no example; fix it, or "
                "remove it from the data set."
            ) from None


def _name(index: int, example: dict[str, Any]) -> str:
    """Returns 'example 7 (cat/1.jpg)', or 'example 7' if the data set does not know the file."""
    file = example.get("file_name", "")
    file = file.decode(errors="replace") if isinstance(file, bytes) else str(file)
    return f"example {index} ({file})" if file else f"example {index}"


def _batch(examples: Iterable[Batch], size: int) -> Batch:
    """Stacks `size` examples, each as soon as it is loaded: its pixels are still in the cache then."""
    batch: Batch = {}
    for number, example in enumerate(examples):
        if not batch:
            batch = {key: np.empty((size, *value.shape), value.dtype) for key, value in example.items()}
        for key, value in example.items():
            batch[key][number] = value
    return batch


def train_batches(
    source: Source,
    *,
    batch_size: int,
    side: int,
    channels: int,
    num_classes: int,
    augmentation: preprocess.Augmentation,
    max_bad_share: float,
    seed: int,
    start_step: int,
    process: int = 0,
    processes: int = 1,
    threads: int = 8,
    workers: int = 0,
) -> Iterator[Batch]:
    """Yields the endless batches of host `process` of `processes`, from step `start_step` on.

    Args:
      source: encoded examples.
      batch_size: images a step over all hosts, a multiple of `processes`.
      side: side of the images in pixels.
      channels: 1 or 3.
      num_classes: labels are 0 to num_classes - 1.
      augmentation: the random changes of the images.
      max_bad_share: share of the source's examples that may be bad, each counted once; more raise a UserError.
      seed: seed of the order and the augmentation.
      start_step: steps already done.
      process: this host's number.
      processes: number of hosts.
      threads: threads that read and decode in each process.
      workers: processes that read and decode; 0: this process reads and decodes.
    """
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    size = batch_size // processes
    pieces = _TrainBatches(source, order, size, side, channels, num_classes, augmentation, seed)
    # Pieces are numbered step * processes + process; the slice takes this host's pieces from start_step on.
    own = grain.MapDataset.source(pieces)[start_step * processes + process :: processes]
    return _count_bad(_read(own, threads, workers), len(source), max_bad_share)


def _count_bad(batches: Iterable[dict[str, Any]], examples: int, max_share: float) -> Iterator[Batch]:
    """Takes 'bad' out of the batches and logs each bad example once. Raises UserError if there are too many."""
    bad_indices: set[int] = set()
    for batch in batches:
        for index, sentence in batch.pop("bad").items():
            if index not in bad_indices:
                bad_indices.add(index)
                logging.warning("bad training example %d: %s; the next one takes its place", len(bad_indices), sentence)
            if len(bad_indices) > max_share * examples:
                raise UserError(
                    f"{len(bad_indices)} of {examples} training examples cannot be used, more than "
                    f"config.data.max_bad_share = {max_share} allows (the last: {sentence}); fix them or raise it."
                )
        yield batch


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    side: int,
    channels: int,
    num_classes: int,
    crop: EvalCrop = WHOLE_IMAGE,
    process: int = 0,
    processes: int = 1,
    threads: int = 8,
    blank_bad: bool = False,
) -> Iterator[Batch]:
    """Yields every example once, in order, over all hosts; examples with mask 0 fill up the last batch.

    Arguments are as in `train_batches`; `crop` is the part of each image that is evaluated. With `blank_bad`, an
    example that cannot be used becomes a black image with label -1 and mask 0. Every host gets the same number of
    batches.

    Raises:
      UserError: on reading, if an example cannot be used.
    """
    steps = -(-len(source) // batch_size)
    pieces = _EvalBatches(
        source, steps * processes, batch_size // processes, side, channels, num_classes, crop, blank_bad
    )
    return iter(_read(grain.MapDataset.source(pieces)[process::processes], threads, workers=0))


def _read(batches: grain.MapDataset, threads: int, workers: int) -> grain.IterDataset:
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    stream = batches.to_iter_dataset(options)
    return stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)) if workers else stream
