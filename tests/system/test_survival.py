"""A run that is killed without a word goes on, and ends as the run that nobody killed."""

from basisnet_jax.experiment.run import make_experiment
from benchmarks import survival
from tests.conftest import TRAINED_RATE


def test_killed_in_mid_save_and_in_an_evaluation_it_ends_bit_for_bit_the_same(trained, trained_config, tmp_path):
    """Parameters, averages, optimizer, figures and curves as `trained`, and the batches that the config asks for."""
    arguments = ["--config=tests/configs/tiny.py", f"--config.data.dir={trained_config.data.dir}"]
    arguments += [f"--config.optimizer.learning_rate={TRAINED_RATE}"]
    kills = [survival.Kill("save", times=2, seconds=0.02), survival.Kill("evaluation")]
    deaths = survival.survive(arguments, tmp_path / "run", kills)
    assert [death.aimed_at for death in deaths] == ["save", "evaluation"]
    assert max(death.lost for death in deaths) > 0, "neither cost anything: is the run killed while it works?"
    assert survival.differences(tmp_path / "run", trained) == []
    experiment = make_experiment(trained_config)
    stream = experiment.train_batches(0)
    expected = {(step, survival.digest(next(stream))) for step in range(experiment.plan.total_steps)}
    assert set(survival.batches_of(tmp_path / "run")) == expected
