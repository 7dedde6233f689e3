"""The network as a whole: equalities that hold whatever the weights are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from basisnet_jax.errors import UserError
from basisnet_jax.experiment.model import make_model
from basisnet_jax.models import routing
from basisnet_jax.models.architectures import Block, Conventions
from basisnet_jax.models.layers import Convolution, Norm, Residual, SqueezeExcite
from basisnet_jax.ops.synthesis import value_of
from tests.configs.plain_block import PlainBlock


def images(batch: int = 4) -> jax.Array:
    return jax.random.uniform(jax.random.key(1), (batch, 8, 8, 1), minval=-1.0)


def initialized(config, **changes):
    config.model.update(changes)
    model = make_model(config.model, num_classes=10)
    return model, jax.jit(lambda: model.init(jax.random.key(0), images(), train=False))()


def apply(model, variables, batch, **kwargs):
    return jax.jit(lambda v, x: model.apply(v, x, train=False, **kwargs))(variables, batch)


def test_the_two_stages_compose_to_the_whole(config):
    model, variables = initialized(config)

    def staged(variables, batch):
        logits, coefficients = model.apply(variables, batch, train=False, method="first_stage")
        return model.apply(variables, batch, coefficients, train=False, method="second_stage"), logits, coefficients

    whole = apply(model, variables, images())
    for got, expected in zip(jax.jit(staged)(variables, images()), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert set(variables["params"]) == {"preview", "coefficients", "specialist"}


def test_one_basis_is_the_plain_network(config):
    model, variables = initialized(config, num_bases=1)
    static, _ = initialized(config, routing="static")

    def plain(tree):
        return {
            ("kernel" if name == "bases" else name): plain(leaf)
            if isinstance(leaf, dict)
            else leaf[0]
            if name == "bases"
            else leaf
            for name, leaf in tree.items()
        }

    kernels = {
        "params": {"specialist": plain(variables["params"]["specialist"])},
        "batch_stats": {"specialist": variables["batch_stats"]["specialist"]},
    }
    got = apply(model, variables, images()).logits_BxK
    np.testing.assert_allclose(got, apply(static, kernels, images()).logits_BxK, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_norm_is_flax_batch_norm_and_then_the_activation(dtype):
    x = (3 * jax.random.normal(jax.random.key(0), (4, 3, 5, 6)) + 2).astype(dtype)
    # Ours gives the batch's own statistics, which the training step averages.
    flax, ours = nn.BatchNorm(momentum=0.0, epsilon=1e-3, dtype=dtype), Norm("hard_swish", 1e-3, dtype)
    state = ours.init(jax.random.key(0), x, True)
    for train in (True, False):
        got, updated = ours.apply(state, x, train, mutable=["batch_stats"])
        inner = {kind: values["batch_norm"] for kind, values in state.items()}
        expected, stats = flax.apply(inner, x, use_running_average=not train, mutable=["batch_stats"])
        np.testing.assert_array_equal(got.value(), nn.hard_swish(expected))
        jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"]["batch_norm"], stats["batch_stats"])
        state = {**state, **updated}


def test_images_of_a_batch_do_not_influence_each_other(config):
    model, variables = initialized(config)
    together = apply(model, variables, images())
    alone = apply(model, variables, images()[2:3])
    np.testing.assert_allclose(together.logits_BxK[2:3], alone.logits_BxK, rtol=1e-4, atol=1e-5)
    assert not np.allclose(together.logits_BxK[2], together.logits_BxK[1], atol=1e-3)


def test_a_whole_warm_start_ignores_the_preview(config):
    model, variables = initialized(config)
    got = apply(model, variables, images(), warm_start=1.0)
    np.testing.assert_allclose(got.coefficients_BxLxN, 1 / config.model.num_bases, rtol=1e-6)


@pytest.mark.parametrize("left", [1.0, 0.25])
def test_a_warm_start_by_temperature_falls_linearly(config, left):
    """softmax(z / t) is softmax(z / 4) to the power 4 / t, over its sum."""
    _, variables = initialized(config)
    variables["params"]["coefficients"]["kernel"] *= 1000.0  # the first ones are all but uniform
    model, _ = initialized(config, warm_start="temperature", start_temperature=20.0)
    final = np.asarray(apply(model, variables, images()).coefficients_BxLxN)
    expected = final ** (4.0 / (4.0 + left * 16.0))
    expected /= expected.sum(-1, keepdims=True)
    got = apply(model, variables, images(), warm_start=left).coefficients_BxLxN
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert np.abs(final - expected).max() > 0.01


@pytest.mark.parametrize(("granularity", "vectors"), [("layer", 5), ("block", 2), ("model", 1)])
def test_granularity_shares_vectors(config, granularity, vectors):
    """The first block expands 8 channels to 16, the second 8 to 24: six layers, of which five are chosen here."""
    model, variables = initialized(config, granularity=granularity)
    layers = model.specialist.architecture.block_layers()
    assert len(layers) == 6
    assert apply(model, variables, images()).coefficients_BxLxN.shape == (
        4,
        {"layer": 6}.get(granularity, vectors),
        config.model.num_bases,
    )
    shared = routing.coefficient_vectors(layers, granularity)
    same_block = shared["block00/expand"] == shared["block00/project"]
    same_model = shared["block00/expand"] == shared["block01/expand"]
    assert (same_block, same_model) == (granularity != "layer", granularity == "model")


@pytest.mark.parametrize(
    ("place", "layer", "vector"),
    [
        ("classifier", "head_dense", nn.hard_swish),
        ("pool", "head_norm", lambda last_map: np.asarray(value_of(last_map)).mean((1, 2))),
    ],
)
def test_coefficients_come_from_the_pool_or_from_the_vector_that_the_classifier_sees(config, place, layer, vector):
    """Against a softmax in NumPy, of what the layer before the vector gave."""
    model, variables = initialized(config, coefficients_from=place)
    head = variables["params"]["coefficients"]
    head["kernel"] *= 1000.0  # the first coefficients are all but uniform

    def first_stage():
        kept = {"capture_intermediates": lambda module, _: module.path == ("preview", layer)}
        outputs, state = model.apply(variables, images(), train=False, method="first_stage", **kept)
        return *outputs, state["intermediates"]["preview"][layer]["__call__"][0]

    logits, got, before = first_stage()
    scores = np.asarray(vector(before)) @ head["kernel"] + head["bias"]
    powers = np.exp(scores.reshape(got.shape) / config.model.temperature)
    np.testing.assert_allclose(got, powers / powers.sum(-1, keepdims=True), rtol=1e-4)
    assert got.std(axis=0).max() > 0.01, "the images have the same coefficients"
    dense = variables["params"]["preview"]["head_dense"]
    variables["params"]["preview"]["head_dense"] = jax.tree.map(jnp.zeros_like, dense)
    logits_without, without, _ = first_stage()
    assert np.abs(logits_without - logits).max() > 0
    assert np.array_equal(without, got) == (place == "pool")


@pytest.mark.parametrize("granularity", ["layer", "block", "model"])
def test_groups_of_channels_read_vectors_of_their_own(config, granularity):
    """Equal vectors for all groups are one vector, and each layer is given the vectors that it reads, in order."""
    model, variables = initialized(config, granularity=granularity)
    grouped, of_grouped = initialized(config, granularity=granularity, channel_groups=3)
    vectors = apply(model, variables, images()).coefficients_BxLxN.shape[1]
    assert apply(grouped, of_grouped, images()).coefficients_BxLxN.shape == (4, 3 * vectors, 4)
    assert of_grouped["params"]["coefficients"]["kernel"].shape == (16, 3 * vectors * 4)
    coefficients = np.random.default_rng(0).dirichlet(np.ones(4), size=(4, vectors)).astype(np.float32)
    expected = apply(model, variables, images(), method="second_stage", coefficients_BxLxN=coefficients)
    repeated = np.repeat(coefficients, 3, axis=1)
    got = apply(grouped, variables, images(), method="second_stage", coefficients_BxLxN=repeated)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    read = routing.coefficient_vectors(model.synthesized, granularity, 3)
    assert sorted({number for numbers in read.values() for number in numbers}) == list(range(3 * vectors))
    route = routing.route_of(jnp.arange(3 * vectors, dtype=jnp.float32)[None, :, None], read)
    for layer, numbers in read.items():
        np.testing.assert_array_equal(route(layer, images(), images()), np.reshape(numbers, (1, 3, 1)))


def test_only_what_is_chosen_is_synthesized(config):
    model, variables = initialized(config, synthesize=("depthwise",), synthesize_from_block=1)
    assert model.synthesized == ("block01/depthwise",)
    specialist = variables["params"]["specialist"]
    assert specialist["block01"]["depthwise"]["bases"].shape == (config.model.num_bases, 5, 5, 24)
    assert "kernel" in specialist["block00"]["depthwise"]
    assert "kernel" in specialist["block01"]["expand"]


def test_every_basis_is_drawn_with_the_fan_of_one_kernel(config):
    _, variables = initialized(config, num_bases=64)
    bases = np.asarray(variables["params"]["specialist"]["block01"]["project"]["bases"])
    assert bases.shape == (64, 24, 16)
    np.testing.assert_allclose(bases.std(), (2 / 16) ** 0.5, rtol=0.05)
    assert np.abs(np.corrcoef(bases.reshape(64, -1)) - np.eye(64)).max() < 0.3


def test_bfloat16_computes_what_float32_does(config):
    model, variables = initialized(config)
    half, _ = initialized(config, dtype="bfloat16")
    assert all(
        leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half.init(jax.random.key(0), images(), train=False))
    )
    expected, got = apply(model, variables, images()), apply(half, variables, images())
    assert got.logits_BxK.dtype == jnp.float32
    scale = np.abs(expected.logits_BxK).max()
    np.testing.assert_allclose(got.logits_BxK, expected.logits_BxK, atol=0.05 * scale)
    assert np.abs(got.logits_BxK - expected.logits_BxK).max() > 1e-6 * scale, "bfloat16 was not used"


@pytest.mark.parametrize(("act", "gate"), [("relu", "hard_sigmoid"), ("swish", "sigmoid")])
def test_squeeze_excite_equals_numpy(act, gate):
    """MobileNetV3's and EfficientNet's."""
    functions = {
        "relu": lambda x: np.maximum(x, 0),
        "swish": lambda x: x / (1 + np.exp(-x)),
        "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    }
    rng = np.random.default_rng(0)
    x, module = rng.normal(size=(2, 3, 4, 8)).astype(np.float32), SqueezeExcite(6, act, gate)
    weights = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), module.init(jax.random.key(0), x)["params"]
    )
    hidden = functions[act](x.mean((1, 2)) @ weights["reduce"]["kernel"] + weights["reduce"]["bias"])
    scale = functions[gate](hidden @ weights["expand"]["kernel"] + weights["expand"]["bias"])
    got = module.apply({"params": weights}, x)
    np.testing.assert_allclose(got, x * scale[:, None, None, :], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("block", "adds"), [(Block(kernel=3, expand=1, out=1, act="relu"), 1.0), (PlainBlock(out=1), 0.0)]
)
def test_a_kind_of_block_may_refuse_the_addition(block, adds):
    """With every norm's scale at zero, what is left of a block is its input, or nothing."""
    module = Residual(block)
    variables = module.init(jax.random.key(0), images(), routing.static_route, train=False)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 if path[-1].key == "scale" else leaf, variables
    )
    got = module.apply(variables, images(), routing.static_route, train=False)
    np.testing.assert_array_equal(got, adds * images())


