"""Orbax checkpoints of the training state: written in the background with checksums, the newest and the best kept."""

import contextlib
import dataclasses
import errno
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from basisnet_jax.errors import UserError
from basisnet_jax.host import distributed, files
from basisnet_jax.host.command_line import first_line
from basisnet_jax.host.mesh import on_mesh
from basisnet_jax.models.basisnet import COLLECTIONS, Variables
from basisnet_jax.training import finite
from basisnet_jax.training.joined import joined_like, whole
from basisnet_jax.training.state import TrainState
from basisnet_jax.workdir import integrity
from basisnet_jax.workdir.tensorstore_leak import avoid_leak

_BYTES_BESIDES = 2**13  # per array, for its metadata and its writing; measured, with room to spare
_EVALUATION = "evaluation.json"  # in a checkpoint's folder: the metrics of its state, added once they are known
_FULL = ("no space left", "disk quota exceeded")  # in tensorstore's messages: its errors have no number


@dataclasses.dataclass(frozen=True)
class _NewestAndBest:
    """The policy that tells Orbax which checkpoints to keep: the newest and the best."""

    keep: int  # number of newest checkpoints to keep
    evaluations: Mapping[int, dict[str, float]]  # metrics by step

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Returns the newest `keep` of the steps, and the best evaluated one."""
        evaluated = [step for step in steps if step in self.evaluations]
        return {*sorted(steps)[-self.keep :], *_best_first(evaluated, self.evaluations)[:1]}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns, for each checkpoint, whether to keep it; called by Orbax."""
        kept = self.kept([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _best_first(steps: Sequence[int], evaluations: Mapping[int, dict[str, float]]) -> list[int]:
    """Returns steps from the highest top-1 to the lowest; at equal top-1 the later step comes first."""
    return sorted(steps, key=lambda step: (evaluations[step]["top1"], step), reverse=True)


class Checkpoints:
    """The checkpoints of one workdir, by step; the best has the highest 'top1'. Use as a context manager.

    A checkpoint holds the state and the account: a small dictionary of the run's stats, such as the seconds trained.
    Its metrics are added after its evaluation, so a failed evaluation loses no step.
    A save that is killed leaves a temporary folder, which restoring ignores and the next run removes.
    A checkpoint that a newer one replaces is removed once the newer one is whole, with its checksums.

    Attributes:
      unsaved: a sentence, why the newest save is not on disk; None if it is. Up to date after `wait`.
    """

    def __init__(self, directory: epath.Path, keep: int = 1, *, read_only: bool = False) -> None:
        self._directory, self._read_only = directory, read_only
        self._evaluations: dict[int, dict[str, float]] = {}  # metrics by step, the same on all processes
        self._policy = _NewestAndBest(keep, self._evaluations)
        self._saving: tuple[int, int] = (0, 0)  # (step, bytes) of the newest save
        self.unsaved: str | None = None
        self._manager = self._open()
        self._evaluations.update(self._read_evaluations())

    def _open(self) -> ocp.CheckpointManager:
        avoid_leak()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            read_only=self._read_only,
            cleanup_tmp_directories=not self._read_only,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._add_checksums),
        )
        return ocp.CheckpointManager(self._directory, options=options, item_names=("state", "account"))

    def _read_evaluations(self) -> dict[int, dict[str, float]]:
        """Returns the recorded metrics by step. Process 0 reads them for all, so all processes have the same."""
        texts = {step: integrity.read_added(self._directory / str(step), _EVALUATION) for step in self.steps()}
        read = [[step, metrics] for step, text in texts.items() if (metrics := _metrics(text))]
        text = distributed.from_process_0(json.dumps(read))
        return dict(json.loads(text))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if jax.process_count() > 1 and error is not None and not isinstance(error, UserError):
            return  # another process may have died: a save waits for it until its heartbeats are missed
        self.wait()
        self._manager.close()

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def is_sound(self, step: int) -> bool:
        """Returns whether a checkpoint is as it was written, the same on all processes; warns if it is not."""
        damage = integrity.damage(self._directory / str(step)) if jax.process_index() == 0 else None
        if damage:
            logging.warning("the checkpoint of step %d in %s is damaged (%s)", step, self._directory, damage)
        return not any(distributed.total(int(damage is not None)))

    def newest_sound_step(self) -> int | None:
        """Returns the step of the newest checkpoint that is as it was written; None if there is none."""
        return next((step for step in reversed(self.steps()) if self.is_sound(step)), None)

    def best_step(self) -> int | None:
        """Returns the step of the sound checkpoint with the best top-1; None if none was evaluated."""
        steps = _best_first([step for step in self.steps() if step in self._evaluations], self._evaluations)
        return next((step for step in steps if self.is_sound(step)), None)

    def evaluation(self, step: int) -> dict[str, float] | None:
        """Returns the metrics recorded for a step's checkpoint; None if there are none."""
        return self._evaluations.get(step)

    def save(self, step: int, state: TrainState, account: dict[str, Any]) -> None:
        """Writes a checkpoint in the background; the state may be changed as soon as this returns.

        Where the disk is full, a warning says how much space is missing, and the files on disk do not change.

        Args:
          step: updates done; nothing is written if this step is saved already.
          state: what to save.
          account: JSON values that are saved beside the state.

        Raises:
          UserError: the state has numbers that are not finite.
        """
        self.wait()
        if step == self.latest_step():
            return
        trees = whole(state)
        _check_finite(step, trees)
        self._saving = step, sum(leaf.nbytes + _BYTES_BESIDES for leaf in jax.tree.leaves(trees))
        self.unsaved = None
        if any(distributed.total(int(jax.process_index() == 0 and self._free_bytes() < self._saving[1]))):
            self._tell_of_a_full_disk()
            return
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(_as_dict(trees)), account=ocp.args.JsonSave(account))
        with self._surviving_a_full_disk():
            self._manager.save(step, args=items)

    def record(self, step: int, evaluation: dict[str, float]) -> None:
        """Adds metrics to a step's checkpoint, and removes the best checkpoint so far if this one is better.

        Where the checkpoint is not on disk, because the disk was full, nothing is recorded.

        Args:
          step: of the checkpoint.
          evaluation: metrics of the checkpoint's state, with 'top1'; the same on all processes.
        """
        self.wait()
        if step not in self.steps():
            return
        self._evaluations[step] = evaluation
        if jax.process_index() == 0:
            try:
                integrity.add_file(self._directory / str(step), _EVALUATION, json.dumps(evaluation))
            except OSError as error:
                if not _disk_is_full(error):
                    raise
                logging.warning("the disk of %s is full: the top-1 of step %d is not recorded", self._directory, step)
        kept = self._policy.kept(self.steps())
        for replaced in [other for other in self.steps() if other not in kept]:
            self._manager.delete(replaced)

    def wait(self) -> None:
        """Waits until everything is on disk, or `unsaved` says why it is not."""
        with self._surviving_a_full_disk():
            self._manager.wait_until_finished()

    def restore(self, step: int, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state of a step, in the shardings of `abstract_state`, and the account.

        Raises:
          UserError: the checkpoint cannot be read.
        """
        wanted = _as_dict(whole(abstract_state))
        state = ocp.args.PyTreeRestore(wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted))
        with self._reading(step):
            restored = self._manager.restore(step, args=ocp.args.Composite(state=state, account=ocp.args.JsonRestore()))
        trees = dataclasses.replace(abstract_state, **restored["state"])
        return on_mesh(joined_like(abstract_state, trees), abstract_state), restored["account"]

    def restore_variables(self, step: int, *, ema: bool, like: Variables | None = None) -> Variables:
        """Reads the model's variables of a step, and nothing else.

        Args:
          step: of the checkpoint.
          ema: read the moving averages rather than the newest variables.
          like: shapes, dtypes and shardings to read into; None reads arrays of NumPy as they were saved.

        Raises:
          UserError: the variables cannot be read.
        """
        directory, prefix = self._directory / str(step) / "state", "ema_" if ema else ""
        with self._reading(step), ocp.PyTreeCheckpointer() as checkpointer:
            if like is None:
                saved = checkpointer.metadata(directory).item_metadata.tree
                item = {prefix + name: saved[prefix + name] for name in COLLECTIONS}
                restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            else:
                item = {prefix + name: like[name] for name in COLLECTIONS}
                restore_args = ocp.checkpoint_utils.construct_restore_args(item)
            restored = checkpointer.restore(
                directory, args=ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
            )
        return {name: restored[prefix + name] for name in COLLECTIONS}

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and tensorstore raise exceptions of many types
            raise UserError(
                f"the checkpoint of step {step} in {self._directory} cannot be read ({first_line(error)}); use "
                "another one, or move this one away to resume from the previous one."
            ) from error

    def _add_checksums(self) -> None:
        """Adds checksums to the newest save; Orbax calls this in process 0, between writing its files and naming it."""
        step = self._saving[0]
        unnamed = [*self._directory.glob(f"{step}.orbax-checkpoint-tmp*"), self._directory / str(step)]
        integrity.write_checksums(unnamed[0])

    def _free_bytes(self) -> float:
        """Returns the free bytes of the disk; infinity where they are not known."""
        return shutil.disk_usage(self._directory).free if files.is_local(self._directory) else math.inf

    def _tell_of_a_full_disk(self) -> None:
        (step, needed), free = self._saving, self._free_bytes()
        self.unsaved = (
            f"the checkpoint of step {step} is not saved because the disk of {self._directory} is full: it needs about "
            f"{needed:,} bytes, and {free:,} are free ({max(0, needed - free):,} are missing)"
        )
        if jax.process_index() == 0:
            logging.warning("%s; the run continues, and the next save may have room", self.unsaved)

    @contextlib.contextmanager
    def _surviving_a_full_disk(self) -> Iterator[None]:
        """Turns a full disk into a warning, in a run of one process: several do not know of each other's disks."""
        try:
            yield
        except Exception as error:  # Orbax raises its threads' errors here
            if not _disk_is_full(error) or jax.process_count() > 1:
                raise
            with contextlib.suppress(Exception):  # the same error again
                self._manager.close()
            for half_written in self._directory.glob("*.orbax-checkpoint-tmp*"):
                half_written.rmtree(missing_ok=True)
            self._manager = self._open()  # a new manager lists the checkpoints that were to be replaced, too
            self._tell_of_a_full_disk()


def _metrics(text: str | None) -> dict[str, float] | None:
    """Parses recorded metrics; None if there are none, or they are not what `record` writes."""
    try:
        metrics = {name: float(value) for name, value in json.loads(text or "{}").items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return metrics if "top1" in metrics else None


class Restored(NamedTuple):
    """Variables of a trained model, and the step after which they were saved."""

    step: int
    variables: Variables


def restore_model(folder: epath.Path, which: str, *, ema: bool, like: Variables | None = None) -> Restored:
    """Reads a run's trained model.

    Args:
      folder: the run's workdir.
      which: 'best' by top-1, 'newest', or a step such as '1621'. The first two skip checkpoints that are damaged.
      ema: as in `Checkpoints.restore_variables`.
      like: as in `Checkpoints.restore_variables`.

    Raises:
      UserError: there is no such checkpoint.
    """
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"{folder} has no checkpoints; train there first, or give another --workdir.")
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        steps = checkpoints.steps()
        if which in ("best", "newest"):
            step = checkpoints.best_step() if which == "best" else checkpoints.newest_sound_step()
        else:
            step = int(which) if int(which) in steps and checkpoints.is_sound(int(which)) else None
        if step is None:
            raise UserError(_not_there(folder, which, steps))
        return Restored(step, checkpoints.restore_variables(step, ema=ema, like=like))


def _not_there(folder: epath.Path, which: str, steps: Sequence[int]) -> str:
    """Returns the sentence that says why a checkpoint cannot be used, and which ones there are."""
    if not steps:
        return f"{folder} has no checkpoint yet; wait until its run has saved one."
    there = ", ".join(map(str, steps))
    if which == "best":
        return (
            f"no usable checkpoint in {folder} was evaluated, so there is no best one; use the newest one with "
            f"--config.eval.checkpoint=newest, or one of the steps {there}."
        )
    if which == "newest":
        return f"all checkpoints in {folder} (steps {there}) are damaged; the log says which files; train again."
    if int(which) in steps:
        return f"config.eval.checkpoint = {which!r}: that checkpoint in {folder} is damaged; the steps are {there}."
    return f"config.eval.checkpoint = {which!r}: {folder} has no checkpoint of that step; the steps are {there}."


def _as_dict(state: TrainState) -> dict[str, Any]:
    """Returns the fields by name: Orbax restores a dictionary as it was saved."""
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _check_finite(step: int, state: TrainState) -> None:
    with distributed.raise_user_errors_on_all_processes():
        if bad := finite.first_bad_leaf({"params": state.params, "batch_stats": state.batch_stats}):
            raise UserError(
                f"{bad} is no longer finite after step {step}, so this step is not saved; lower "
                "config.optimizer.learning_rate; earlier checkpoints are kept."
            )


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        numbered = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if numbered or any(text in str(error).lower() for text in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
