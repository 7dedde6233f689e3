"""Programs that are compiled again are counted, and the log says why."""

import jax
import jax.numpy as jnp

from basisnet_jax.experiment.run import Experiment
from basisnet_jax.host import recompilation
from basisnet_jax.loop import train


def test_the_cause_is_named(caplog):
    count = []
    double = recompilation.count_recompilations(
        jax.jit(lambda batch, k: batch["x"] * k), "doubling", lambda: count.append(1)
    )
    for batch in ({"x": jnp.ones(3)}, {"x": jnp.zeros(3)}):
        assert double(batch, 2.0).shape == (3,)
    assert not count
    assert not caplog.records
    double({"x": jnp.ones(4)}, 2.0)
    assert "the doubling was compiled again: its argument[0]['x'] was float32[3] on " in caplog.text
    assert "and is float32[4] on " in caplog.text
    double({"x": jnp.ones(4)}, 2.0)
    assert len(count) == 1
    jax.clear_caches()
    double({"x": jnp.ones(3)}, 2.0)
    assert "its arguments are the same, so JAX's settings have changed, or JAX's caches were cleared" in caplog.text
    assert len(count) == 2


def test_a_run_compiles_its_steps_once_and_counts_what_does_not(config, tmp_path, monkeypatch, caplog):
    """Over evaluations and checkpoints; and after one batch of another kind."""
    batches, floats = Experiment.train_batches, {7}

    def train_batches(self, start):
        for step, batch in enumerate(batches(self, start), start):
            yield {**batch, "image": batch["image"].astype("float32")} if step in floats else batch

    monkeypatch.setattr(Experiment, "train_batches", train_batches)
    assert train.train(config, str(tmp_path / "odd")).recompilations == 1
    assert "the training step was compiled again: its argument[1]['image'] was uint8[16,8,8,1]" in caplog.text
    floats.clear()
    caplog.clear()
    assert train.train(config, str(tmp_path / "even")).recompilations == 0
    assert "compiled again" not in caplog.text
