"""The loop: save, evaluate, next batch, step."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from basisnet_jax.errors import UserError
from basisnet_jax.evaluation.whole_split import evaluate
from basisnet_jax.experiment.run import Experiment
from basisnet_jax.host import compilation_cache, recompilation, terminal, trackers
from basisnet_jax.host import mesh as mesh_lib
from basisnet_jax.loop import first_lines
from basisnet_jax.loop.run_stats import RunStats
from basisnet_jax.loop.steps import MetricsBehind, StepClock
from basisnet_jax.training import finite
from basisnet_jax.training.state import TrainState
from basisnet_jax.workdir import events, results
from basisnet_jax.workdir.checkpoint import Checkpoints


class TrainingLoop:
    """The loop of one process.

    Args:
      experiment: the run's.
      checkpoints: the run's.
      folder: the run's.
      stats: statistics of the run so far.
      progress: shows steps, saves and evaluations.
      first: number of updates done so far.
      tracked: gets the metrics, too.
    """

    def __init__(
        self,
        experiment: Experiment,
        checkpoints: Checkpoints,
        folder: epath.Path,
        stats: RunStats,
        progress: terminal.Progress,
        first: int,
        tracked: trackers.TrackedRun,
    ) -> None:
        config = experiment.config
        self.experiment, self.checkpoints, self.stats, self.progress = experiment, checkpoints, stats, progress
        self.first, self.event_folder = first, folder / "events"
        progress.stage("opening the event files")
        self.writer = events.event_writer(self.event_folder, None if first else config, tracked)
        self.profile = _profile(self.event_folder, first, config.profile_steps)
        train_step, eval_step = experiment.train_step(debug=config.debug), experiment.eval_step()
        self.train_step = recompilation.count_recompilations(train_step, "training step", self._recompiled)
        self.eval_step = recompilation.count_recompilations(eval_step, "evaluation step", self._recompiled)
        self.schedule = jax.device_put(experiment.schedule, mesh_lib.replicated(experiment.mesh))
        self.teacher = experiment.teacher_variables()
        self.newest_evaluation: dict[str, str] = {}  # its top-1, shown beside the bar
        self.clock, self.behind = StepClock(stats), MetricsBehind()
        self.reported = dataclasses.replace(stats)  # as of the last training metrics written
        self.began = time.monotonic() - stats.train_seconds

    def run(self, state: TrainState, stop: Callable[[int], bool], begin: Callable[[], None]) -> dict[str, float] | None:
        """Trains to the last step and returns its evaluation; None where a signal stopped the run.

        Args:
          state: the state after `first` updates.
          stop: returns whether the run should stop at a step; the same on all processes.
          begin: called after each step.
        """
        plan, config = self.experiment.plan, self.experiment.config
        batches = self.experiment.train_batches(self.first)
        first_lines.show_training(self.experiment, self.first, self.progress)
        try:
            for step in range(self.first, plan.total_steps + 1):  # here `step` updates are done
                last, stopping = step == plan.total_steps, stop(step)
                evaluating = last or plan.due(step, config.eval_every_epochs)
                if evaluating or stopping or plan.due(step, config.checkpoint.every_epochs):
                    self._save(step, state)
                if stopping:
                    return None  # an evaluation that is due is done when the run is resumed
                if evaluating:
                    evaluation = self._evaluation(step, state)
                if last:
                    self.stats.train_seconds = time.monotonic() - self.began
                    return evaluation
                with self.clock.waiting():
                    batch = next(batches)
                state, metrics = self.train_step(state, batch, self.schedule, self.teacher)
                begin()
                self._settle(state)
                self.behind.put(step + 1, metrics)
                if self.stats.skipped_in_a_row >= config.max_skipped_steps:
                    # The new step may exceed the limit. The search for the first bad layer needs the state before it.
                    self._settle(state)
                if self.profile:
                    self.profile(step + 1)
            raise AssertionError("the loop ends at the last step")
        finally:
            self.writer.close()
            if config.profile_steps:
                with contextlib.suppress(RuntimeError):  # where no trace is running: it ended, or had not begun
                    jax.profiler.stop_trace()

    def _recompiled(self) -> None:
        self.stats.recompilations += 1

    def _settle(self, state: TrainState) -> None:
        """Waits for the newest step whose metrics are kept, and counts, shows and writes them.

        Raises:
          UserError: the step's numbers are not finite, and no more steps may be skipped.
        """
        taken = self.behind.take()
        if taken is None:
            return
        step, metrics, culprit = taken
        config, plan = self.experiment.config, self.experiment.plan
        self.clock.step_ended()
        self.stats.add(metrics)
        if metrics["skipped"]:
            self.progress.say(f"step {step} is skipped: {finite.numbers(metrics)}")
        if culprit or self.stats.skipped_in_a_row > config.max_skipped_steps:
            culprit = culprit or _find_culprit(self.experiment, state, step, self.teacher)
            raise UserError(finite.sentence(step, metrics, self.stats.skipped_in_a_row, culprit))
        figures = {"loss": f"{metrics['loss']:.3f}", "top-1": terminal.share(metrics["top1"])}
        self.progress.advance(1, first_lines.epoch_of(self.experiment, step), figures | self.newest_evaluation)
        if step % config.log_every_steps == 0 or step == plan.total_steps:
            speed = self.stats.speed_since(self.reported, plan.batch_size)
            self.reported = dataclasses.replace(self.stats)
            self.writer.write_scalars(step, {**self.stats.take_means(), **speed})

    def _save(self, step: int, state: TrainState) -> None:
        self._settle(state)
        self.clock.pause()
        self.stats.train_seconds = time.monotonic() - self.began
        self.writer.flush()  # a run that is killed from here on resumes after these metrics
        events.sync(self.event_folder)
        with self.progress.aside("saving"):
            self.checkpoints.save(step, state, dataclasses.asdict(self.stats))

    def _evaluation(self, step: int, state: TrainState) -> dict[str, float]:
        """Returns the evaluation of a saved step: the recorded one if there is one, otherwise evaluates and records."""
        # A resumed run's first step has a recorded evaluation, unless the run was killed before it was recorded.
        evaluation = self.checkpoints.evaluation(step)
        if evaluation is not None:
            return evaluation
        plan = self.experiment.plan
        waiting = "" if self.newest_evaluation else compilation_cache.compiling()
        with self.progress.aside("evaluating", plan.eval_examples, waiting=waiting):
            evaluation = evaluate(self.experiment, self.eval_step, state, self.progress)
        self.newest_evaluation["eval"] = terminal.share(evaluation["top1"])
        events.write_evaluation(self.writer, step, evaluation)
        self.writer.flush()
        events.sync(self.event_folder)  # once it is recorded, a resumed run does not evaluate this step again
        self.progress.say(results.evaluation_line(step, plan.epoch(step), evaluation))
        self.checkpoints.record(step, evaluation)
        return evaluation


def _find_culprit(experiment: Experiment, state: TrainState, step: int, teacher: Any) -> str:
    """Repeats a skipped step with every layer checked, and names the first layer whose numbers are not finite.

    Args:
      experiment: the run's.
      state: directly after the step, so only its count differs from the state before; the step reuses its memory.
      step: counted from 1.
      teacher: the teacher's variables.
    """
    before = dataclasses.replace(state, step=jnp.full_like(state.step, step - 1))
    batch = next(experiment.train_batches(step - 1))
    _, metrics = experiment.train_step(debug=True)(before, batch, experiment.schedule, teacher)
    return finite.first_failed(metrics["finite"]) or "no single layer"


def _profile(folder: epath.Path, first: int, steps: int) -> Callable[[int], bool] | None:
    """Returns a function to call at each step, which writes a profiler's trace of `steps` steps; None for 0 steps."""
    if not steps:
        return None
    from clu import periodic_actions

    return periodic_actions.Profile(
        logdir=folder, profile_duration_ms=0, every_secs=None, first_profile=first + 10, num_profile_steps=steps
    )
