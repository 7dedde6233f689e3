"""Optimizers: optax's own and TensorFlow's arithmetic, with a rate that is given to each update."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

from basisnet_jax.training.joined import join
from basisnet_jax.training.optimizers import group_of, make_optimizer, scale_by_trust_ratio

SETTINGS = {"weight_decay": 0.0, "momentum": 0.9, "decay": 0.9, "epsilon": 1e-3, "clip_norm": 0.0}
# Two kernels, one of them too large to be joined; LAMB needs the norm of each.
PARAMS = {
    "layer": {"kernel": np.array([[1.0, -2.0]], np.float32), "bias": np.array([0.5], np.float32)},
    "other": {"kernel": np.linspace(-1, 1, 40_000, dtype=np.float32), "scale": np.array([1.0, 2.0], np.float32)},
}
KERNELS = {"layer": {"kernel": True, "bias": False}, "other": {"kernel": True, "scale": False}}


def optax_of(name, schedule, weight_decay):
    l2 = optax.add_decayed_weights(weight_decay, mask=KERNELS)
    return {
        "adamw": optax.adamw(schedule, 0.9, 0.9, 1e-3, weight_decay=weight_decay, mask=KERNELS),
        "lamb": optax.chain(
            optax.scale_by_adam(0.9, 0.9, 1e-3),
            l2,
            optax.masked(optax.scale_by_trust_ratio(), KERNELS),
            optax.scale_by_learning_rate(schedule),
        ),
        "rmsprop": optax.chain(
            l2, optax.rmsprop(schedule, 0.9, 1e-3, initial_scale=1.0, eps_in_sqrt=True, momentum=0.9)
        ),
        "sgd": optax.chain(l2, optax.sgd(schedule, 0.9, nesterov=True)),
    }[name]


@pytest.mark.parametrize("largest", [0, 10_000, 100_000])
@pytest.mark.parametrize("trained", ["", "layer"])
@pytest.mark.parametrize("name", ["adamw", "lamb", "rmsprop", "sgd"])
def test_updates_are_optaxs_with_the_rate_as_a_schedule(name, trained, largest):
    """Bit for bit, over steps with another rate each: the rate enters where optax has it; joining changes nothing.

    But LAMB's norm of a large array in a vector is summed in rows.
    """
    rates = np.array([0.1, 0.02, 0.3], np.float32)
    ours = make_optimizer(name, **{**SETTINGS, "weight_decay": 0.1}, trained=trained, largest_joined=largest)
    theirs = optax_of(name, lambda step: jax.numpy.asarray(rates)[step], 0.1)
    got, expected = ours.join(PARAMS), PARAMS
    our_state, their_state = ours.init(got), theirs.init(expected)
    for step, rate in enumerate(rates):
        gradients = jax.tree.map(lambda leaf, step=step: np.cos(7 * leaf + step), PARAMS)
        updates, our_state = ours.update(got.like_this(gradients), our_state, got, learning_rate=rate)
        got = optax.apply_updates(got, updates)
        updates, their_state = theirs.update(gradients, their_state, expected)
        expected = optax.apply_updates(expected, updates)
        for part, now in got.tree().items():
            wanted = expected if part.startswith(trained) else PARAMS
            same = np.testing.assert_array_equal
            if name == "lamb" and largest == 100_000:
                same = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
            jax.tree.map(same, now, wanted[part])


@pytest.mark.parametrize("largest", [0, 10])
@pytest.mark.parametrize("zero", ["parameter", "update"])
def test_a_norm_of_zero_leaves_the_update(zero, largest):
    joined = partial(join, group_of=group_of, in_rows=("decayed",), largest=largest)
    params = {"a": {"kernel": np.float32([3.0, 4.0])}, "b": {"kernel": np.float32([1.0])}}
    updates = {"a": {"kernel": np.float32([0.6, 0.8])}, "b": {"kernel": np.float32([2.0])}}
    (params if zero == "parameter" else updates)["a"]["kernel"] *= 0
    got = scale_by_trust_ratio().update(joined(updates), {}, joined(params))[0].tree()
    np.testing.assert_array_equal(got["a"]["kernel"], updates["a"]["kernel"])
    np.testing.assert_array_equal(got["b"]["kernel"], params["b"]["kernel"])


def test_rmsprop_is_tensorflows():
    """Against its loop in NumPy: epsilon under the root, the mean square starting at one, momentum over the update."""
    optimizer = make_optimizer("rmsprop", **SETTINGS)
    params = {"kernel": np.array([[1.0, -2.0]])}
    got, expected = optimizer.join(params), params["kernel"]
    state, square, velocity = optimizer.init(got), np.ones((1, 2)), np.zeros((1, 2))
    for rate, gradient in ((0.1, np.array([[0.5, 1.0]])), (0.2, np.array([[-1.0, 3.0]]))):
        updates, state = optimizer.update(got.like_this({"kernel": gradient}), state, got, learning_rate=rate)
        got = optax.apply_updates(got, updates)
        square = 0.9 * square + 0.1 * gradient**2
        velocity = 0.9 * velocity + rate * gradient / np.sqrt(square + 1e-3)
        expected = expected - velocity
    np.testing.assert_allclose(got.tree()["kernel"], expected, rtol=1e-5)


def test_clipping_bounds_the_update():
    optimizer = make_optimizer("sgd", **{**SETTINGS, "momentum": 0.0, "clip_norm": 2.0})
    params = optimizer.join({"kernel": np.zeros((1, 2))})
    gradients = params.like_this({"kernel": np.array([[30.0, 40.0]])})
    updates, _ = optimizer.update(gradients, optimizer.init(params), params, learning_rate=1.0)
    np.testing.assert_allclose(updates.tree()["kernel"], [[-1.2, -1.6]], rtol=1e-5)


def test_kernels_and_bases_decay_and_nothing_else(config):
    """A task's vectors have two axes as a kernel has, and would be drawn to uniform coefficients."""
    from basisnet_jax.experiment.model import make_model

    config.model.update(routing="task", num_tasks=3, synthesize=("blocks", "head_dense"))
    model = make_model(config.model, 10)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 8, 8, 1)), train=False))["params"]
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(shapes)]
    leaves = [(path.split("/")[-1], group_of(path)) for path in paths]
    assert {name for name, group in leaves if group == "decayed"} == {"kernel", "bases"}
    assert {group_of(path) for path in paths if path.startswith("routing/")} == {"plain"}
    assert {name for name, group in leaves if group == "plain"} >= {"bias", "scale", "block00_expand", "head_dense"}
