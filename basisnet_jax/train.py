"""The loop: evaluate, save, next batch, step."""

import contextlib
import dataclasses
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
from absl import logging
from etils import epath

from basisnet_jax import report
from basisnet_jax.checkpoint import Checkpoints
from basisnet_jax.config import check_same_run, validate
from basisnet_jax.errors import UserError
from basisnet_jax.evaluate import evaluate
from basisnet_jax.experiment import Experiment, make_experiment
from basisnet_jax.state import TrainState


def train(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any] | None:
    """Trains, evaluates and saves in a workdir; goes on from its newest checkpoint if there is one.

    Args:
      config: see `config.py`.
      workdir: a folder that is new, or holds a run of the same config.

    Returns:
      What `results.json` holds, or None if a signal stopped the run before its end.

    Raises:
      UserError: config, data, devices or workdir do not fit.
    """
    validate(config)
    experiment = make_experiment(config)  # opens the data before anything asks for a device
    folder = _open_workdir(config, workdir)
    if jax.process_index() == 0:
        report.write_json(folder / "config.json", json.loads(config.to_json()))
        report.write_json(folder / "data.json", experiment.data.facts())
    with Checkpoints(folder / "checkpoints", config.checkpoint.keep) as checkpoints, _stop_signals() as stop:
        state, account = _start(experiment, checkpoints)
        evaluation = _loop(experiment, checkpoints, folder, state, account, stop)
        checkpoints.wait()
    if evaluation is None:
        return None
    results = _results(experiment, evaluation, account)
    if jax.process_index() == 0:
        report.write_json(folder / "results.json", results)
        report.plot_curves(folder / "events", folder / "curves.png")
    return results


def _open_workdir(config: ml_collections.ConfigDict, workdir: str) -> epath.Path:
    """Makes the folder, and refuses one that cannot be written or that belongs to another config's run."""
    folder = epath.Path(workdir).expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{jax.process_index()}"
        probe.touch()
        probe.unlink()
        saved = (folder / "config.json").read_text() if (folder / "config.json").exists() else None
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); give another place with --workdir.") from None
    if saved is not None:
        try:
            check_same_run(config, json.loads(saved), workdir)
        except json.JSONDecodeError:
            raise UserError(f"{folder}/config.json is no JSON; give another --workdir, or remove it.") from None
    elif (folder / "checkpoints").exists():
        raise UserError(f"{folder} has checkpoints but no config.json to tell whose; give another --workdir.")
    return folder


def _start(experiment: Experiment, checkpoints: Checkpoints) -> tuple[TrainState, "Account"]:
    step = checkpoints.latest_step()
    if step is None:
        return experiment.init_state(), Account()
    logging.info("going on from step %d", step)
    state, account = checkpoints.restore(step, experiment.abstract_state)
    return state, Account(**account)


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that gets the signal's number when SIGINT or SIGTERM asks to stop; a second one stops at once."""
    received: list[int] = []

    def handler(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


@dataclasses.dataclass
class Account:
    """What a run knows of itself besides its state; saved with it, so that a resumed run says what it would have."""

    train_seconds: float = 0.0  # in the loop, compilation, evaluation and saving included
    step_seconds: float = 0.0  # in training steps alone, each run's first left out
    wait_seconds: float = 0.0  # of those, waiting for a batch
    timed_steps: int = 0
    summed_steps: int = 0  # steps in `sums`, which are those since the last line of training metrics
    sums: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, metrics: dict[str, float]) -> None:
        """The metrics of one step more."""
        self.summed_steps += 1
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in metrics.items()}

    def take_means(self) -> dict[str, float]:
        """The means since the last call."""
        means = {f"train/{name}": total / self.summed_steps for name, total in self.sums.items()}
        self.summed_steps, self.sums = 0, {}
        return means


