"""Schedules: their values, and that their numbers are no part of the compiled program."""

import jax
import numpy as np
import optax
import pytest

from basisnet_jax.experiment.run import make_experiment
from basisnet_jax.training.schedule import LEARNING_RATES, decay_at, make_schedule, warm_start

NUMBERS = {"peak": 0.3, "total_steps": 100, "decay_rate": 0.9, "decay_steps": 10}


@pytest.mark.parametrize(
    ("step", "cosine", "exponential"), [(0, 0.0, 0.0), (5, 0.5, 0.5), (10, 1.0, 0.9), (55, 0.5, 0.9**5), (200, 0, None)]
)
def test_learning_rates(step, cosine, exponential):
    schedule = make_schedule(**{**NUMBERS, "peak": 1.0}, warmup_steps=10)
    for name, expected in (("cosine", cosine), ("exponential", exponential)):
        if expected is not None:
            got = LEARNING_RATES[name](schedule, np.int32(step))
            assert float(got) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("warmup", [0, 1, 30])
def test_learning_rates_are_optaxs_at_every_step(warmup):
    steps = np.arange(103, dtype=np.int32)
    schedule = make_schedule(**NUMBERS, warmup_steps=warmup)
    theirs = optax.warmup_cosine_decay_schedule(0.0 if warmup else 0.3, 0.3, warmup, 100)
    np.testing.assert_allclose(LEARNING_RATES["cosine"](schedule, steps), theirs(steps), rtol=1e-5, atol=1e-7)
    stairs = optax.exponential_decay(0.3, 10, 0.9, staircase=True)
    after = LEARNING_RATES["exponential"](schedule, steps[warmup:])
    np.testing.assert_allclose(after, stairs(steps[warmup:]), rtol=1e-5)


def test_averages_forget_their_start_with_the_first_step_and_reach_over_a_tenth():
    average, weights = 100.0, np.zeros(40)
    for step in range(40):
        share = float(decay_at(np.int32(step), 0.75))
        average, weights = share * average + (1 - share) * 2.0, share * weights
        weights[step] = 1 - share
        assert share == pytest.approx(min(0.75, step / (9 + step)))
    assert average == 2.0
    assert weights.sum() == pytest.approx(1.0)


def test_warm_start_falls_linearly_to_zero():
    assert [float(warm_start(np.int32(s), 4)) for s in (0, 1, 4, 9)] == [1.0, 0.75, 0.0, 0.0]
    assert [float(warm_start(np.int32(s), 0)) for s in (0, 1)] == [0.0, 0.0]


@pytest.mark.parametrize("name", ["cosine", "exponential"])
def test_another_rate_or_length_is_the_same_program(config, name):
    """So that JAX's cache of compiled programs has it: the text that is compiled is the same, byte for byte."""
    config.schedule.name = name
    programs = set()
    for changes in (
        {},
        {"epochs": 0.4, "warm_start_epochs": 0.0, "optimizer.learning_rate": 0.1, "schedule.warmup_epochs": 0.0}
        | {"schedule.decay_epochs": 1.0, "schedule.decay_rate": 0.5},
    ):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(changes)
        experiment = make_experiment(changed, jax.devices()[:1])
        state, batch = experiment.abstract_state, experiment.abstract_batch(16)
        training = experiment.train_step().lower(state, batch, experiment.schedule, None)
        evaluating = experiment.eval_step().lower(experiment.abstract_variables, np.float32(0.0), batch)
        programs.add(training.as_text() + evaluating.as_text())
    assert len(programs) == 1, "a number of the schedule is a constant of the program"
