"""Experiment trackers, MLflow and Weights & Biases: a run's metrics, config and files in a tracked run.

A resumed run continues its tracked run: the ids are in trackers.json in the run's folder. Where the tracker is, and
who is logged in, both packages find in their own environment variables. They are imported when one is asked for.
"""

import abc
import contextlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from basisnet_jax.errors import UserError
from basisnet_jax.host import files
from basisnet_jax.host.command_line import first_line
from basisnet_jax.host.records import read_object

FILE = "trackers.json"  # {tracker: id of its run}
_AT_ONCE = 100  # parameters that MLflow takes in a call


class Tracker(abc.ABC):
    """A tracked run.

    Args:
      project: name of the tracker's project.
      folder: the run's; its name is the tracked run's.
      run_id: of the tracked run to continue; None starts one.
    """

    run_id: str

    @abc.abstractmethod
    def __init__(self, project: str, folder: epath.Path, run_id: str | None) -> None: ...

    @abc.abstractmethod
    def log_config(self, fields: Mapping[str, Any]) -> None:
        """Logs a new run's settings, {'model.num_bases': 4, ...}."""

    @abc.abstractmethod
    def log_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs the metrics of a step."""

    @abc.abstractmethod
    def log_file(self, name: str, content: bytes) -> None:
        """Logs a file; `name` may have folders in it, as in 'evaluation/results.json'."""

    @abc.abstractmethod
    def end(self, finished: bool) -> None:
        """Ends the process's part of the tracked run; `finished` is whether the run reached its last step."""


class MLflow(Tracker):
    """A run of an MLflow experiment."""

    def __init__(self, project: str, folder: epath.Path, run_id: str | None) -> None:
        import mlflow

        self._client, self._entities = mlflow.MlflowClient(), mlflow.entities
        self._continues = run_id is not None
        if run_id is None:
            experiment = self._client.get_experiment_by_name(project)
            where = experiment.experiment_id if experiment else self._client.create_experiment(project)
            run_id = self._client.create_run(where, run_name=folder.name).info.run_id
        else:
            self._client.update_run(run_id, status="RUNNING")
        self.run_id = run_id

    def log_config(self, fields: Mapping[str, Any]) -> None:
        """Logs the settings as parameters, which MLflow lets nobody change."""
        if self._continues:
            return
        parameters = [self._entities.Param(name, str(value)) for name, value in fields.items()]
        for start in range(0, len(parameters), _AT_ONCE):
            self._client.log_batch(self.run_id, params=parameters[start : start + _AT_ONCE])

    def log_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs the metrics in one call."""
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(name, float(value), now, step) for name, value in scalars.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def log_file(self, name: str, content: bytes) -> None:
        """Logs the file as an artifact."""
        where, base = os.path.split(name)
        with tempfile.TemporaryDirectory() as folder:
            path = epath.Path(folder) / base
            path.write_bytes(content)
            self._client.log_artifact(self.run_id, os.fspath(path), where or None)

    def end(self, finished: bool) -> None:
        """Sets the run's status; MLflow calls a run that was stopped 'killed'."""
        self._client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")


class WandB(Tracker):
    """A run of a Weights & Biases project; in offline mode its files are in the run's folder, in wandb/."""

    def __init__(self, project: str, folder: epath.Path, run_id: str | None) -> None:
        import wandb

        self._run = wandb.init(
            project=project,
            name=folder.name,
            id=run_id,
            resume="allow",
            dir=os.fspath(folder) if files.is_local(folder) else None,
        )
        # A resumed run repeats steps, and W&B's own count only goes up.
        self._run.define_metric("*", step_metric="step")
        self.run_id = self._run.id

    def log_config(self, fields: Mapping[str, Any]) -> None:
        """Logs the settings as the run's config."""
        self._run.config.update(dict(fields), allow_val_change=True)

    def log_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs the metrics, and the step beside them."""
        self._run.log({**scalars, "step": step})

    def log_file(self, name: str, content: bytes) -> None:
        """Logs the file as one of the run's files."""
        path = epath.Path(self._run.dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self._run.save(os.fspath(path), base_path=self._run.dir, policy="now")

    def end(self, finished: bool) -> None:
        """Ends the run, which waits until all is sent."""
        self._run.finish(exit_code=0 if finished else 1)


TRACKERS: dict[str, type[Tracker]] = {"mlflow": MLflow, "wandb": WandB}


class TrackedRun:
    """The trackers of a run, as a metric writer of CLU: it has those of its methods that a run calls.

    A tracker that fails gets no more, with a warning: the event files have all that it was sent, and training goes on.

    Attributes:
      trackers: {name: tracker}, those that have failed left out; {} where nothing is tracked.
    """

    def __init__(self, trackers: Mapping[str, Tracker], folder: epath.Path) -> None:
        self.trackers, self._folder = dict(trackers), folder

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs the metrics of a step."""
        self._call("log_scalars", step, scalars)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Logs a run's settings."""
        self._call("log_config", hparams)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Does nothing: the one text that a run writes is its settings."""

    def flush(self) -> None:
        """Does nothing: nothing is kept back here."""

    def close(self) -> None:
        """Does nothing: the run's files follow its last metrics, then `end`."""

    def log_files(self, *paths: epath.Path) -> None:
        """Logs files of the run's folder, by their names in it."""
        for path in paths if self.trackers else ():
            self._call("log_file", os.fspath(path.relative_to(self._folder)), path.read_bytes())

    def end(self, finished: bool) -> None:
        """Ends the process's part of each tracked run."""
        self._call("end", finished)

    def _call(self, method: str, *arguments: Any) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:  # of any kind: the network's, the server's, the package's own
                del self.trackers[name]
                logging.warning("%s failed (%s), and gets no more of this run", name, first_line(error))


def check_installed(names: Sequence[str]) -> None:
    """Raises UserError if a tracker's package is not installed; imports nothing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"config.log.trackers has {missing[0]!r}, which is not installed; run pip install -e '.[trackers]', or "
            f"leave {missing[0]!r} out."
        )


@contextlib.contextmanager
def opened(names: Sequence[str], project: str, folder: epath.Path) -> Iterator[TrackedRun]:
    """Opens the tracked run of each tracker, and ends it at the end; an exception ends it as not finished.

    Args:
      names: of `TRACKERS`.
      project: name of the trackers' project.
      folder: the run's. The ids of new tracked runs are written into its trackers.json.

    Raises:
      UserError: a package is not installed, or a tracker cannot be opened.
    """
    check_installed(names)
    had = _ids(folder)
    trackers = {name: _open(name, project, folder, had.get(name)) for name in names}
    ids = {**had, **{name: tracker.run_id for name, tracker in trackers.items()}}
    if ids != had:
        files.write_json(folder / FILE, ids)
    run = TrackedRun(trackers, folder)
    try:
        yield run
    except BaseException:
        run.end(finished=False)
        raise
    run.end(finished=(folder / "results.json").exists())


def _ids(folder: epath.Path) -> dict[str, str]:
    try:
        return read_object(folder / FILE)
    except (OSError, ValueError):  # missing, or not a whole dictionary
        return {}


def _open(name: str, project: str, folder: epath.Path, run_id: str | None) -> Tracker:
    try:
        return TRACKERS[name](project, folder, run_id)
    except Exception as error:  # of any kind: the network's, the server's, the package's own
        raise UserError(
            f"config.log.trackers has {name!r}, which cannot be opened ({first_line(error)}); mend that, or leave "
            f"{name!r} out."
        ) from error
