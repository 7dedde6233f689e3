"""The training of a run from start to end: its folder, first state, loop and results."""

import contextlib
from collections.abc import Callable, Iterator

import jax
from absl import logging
from etils import epath

from basisnet_jax.config import Config, validate
from basisnet_jax.errors import UserError
from basisnet_jax.experiment.run import Experiment, make_experiment
from basisnet_jax.host import distributed, files, installed, terminal, trackers
from basisnet_jax.host.records import read_object
from basisnet_jax.loop import first_lines
from basisnet_jax.loop.run_stats import RunStats
from basisnet_jax.loop.training_loop import TrainingLoop
from basisnet_jax.settings.declare import as_json
from basisnet_jax.training.state import TrainState
from basisnet_jax.workdir import curves, integrity
from basisnet_jax.workdir import lock as workdir_lib
from basisnet_jax.workdir.checkpoint import Checkpoints
from basisnet_jax.workdir.results import FinalEvaluation, RunResults


def train(config: Config, workdir: str) -> RunResults | None:
    """Trains, evaluates and saves in a workdir; resumes from its newest checkpoint if there is one.

    Args:
      config: see `config.py`.
      workdir: a new folder, or the folder of a run of the same config.

    Returns:
      The results, or None if a signal stopped the run before its end.

    Raises:
      UserError: config, data, devices or workdir do not fit, or the numbers of the run are no longer finite.
    """
    config = validate(config)
    trackers.check_installed(config.log.trackers)
    folder = files.absolute(workdir)
    with contextlib.ExitStack() as held:
        stop = held.enter_context(distributed.stop_signals())
        begin: Callable[[], None] = lambda: None  # noqa: E731
        with distributed.raise_user_errors_on_all_processes():
            results = workdir_lib.finished(config, folder)
            if results:
                distributed.say(
                    f"{workdir}: this run has already finished, at step {results.step}; to train longer, start "
                    f"another run with --config.model.specialist.start_from={workdir} (and preview.start_from)."
                )
                return results
            experiment = make_experiment(config)  # opens the data before anything asks for a device
            if jax.process_index() == 0:
                begin = held.enter_context(workdir_lib.opened(config, folder))
                integrity.quarantine_damaged_checkpoints(folder / "checkpoints")
                _write_start(experiment, folder)
            else:
                logging.set_verbosity(logging.WARNING)  # process 0 logs for all processes
            progress = held.enter_context(terminal.Progress(silent=not distributed.is_first()))
        with distributed.raise_user_errors_on_all_processes():
            if not (folder / "config.json").exists():
                raise UserError(
                    f"{folder} is not the same folder on all hosts; with --workdir, give a folder that they share."
                )
        with Checkpoints(folder / "checkpoints", config.checkpoint.keep) as checkpoints:
            for line in first_lines.first_lines(experiment, workdir, checkpoints.latest_step()):
                progress.say(line)
            state, stats = _start(experiment, checkpoints, progress)
            with distributed.raise_user_errors_on_all_processes():
                names = config.log.trackers if jax.process_index() == 0 else ()
                tracked = held.enter_context(trackers.opened(names, config.log.project, folder))
                tracked.log_files(folder / "config.json")
            loop = TrainingLoop(experiment, checkpoints, folder, stats, progress, int(state.step), tracked)
            evaluation = loop.run(state, stop, begin)
            checkpoints.wait()
            if checkpoints.unsaved:
                newest = checkpoints.latest_step()
                raise UserError(
                    f"{checkpoints.unsaved}; make room, and the same command resumes from "
                    f"{'the start' if newest is None else f'step {newest}'}."
                )
        if evaluation is None:
            return None
        results = _results(experiment, evaluation, stats)
        if jax.process_index() == 0:
            with _writing(folder):
                results.save(folder)
                curves.plot_curves(folder / "events", folder / "curves.png")
            tracked.log_files(folder / "results.json", folder / "curves.png")
        return results


def _write_start(experiment: Experiment, folder: epath.Path) -> None:
    """Writes `config.json` and `data.json`. Raises UserError if the run began with another teacher or other data."""
    config, source = experiment.config, experiment.config.distill.teacher
    path, facts = folder / "data.json", {**experiment.data.facts(), "teacher": experiment.teacher_fingerprint}
    try:
        before = read_object(path)
    except (OSError, ValueError):  # missing, or not a whole dictionary: written by an older version
        before = {}
    if before.get("teacher") and before["teacher"] != facts["teacher"]:
        raise UserError(
            f"config.distill.teacher = {source!r} has other weights than when the run in {folder} was started; give "
            "the same teacher, or another --workdir."
        )
    resumes = bool(integrity.checkpoint_folders(folder / "checkpoints"))
    if resumes and before.get("identity", facts.get("identity")) != facts.get("identity"):
        raise UserError(
            f"the training data are not those that the run in {folder} was started with (then {before['identity']}; "
            f"now {facts['identity']}); give the same data, or another --workdir."
        )
    with _writing(folder):
        files.write_json(folder / "config.json", as_json(config))
        files.write_json(path, facts)


@contextlib.contextmanager
def _writing(folder: epath.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); fix this and run again.") from None


def _start(
    experiment: Experiment, checkpoints: Checkpoints, progress: terminal.Progress
) -> tuple[TrainState, RunStats]:
    step = checkpoints.latest_step()
    if step is None:
        progress.stage("making the network")
        with distributed.raise_user_errors_on_all_processes():
            return experiment.init_state(), RunStats()
    progress.stage(f"restoring step {step}")
    state, saved = checkpoints.restore(step, experiment.abstract_state)
    return state, RunStats.from_saved(saved)


def _results(experiment: Experiment, evaluation: dict[str, float], stats: RunStats) -> RunResults:
    """Returns the results of a run that reached its last step."""
    cost = experiment.cost()
    timed_images = stats.timed_steps * experiment.plan.batch_size
    return RunResults(
        config=as_json(experiment.config),
        step=experiment.plan.total_steps,
        train_seconds=stats.train_seconds,
        skipped_steps=stats.skipped_steps,
        recompilations=stats.recompilations,
        images_per_second=timed_images / stats.step_seconds if stats.timed_steps else None,
        input_wait_share=stats.wait_seconds / stats.step_seconds if stats.timed_steps else None,
        eval=FinalEvaluation(
            count=int(evaluation["count"]),
            top1=evaluation["top1"],
            top5=evaluation["top5"],
            preview_top1=evaluation.get("preview_top1"),
            loss=evaluation["loss"],
        ),
        madds=cost.madds(),
        parameters=cost.parameters,
        versions=installed.versions(),
    )