@pytest.mark.parametrize("depthwise", [False, True])
def test_symmetric_padding_is_the_mirror_image_of_the_other(depthwise):
    """Where a stride leaves one pixel over, TensorFlow pads it after and PyTorch before."""
    rng = np.random.default_rng(0)
    shape = (3, 3, 5) if depthwise else (3, 3, 5, 7)
    x, kernel = rng.normal(size=(2, 8, 6, 5)).astype(np.float32), rng.normal(size=shape).astype(np.float32)

    def convolved(x, kernel, padding):
        layer = Convolution(shape[-1], side=3, stride=2, depthwise=depthwise, padding=padding)
        return layer.apply({"params": {"kernel": kernel}}, x)

    mirrored = convolved(x[:, ::-1, ::-1], kernel[::-1, ::-1], "same")[:, ::-1, ::-1]
    np.testing.assert_allclose(convolved(x, kernel, "symmetric"), mirrored, rtol=1e-4, atol=1e-5)
    assert not np.allclose(convolved(x, kernel, "same"), mirrored, atol=1e-2)


def test_a_backbone_normalizes_its_images(config):
    """Weights that were trained on other numbers than [-1, 1] get the numbers that they know."""
    model, variables = initialized(config, routing="static")
    backbone, conventions = model.specialist, Conventions(input_mean=(0.2,), input_std=(0.5,))
    table = dataclasses.replace(backbone.architecture, conventions=conventions)
    weights = {name: tree["specialist"] for name, tree in variables.items()}

    def logits(backbone, x):
        return jax.jit(lambda v, x: backbone.apply(v, x, routing.static_route, train=False).logits_BxK)(weights, x)

    got, expected = logits(backbone.clone(architecture=table), images()), logits(backbone, (images() - 0.2) / 0.5)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    colours = dataclasses.replace(table, conventions=Conventions(input_mean=(0.1, 0.2, 0.3)))
    with pytest.raises(UserError, match="1 channels do not fit a backbone that normalizes 3"):
        logits(backbone.clone(architecture=colours), images())
