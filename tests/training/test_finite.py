"""Numbers that are not finite: the step is skipped, counted and named, and leaves nothing in the state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from basisnet_jax.errors import UserError
from basisnet_jax.experiment.run import Experiment, make_experiment
from basisnet_jax.host.mesh import on_mesh
from basisnet_jax.loop import train
from basisnet_jax.training import finite
from basisnet_jax.workdir.checkpoint import Checkpoints
from basisnet_jax.workdir.events import read_events


def floats(batch, bad):
    """The batch with images of floats, which the step takes too; one pixel of the last is NaN if it is to be bad."""
    image = np.array(batch["image"], np.float32)
    image[-1, 0, 0] = np.nan if bad else 0.0
    return {**batch, "image": jax.device_put(image, batch["image"].sharding)}


@pytest.mark.parametrize(("devices", "fsdp", "pieces"), [(8, 2, 1), (1, 1, 2)])
def test_a_bad_step_changes_nothing_but_the_step(config, monkeypatch, devices, fsdp, pieces):
    """Parameters, statistics, averages and optimizer, bit for bit, for one bad pixel on one device."""
    monkeypatch.setattr("basisnet_jax.host.mesh.SMALLEST_SHARDED", 128)
    config.mesh.fsdp, config.accumulate_steps = fsdp, pieces
    experiment = make_experiment(config, jax.devices()[:devices])
    step, batch = experiment.train_step(), next(experiment.train_batches(0))
    state, good = step(experiment.init_state(), floats(batch, bad=False), experiment.schedule, None)
    before = jax.tree.map(np.array, dataclasses.replace(state, step=0))
    state, bad = step(state, floats(batch, bad=True), experiment.schedule, None)
    assert (good["skipped"], bad["skipped"]) == (0, 1)
    assert int(state.step) == 2
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, dataclasses.replace(state, step=0)))
    state, good = step(state, floats(batch, bad=False), experiment.schedule, None)
    assert good["skipped"] == 0
    assert finite.first_bad_leaf(dataclasses.replace(state, step=None)) is None


@pytest.fixture
def bad_steps(monkeypatch):
    """A set of the steps, from 0, whose batch is bad."""
    steps, batches = set(), Experiment.train_batches

    def train_batches(self, start):
        return (floats(batch, step in steps) for step, batch in enumerate(batches(self, start), start))

    monkeypatch.setattr(Experiment, "train_batches", train_batches)
    return steps


def test_bad_steps_are_counted_and_too_many_in_a_row_stop_the_run(config, tmp_path, bad_steps):
    config.max_skipped_steps = 2
    bad_steps.update({4, 5, 9, 12, 13, 14, 15})
    expected = (
        r"step 15, the last of 3 in a row that were skipped, has numbers that are not finite \(loss nan, gradient norm "
        r"nan, learning rate [\d.e-]+\), the first of them in the output of preview/stem; lower"
    )
    with pytest.raises(UserError, match=expected):
        train.train(config, str(tmp_path))
    curves = read_events(tmp_path / "events", ("train/", "run/"))
    assert curves["run/skipped_steps"] == {3: 0.0, 6: 2.0, 9: 2.0, 12: 3.0}
    assert np.isfinite([*curves["train/loss"].values()]).all(), "a skipped step is not in the means"
    experiment = make_experiment(config)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        state, account = checkpoints.restore(13, experiment.abstract_state)
    assert (account["skipped_steps"], account["skipped_in_a_row"]) == (4, 1)
    assert finite.first_bad_leaf(state) is None
    # With the data as it should be, the run goes on, and knows what it skipped.
    bad_steps.clear()
    assert train.train(config, str(tmp_path)).skipped_steps == 4


def test_the_first_bad_layer_is_sought_in_the_state_of_the_bad_step(config, tmp_path, monkeypatch):
    """The step after the bad one makes parameters so large that the same batch would overflow in another layer."""
    config.max_skipped_steps = 0
    config.optimizer.update(name="sgd", momentum=0.0, learning_rate=1e25)
    config.schedule.warmup_epochs = 1 / 81  # a step, so that the first has rate 0 and the second a rate of 1e25
    batches = Experiment.train_batches

    def train_batches(self, start):
        for step, batch in enumerate(batches(self, start), start):
            image = np.array(batch["image"], np.float32)
            image *= 1e25 if step == 0 else 1.0  # whose squares overflow in the first batch norm
            yield {**batch, "image": jax.device_put(image, batch["image"].sharding)}

    monkeypatch.setattr(Experiment, "train_batches", train_batches)
    with pytest.raises(UserError, match=r"step 1 has .* in the output of preview/stem_norm/batch_norm; "):
        train.train(config, str(tmp_path))


def test_debug_names_the_first_bad_layer_in_its_first_step(config, tmp_path, bad_steps, monkeypatch):
    config.debug = True
    init_state = Experiment.init_state

    def poisoned(self):
        state = init_state(self)
        params = state.params.tree()
        layer = params["specialist"]["block01"]["depthwise"]
        layer["bases"] = layer["bases"] * jnp.inf
        return state.replace(params=on_mesh(state.params.like_this(params), self.abstract_state.params))

    monkeypatch.setattr(Experiment, "init_state", poisoned)
    with pytest.raises(UserError, match=r"step 1 has .* in the output of specialist/block01/depthwise; "):
        train.train(config, str(tmp_path))


def test_parameters_that_are_not_finite_are_not_saved(config, tmp_path):
    experiment = make_experiment(config, jax.devices()[:1])
    state = experiment.init_state()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {})
        params = state.params.tree()
        stem = params["specialist"]["stem"]
        stem["kernel"] = stem["kernel"] * jnp.nan
        state = state.replace(params=state.params.like_this(params))
        with pytest.raises(UserError, match="params/specialist/stem/kernel is no longer finite after step 2"):
            checkpoints.save(2, state, {})
        assert checkpoints.steps() == [1]


class Root(nn.Module):
    """Its gradient is infinite at 0, though its outputs are finite."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(2, kernel_init=nn.initializers.zeros, name="first")(x)
        return nn.Dense(1, name="last")(jnp.sqrt(nn.Dense(2, kernel_init=nn.initializers.zeros, name="second")(x)))


def test_a_gradient_is_named_by_the_layer_where_it_began():
    """Backwards, the last layer comes first; the gradient of 'second' is infinite, and that of 'first' NaN for it."""
    model, x = Root(), jnp.ones((3, 2))
    variables = model.init(jax.random.key(0), x)

    @jax.jit
    def checked(variables, x):
        def loss(variables):
            checks = {}
            with finite.watched_layers(checks):
                return jnp.sum(model.apply(variables, x)), checks

        gradients, checks = jax.grad(loss, has_aux=True)(variables)
        finite.note_gradients(checks, gradients["params"])
        return checks

    checks = checked(variables, x)
    names = [name[5:] for name in checks]
    layers = ["first", "second", "last"]
    outputs = [f"the output of {name}" for name in (*layers, "the network")]
    assert names == [*outputs, *(f"the gradient of {name}" for name in reversed(layers))]
    assert finite.first_failed(checks) == "the gradient of second"
    assert finite.first_failed(checked(variables, x.at[0, 0].set(jnp.inf))) == "the output of first"
    assert finite.first_failed({}) is None
