"""Orbax checkpoints of the training state: written in the background, the newest and the best kept."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from basisnet_jax.errors import UserError
from basisnet_jax.state import TrainState


class Checkpoints:
    """The checkpoints of one workdir, by step; best is by the metric 'top1'. Use as a context manager.

    A checkpoint holds the state and a small dictionary of the run's own account, such as the seconds trained so far.
    A save that is killed leaves a temporary folder, which no restore takes for a checkpoint.
    """

    def __init__(self, directory: epath.Path, keep: int = 1, *, read_only: bool = False) -> None:
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(keep),
                # Not `best_fn` with `max_to_keep`: that has dropped the newest checkpoints.
                checkpoint_managers.BestN(get_metric_fn=_top1, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        # Without `best_fn` metrics are not written, and a resumed run would not know its best.
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, best_fn=_top1, read_only=read_only)
        self._manager = ocp.CheckpointManager(directory, options=options, item_names=("state", "account"))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the complete checkpoint with the best top-1, None if none of them was evaluated."""
        step = self._manager.best_step()
        return step if step is not None and self._manager.metrics(step) else None

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, account: dict[str, Any], metrics: dict[str, float] | None) -> None:
        """Writes a checkpoint in the background; the state may be changed as soon as this returns.

        Args:
          step: updates done; nothing is written if this step is saved already.
          state: what to save.
          account: JSON values that are saved beside it.
          metrics: of an evaluation at this step, by which the best is known; None if there was none.
        """
        if step == self.latest_step():
            return
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(_as_dict(state)), account=ocp.args.JsonSave(account))
        self._manager.save(step, args=items, metrics=metrics or {})  # None would be warned of

    def restore(self, step: int, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state of a step, in the shardings of `abstract_state`, and the account.

        What has no arrays in `abstract_state` is left out: an evaluation need not know the optimizer.
        """
        wanted = {name: tree for name, tree in _as_dict(abstract_state).items() if jax.tree.leaves(tree)}
        state = ocp.args.PyTreeRestore(
            wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
        )
        restored = self._manager.restore(step, args=ocp.args.Composite(state=state, account=ocp.args.JsonRestore()))
        return dataclasses.replace(abstract_state, **restored["state"]), restored["account"]

    def restore_averages(self, step: int) -> dict[str, Any]:
        """{'params', 'batch_stats'}: the moving averages of a step, as arrays of NumPy; nothing else is read."""
        directory = self._manager.directory / str(step) / "state"
        with ocp.PyTreeCheckpointer() as checkpointer:
            saved = checkpointer.metadata(directory).item_metadata.tree
            item = {name: saved[name] for name in ("ema_params", "ema_batch_stats")}
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            restored = checkpointer.restore(
                directory, args=ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
            )
        return {name.removeprefix("ema_"): tree for name, tree in restored.items()}

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()


def restore_model(folder: epath.Path, which: str, abstract_state: TrainState) -> TrainState:
    """A run's trained model, in the shardings of `abstract_state`.

    Args:
      folder: the run's workdir.
      which: 'best' by top-1, 'newest', or a step such as '1621'.
      abstract_state: with no arrays in `opt_state`.

    Raises:
      UserError: there is no such checkpoint.
    """
    if not (folder / "checkpoints").exists():
        raise UserError(f"{folder} has no checkpoints; train there first, or give another --workdir.")
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        named = {"best": checkpoints.best_step, "newest": checkpoints.latest_step}
        step = named[which]() if which in named else int(which)
        if step not in checkpoints.steps():
            there = ", ".join(map(str, checkpoints.steps())) or "none"
            raise UserError(
                f"config.eval.checkpoint = {which!r}: {folder} has no such checkpoint; it has {there}"
                f"{', of which none was evaluated; take the newest' if which == 'best' else ''}."
            )
        return checkpoints.restore(step, abstract_state)[0]


def _top1(metrics: dict[str, float]) -> float:
    return metrics.get("top1", -math.inf)


def _as_dict(state: TrainState) -> dict[str, Any]:
    """The fields by name: Orbax restores a dictionary as it was saved."""
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
