"""TensorBoard's event files of a run: written while the run trains, and read back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import jax
from etils import epath

from basisnet_jax.config import flatten
from basisnet_jax.host import files
from basisnet_jax.host.devices import hide_accelerators_from_tensorflow
from basisnet_jax.settings.declare import as_json
from basisnet_jax.settings.groups import Settings

if TYPE_CHECKING:
    from clu import metric_writers

    from basisnet_jax.host.trackers import TrackedRun


def event_writer(
    folder: epath.Path, config: Settings | None, tracked: TrackedRun
) -> metric_writers.MetricWriter | _NoWriter:
    """Returns a writer of TensorBoard's event files; in processes other than the first it writes nothing.

    Args:
      folder: of the event files.
      config: a new run's settings, written as text and as hyperparameters; None for a resumed run.
      tracked: gets the same, in a thread of its own.
    """
    if jax.process_index() > 0:
        return _NoWriter()
    from clu import metric_writers  # imported here, not at the top: it imports TensorFlow, which takes seconds

    hide_accelerators_from_tensorflow()
    writer: metric_writers.MetricWriter = metric_writers.SummaryWriter(os.fspath(folder))
    if tracked.trackers:
        writer = metric_writers.MultiWriter([writer, metric_writers.AsyncWriter(tracked)])
    if config is not None:
        fields = flatten(as_json(config))
        writer.write_texts(0, {"config": "\n".join(f"    {name} = {value!r}" for name, value in fields.items())})
        writer.write_hparams({x: y if isinstance(y, bool | int | float | str) else str(y) for x, y in fields.items()})
    return writer


class _NoWriter:
    """Writes nothing, and imports no TensorFlow: the writer of processes other than the first."""

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        """Does nothing, as the other methods."""

    def flush(self) -> None: ...

    def close(self) -> None: ...


def write_evaluation(writer: metric_writers.MetricWriter | _NoWriter, step: int, evaluation: dict[str, float]) -> None:
    """Writes an evaluation's metrics into the event files, without the count, which is always the same."""
    writer.write_scalars(step, {f"eval/{name}": value for name, value in evaluation.items() if name != "count"})


def sync(folder: epath.Path) -> None:
    """Brings what was flushed into the event files to disk, so that a power cut loses no point before a checkpoint."""
    if jax.process_index() == 0 and files.is_local(folder):
        for path in folder.glob("events.out.tfevents.*"):
            files.sync(path)


Series = dict[int, float]  # {step: value}


def read_events(event_dir: epath.Path, groups: tuple[str, ...] = ("train/", "eval/")) -> dict[str, Series]:
    """Returns {name: series}; where a step was repeated after a stop, the series has the later value."""
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    events = event_accumulator.EventAccumulator(str(event_dir), size_guidance={event_accumulator.TENSORS: 0})
    events.Reload()
    return {
        name: {event.step: float(tensor_util.make_ndarray(event.tensor_proto)) for event in events.Tensors(name)}
        for name in events.Tags()["tensors"]
        if name.startswith(groups)
    }
