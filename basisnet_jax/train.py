"""The loop: save, evaluate, next batch, step."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
from absl import logging
from etils import epath

from basisnet_jax import (
    cache,
    curves,
    distributed,
    divergence,
    files,
    finite,
    integrity,
    opening,
    recompilation,
    report,
    terminal,
)
from basisnet_jax import mesh as mesh_lib
from basisnet_jax import workdir as workdir_lib
from basisnet_jax.account import Account
from basisnet_jax.checkpoint import Checkpoints
from basisnet_jax.config import validate
from basisnet_jax.errors import UserError
from basisnet_jax.evaluate import evaluate
from basisnet_jax.experiment import Experiment, make_experiment
from basisnet_jax.state import TrainState


def train(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any] | None:
    """Trains, evaluates and saves in a workdir; resumes from its newest checkpoint if there is one.

    Args:
      config: see `config.py`.
      workdir: a folder that is new, or holds a run of the same config.

    Returns:
      What `results.json` holds, or None if a signal stopped the run before its end.

    Raises:
      UserError: config, data, devices or workdir do not fit, or the numbers of the run are no longer finite.
    """
    validate(config)
    folder = files.absolute(workdir)
    with contextlib.ExitStack() as held:
        stop = held.enter_context(distributed.stop_signals())
        begin: Callable[[], None] = lambda: None  # noqa: E731
        with distributed.together():
            results = workdir_lib.finished(config, folder)
            if results:
                distributed.say(
                    f"{workdir}: this run was finished already, at step {results['step']}; to train longer, start "
                    f"another one with --config.model.specialist.start_from={workdir} (and preview.start_from)."
                )
                return results
            experiment = make_experiment(config)  # opens the data before anything asks for a device
            if jax.process_index() == 0:
                begin = held.enter_context(workdir_lib.opened(config, folder))
                integrity.set_damaged_aside(folder / "checkpoints")
                _write_start(experiment, folder)
            else:
                logging.set_verbosity(logging.WARNING)  # process 0 tells for all
            progress = held.enter_context(terminal.Progress(silent=not distributed.is_first()))
        with distributed.together():
            if not (folder / "config.json").exists():
                raise UserError(
                    f"{folder} is not the same folder on all hosts; give one that they share with --workdir."
                )
        with Checkpoints(folder / "checkpoints", config.checkpoint.keep) as checkpoints:
            for line in opening.first_lines(experiment, workdir, checkpoints.latest_step()):
                progress.say(line)
            state, account = _start(experiment, checkpoints, progress)
            evaluation = _loop(experiment, checkpoints, folder, state, account, stop, begin, progress)
            checkpoints.wait()
            if checkpoints.unsaved:
                newest = checkpoints.latest_step()
                raise UserError(
                    f"{checkpoints.unsaved}; make room, and the same command resumes from "
                    f"{'the start' if newest is None else f'step {newest}'}."
                )
        if evaluation is None:
            return None
        results = _results(experiment, evaluation, account)
        if jax.process_index() == 0:
            with _writing(folder):
                report.write_json(folder / "results.json", results)
                curves.plot_curves(folder / "events", folder / "curves.png")
        return results


def _write_start(experiment: Experiment, folder: epath.Path) -> None:
    """Writes `config.json` and `data.json`. Raises UserError if the teacher is not the one that the run began with."""
    config, source = experiment.config, experiment.config.distill.teacher
    path, facts = folder / "data.json", {**experiment.data.facts(), "teacher": experiment.teacher_fingerprint}
    try:
        before = json.loads(path.read_text()).get("teacher")
    except (OSError, ValueError, AttributeError):  # not there, or not whole: an older version's
        before = None
    if before and before != facts["teacher"]:
        raise UserError(
            f"config.distill.teacher = {source!r} has other weights than when the run in {folder} was started; give "
            "the same teacher, or another --workdir."
        )
    with _writing(folder):
        report.write_json(folder / "config.json", json.loads(config.to_json()))
        report.write_json(path, facts)


@contextlib.contextmanager
def _writing(folder: epath.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); fix this and run again.") from None


def _start(experiment: Experiment, checkpoints: Checkpoints, progress: terminal.Progress) -> tuple[TrainState, Account]:
    step = checkpoints.latest_step()
    if step is None:
        progress.stage("making the network")
        with distributed.together():
            return experiment.init_state(), Account()
    progress.stage(f"restoring step {step}")
    state, account = checkpoints.restore(step, experiment.abstract_state)
    return state, Account.from_saved(account)


def _loop(
    experiment: Experiment,
    checkpoints: Checkpoints,
    folder: epath.Path,
    state: TrainState,
    account: Account,
    stop: Callable[[int], bool],
    begin: Callable[[], None],
    progress: terminal.Progress,
) -> dict[str, float] | None:
    """Runs to the last step and returns its evaluation, or None where a signal stopped it; a step calls `begin`."""
    plan, config, first = experiment.plan, experiment.config, int(state.step)
    progress.stage("opening the event files")
    writer = report.event_writer(folder / "events", config if first == 0 else None)
    profile = _profile(folder / "events", first, config.profile_steps)

    def compiled_again() -> None:
        account.recompilations += 1

    train_step = recompilation.watched(experiment.train_step(debug=config.debug), "training step", compiled_again)
    eval_step = recompilation.watched(experiment.eval_step(), "evaluation step", compiled_again)
    teacher, batches = experiment.teacher_variables(), experiment.train_batches(first)
    schedule = jax.device_put(experiment.schedule, mesh_lib.replicated(experiment.mesh))
    started, seconds_before = time.monotonic(), account.train_seconds
    pending: dict[str, Any] | None = None  # metrics of the newest step, fetched while the next one runs
    mark: float | None = None  # when the step before the newest was seen to end
    told = dataclasses.replace(account)  # at the last line of training metrics
    newest_evaluation: dict[str, str] = {}  # shown beside the bar
    opening.show_training(experiment, first, progress)

    def fetch(step: int) -> None:
        """Waits for `step` to end, and accounts for it."""
        nonlocal pending, mark, told
        if pending is None:
            return
        culprit = finite.first_failed(pending.pop("finite", {}))
        metrics = {name: float(value) for name, value in pending.items()}
        pending, now = None, time.monotonic()
        if mark is not None:
            account.step_seconds += now - mark
            account.timed_steps += 1
        mark = now
        account.add(metrics)
        if metrics["skipped"]:
            progress.say(f"step {step} is skipped: {divergence.numbers(metrics)}")
        if culprit or account.skipped_in_a_row > config.max_skipped_steps:
            culprit = culprit or divergence.find_culprit(experiment, state, step, teacher)
            raise UserError(divergence.sentence(step, metrics, account.skipped_in_a_row, culprit))
        figures = {"loss": f"{metrics['loss']:.3f}", "top-1": terminal.share(metrics["top1"])}
        progress.advance(1, opening.epoch_of(experiment, step), figures | newest_evaluation)
        if step % config.log_every_steps == 0 or step == plan.total_steps:
            speed = account.speed_since(told, plan.batch_size)
            told = dataclasses.replace(account)
            writer.write_scalars(step, {**account.take_means(), **speed})

    def seconds() -> float:
        return seconds_before + time.monotonic() - started

    try:
        for step in range(first, plan.total_steps + 1):  # here `step` updates are done
            last, stopping = step == plan.total_steps, stop(step)
            evaluating = last or plan.due(step, config.eval_every_epochs)
            if evaluating or stopping or plan.due(step, config.checkpoint.every_epochs):
                fetch(step)
                mark = None
                account.train_seconds = seconds()
                writer.flush()  # a run that is killed from here on is resumed behind these lines
                with progress.aside("saving"):
                    checkpoints.save(step, state, dataclasses.asdict(account))
            if stopping:
                return None  # what is due is evaluated when the run is resumed
            # At the first step of a resumed run it may be recorded already, or a kill came before it was.
            evaluation = checkpoints.evaluation(step)
            if evaluating and evaluation is None:
                waiting = "" if newest_evaluation else cache.compiling()
                with progress.aside("evaluating", plan.eval_examples, waiting=waiting):
                    evaluation = evaluate(experiment, eval_step, state, progress)
                newest_evaluation["eval"] = terminal.share(evaluation["top1"])
                report.write_evaluation(writer, step, evaluation)
                writer.flush()
                progress.say(report.evaluation_line(step, plan.epoch(step), evaluation))
                checkpoints.record(step, evaluation)
            if last:
                account.train_seconds = seconds()
                return evaluation
            asked = time.monotonic()
            batch = next(batches)
            if mark is not None:
                account.wait_seconds += time.monotonic() - asked
            state, newest = train_step(state, batch, schedule, teacher)
            begin()
            fetch(step)
            pending = newest
            if account.skipped_in_a_row >= config.max_skipped_steps:
                # This step may be the one too many. The search for the first bad layer wants the state before it.
                fetch(step + 1)
            if profile:
                profile(step + 1)
        raise AssertionError("the loop ends at the last step")
    finally:
        writer.close()
        if config.profile_steps:
            with contextlib.suppress(RuntimeError):  # where no trace is running: it ended, or had not begun
                jax.profiler.stop_trace()


def _profile(folder: epath.Path, first: int, steps: int) -> Callable[[int], bool] | None:
    """Returns what writes a profiler's trace of so many steps once it is called at each step; None for none."""
    if not steps:
        return None
    from clu import periodic_actions

    return periodic_actions.Profile(
        logdir=folder, profile_duration_ms=0, every_secs=None, first_profile=first + 10, num_profile_steps=steps
    )


def _results(experiment: Experiment, evaluation: dict[str, float], account: Account) -> dict[str, Any]:
    """What `results.json` holds; the README documents it."""
    cost = experiment.cost()
    timed_images = account.timed_steps * experiment.plan.batch_size
    return {
        "config": json.loads(experiment.config.to_json()),
        "step": experiment.plan.total_steps,
        "train_seconds": account.train_seconds,
        "skipped_steps": account.skipped_steps,
        "recompilations": account.recompilations,
        "images_per_second": timed_images / account.step_seconds if account.timed_steps else None,
        "input_wait_share": account.wait_seconds / account.step_seconds if account.timed_steps else None,
        "eval": {name: evaluation.get(name) for name in ("count", "top1", "top5", "preview_top1", "loss")},
        "madds": cost.madds(),
        "parameters": cost.parameters,
        "versions": report.versions(),
    }
