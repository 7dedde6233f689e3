"""Small arrays joined to vectors: the tree comes back, and a gradient is the tree's own, joined."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from basisnet_jax.config import validate
from basisnet_jax.experiment.run import largest_joined
from basisnet_jax.ops.vectors import ROW
from basisnet_jax.training.joined import VECTOR, join, joined_like, whole


def tree_of(seed=0):
    draw = np.random.default_rng(seed).normal
    return {
        "a": {"kernel": draw(size=(200, 170)).astype(np.float32), "bias": draw(size=170).astype(np.float32)},
        "b": {"kernel": draw(size=(3, 2)).astype(np.float32), "bias": draw(size=()).astype(np.float32)},
    }


def group_of(path):
    return path.rpartition("/")[2]


def test_what_is_small_is_one_vector_per_group():
    joined = join(tree_of(), group_of)
    assert {group: sorted(arrays) for group, arrays in joined.groups.items()} == {
        "bias": [VECTOR],
        "kernel": [VECTOR, "a/kernel"],
    }
    tree = tree_of()
    np.testing.assert_array_equal(joined.groups["bias"][VECTOR], [*tree["a"]["bias"], tree["b"]["bias"]])
    assert VECTOR not in join(tree, group_of, apart=["bias"]).groups["bias"]


def test_a_vector_may_have_large_arrays_and_rows_of_their_own():
    tree = tree_of()
    joined = join(tree, group_of, in_rows=["kernel"], largest=40_000)
    assert {group: list(arrays) for group, arrays in joined.groups.items()} == {"bias": [VECTOR], "kernel": [VECTOR]}
    a, b = tree["a"]["kernel"].ravel(), tree["b"]["kernel"].ravel()
    wanted = [*a, *np.zeros(-a.size % ROW), *b, *np.zeros(-b.size % ROW)]
    for vector in (joined.groups["kernel"][VECTOR], jax.jit(joined.like_this)(tree).groups["kernel"][VECTOR]):
        np.testing.assert_array_equal(vector, np.float32(wanted))
    for returned in (joined.tree(), jax.jit(lambda j: j.tree())(joined)):
        jax.tree.map(np.testing.assert_array_equal, returned, tree)


def test_the_tree_comes_back_on_the_host_and_in_a_traced_function():
    joined = join(tree_of(), group_of)
    for returned in (joined.tree(), jax.jit(lambda j: j.tree())(joined), jax.jit(lambda t: join(t).tree())(tree_of())):
        jax.tree.map(np.testing.assert_array_equal, returned, tree_of())
    other = {"step": np.int32(3), "moments": (tree_of(1), optax.MaskedNode())}
    mixed = joined_like({"step": 0, "moments": (joined, optax.MaskedNode())}, other)
    assert mixed["moments"][0].layout == joined.layout
    jax.tree.map(np.testing.assert_array_equal, whole(mixed), other)


def test_a_tree_on_the_host_keeps_nothing_of_the_vector():
    """A checkpoint is written while the next step reuses the state's memory."""
    joined = jax.jit(lambda tree: join(tree, group_of))(tree_of())
    vector = np.asarray(joined.groups["bias"][VECTOR])
    assert not np.shares_memory(joined.tree()["a"]["bias"], vector)


def test_an_abstract_tree_has_the_shapes_and_dtypes():
    abstract = jax.eval_shape(lambda: join(tree_of(), group_of))
    wanted = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree_of())
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract.tree()) == wanted


def test_a_gradient_is_the_trees_joined_without_a_sum():
    def loss(tree):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(tree))

    joined = join(tree_of(), group_of)
    gradients = jax.jit(jax.grad(lambda j: loss(j.tree())))(joined)
    jax.tree.map(np.testing.assert_array_equal, gradients.tree(), jax.jit(jax.grad(loss))(tree_of()))
    operations = {
        equation.primitive.name for equation in jax.make_jaxpr(jax.grad(lambda j: loss(j.tree())))(joined).eqns
    }
    assert "concatenate" in operations
    assert not operations & {"pad", "add_any"}


@pytest.mark.parametrize(
    ("platform", "pallas_kernels", "fsdp", "all_join"),
    [("gpu", True, 1, True), ("gpu", False, 1, False), ("gpu", True, 2, False), ("cpu", True, 1, False)],
)
def test_large_parameters_join_on_gpus_alone(config, platform, pallas_kernels, fsdp, all_join):
    config.model.pallas_kernels, config.mesh.fsdp = pallas_kernels, fsdp
    largest = largest_joined(validate(config), [types.SimpleNamespace(platform=platform)])
    assert (VECTOR in join({"kernel": np.ones(2**15)}, largest=largest).groups["all"]) == all_join