def _loop(
    experiment: Experiment,
    checkpoints: Checkpoints,
    folder: epath.Path,
    state: TrainState,
    account: Account,
    stop: list[int],
) -> dict[str, float] | None:
    """Runs to the last step and returns its evaluation, or None where a signal stopped it."""
    # CLU's writers import TensorFlow, which takes seconds: not at the top.
    from clu import metric_writers, parameter_overview, periodic_actions

    plan, config, first = experiment.plan, experiment.config, int(state.step)
    writer = metric_writers.create_default_writer(
        folder / "events", just_logging=jax.process_index() > 0, asynchronous=False
    )
    hooks: list[Callable[[int], bool]] = [
        periodic_actions.ReportProgress(num_train_steps=plan.total_steps, writer=writer)
    ]
    if config.profile_steps:
        steps = {"first_profile": first + 10, "num_profile_steps": config.profile_steps}
        hooks.append(
            periodic_actions.Profile(logdir=folder / "events", profile_duration_ms=0, every_secs=None, **steps)
        )
    bar = report.ProgressBar(total_steps=plan.total_steps, start_step=first, batch_size=plan.batch_size)
    logging.info("parameters\n%s", parameter_overview.get_parameter_overview(state.params))
    logging.info("%s on %s", plan, experiment.mesh)

    train_step, eval_step = experiment.train_step(), experiment.eval_step()
    teacher, batches = experiment.teacher_variables(), experiment.train_batches(first)
    started, seconds_before = time.monotonic(), account.train_seconds
    pending: dict[str, jax.Array] | None = None  # metrics of the newest step, fetched while the next one runs
    mark: float | None = None  # when the step before the newest was seen to end
    told = (account.wait_seconds, account.step_seconds)  # at the last line of training metrics

    def fetch(step: int) -> None:
        """Waits for `step` to end, and accounts for it."""
        nonlocal pending, mark, told
        if pending is None:
            return
        metrics = {name: float(value) for name, value in pending.items()}
        pending, now = None, time.monotonic()
        if not math.isfinite(metrics["loss"]):
            raise UserError(
                f"the loss of step {step} is {metrics['loss']} at learning rate {metrics['learning_rate']:.3g}; lower "
                "config.optimizer.learning_rate or set config.optimizer.clip_norm; checkpoints from before are kept."
            )
        if mark is not None:
            account.step_seconds += now - mark
            account.timed_steps += 1
        mark = now
        account.add(metrics)
        bar.update(loss=metrics["loss"], top1=metrics["top1"])
        if step % config.log_every_steps == 0 or step == plan.total_steps:
            waited, taken = account.wait_seconds - told[0], account.step_seconds - told[1]
            told = (account.wait_seconds, account.step_seconds)
            wait_share = {"input_wait_share": waited / taken} if taken else {}
            writer.write_scalars(step, {**account.take_means(), **wait_share})

    try:
        for step in range(first, plan.total_steps + 1):  # here `step` updates are done
            last = step == plan.total_steps
            # What was due at the first step was done before the checkpoint that this run goes on from.
            evaluating = last or (step > first and plan.due(step, config.eval_every_epochs))
            if evaluating or stop or (step > first and plan.due(step, config.checkpoint.every_epochs)):
                fetch(step)
                mark = None
                evaluation = evaluate(experiment, eval_step, state) if evaluating else None
                if evaluation:
                    writer.write_scalars(step, {f"eval/{name}": value for name, value in evaluation.items()})
                    bar.say(f"step {step}: top-1 {evaluation['top1']:.4f}, loss {evaluation['loss']:.4f}")
                account.train_seconds = seconds_before + time.monotonic() - started
                checkpoints.save(step, state, dataclasses.asdict(account), evaluation)
            if last:
                return evaluation
            if stop:
                return None
            asked = time.monotonic()
            batch = next(batches)
            if mark is not None:
                account.wait_seconds += time.monotonic() - asked
            state, newest = train_step(state, batch, teacher)
            fetch(step)
            pending = newest
            for hook in hooks:
                hook(step + 1)
        raise AssertionError("the loop ends at the last step")
    finally:
        bar.close()
        writer.close()
        if config.profile_steps:
            with contextlib.suppress(RuntimeError):  # where no trace is running: it ended, or had not begun
                jax.profiler.stop_trace()


def _results(experiment: Experiment, evaluation: dict[str, float], account: Account) -> dict[str, Any]:
    """What `results.json` holds; the README documents it."""
    cost = experiment.cost()
    timed_images = account.timed_steps * experiment.plan.batch_size
    return {
        "config": json.loads(experiment.config.to_json()),
        "step": experiment.plan.total_steps,
        "train_seconds": account.train_seconds,
        "images_per_second": timed_images / account.step_seconds if account.timed_steps else None,
        "input_wait_share": account.wait_seconds / account.step_seconds if account.timed_steps else None,
        "eval": {name: evaluation.get(name) for name in ("count", "top1", "top5", "preview_top1", "loss")},
        "madds": cost.madds(),
        "parameters": cost.parameters,
        "versions": report.versions(),
    }
