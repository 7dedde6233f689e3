"""Every routing: its coefficients against NumPy, and the whole of a run with it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from basisnet_jax import config as config_lib
from basisnet_jax.errors import UserError
from basisnet_jax.evaluation.whole_split import evaluate, predict, summarize
from basisnet_jax.experiment.model import make_model, model_cost
from basisnet_jax.experiment.run import make_experiment
from basisnet_jax.models import routing
from basisnet_jax.models.architectures import ARCHITECTURES, Architecture, Block, ResNetBlock
from basisnet_jax.workdir import checkpoint
from tests.configs.plain_block import PlainBlock

# Every kind of block and of layer that a backbone may have, and every form of a synthesized one: what holds for this
# network holds for any table.
ALL_KINDS = Architecture(
    stem=8,
    stem_stride=1,
    stem_pool=True,
    stem_act="relu",
    blocks=(
        Block(kernel=3, expand=8, out=8, se=True, act="hard_swish"),
        ResNetBlock(sides=(1, 3), middle=8, out=16, stride=2),
        PlainBlock(out=16),
    ),
    head_conv=24,
    head_dense=16,
    head_act="relu",
)
ROUTINGS = ("static", "preview", *routing.ROUTINGS)


@pytest.fixture
def all_kinds(config, monkeypatch):
    """A config of a network with every kind of layer, all of them synthesized."""
    monkeypatch.setitem(ARCHITECTURES, "all_kinds", ALL_KINDS)
    synthesize = ("blocks", "head_conv", "head_dense", "classifier")
    config.model.update(num_bases=3, channel_groups=2, synthesize=synthesize, num_tasks=10)
    config.model.specialist.update(backbone="all_kinds", dropout=0.0)
    config.data.task = "label"  # the answer itself, but the only integer that the digits have
    config.optimizer.update(name="sgd", learning_rate=0.5)
    config.schedule.warmup_epochs = config.warm_start_epochs = 0.0  # what the first step trains is all of it
    return config


# 'static' and 'preview' are tested so in test_train.py.
@pytest.mark.parametrize("name", routing.ROUTINGS)
def test_a_run_with_any_routing(all_kinds, name, tmp_path):
    """Trains, evaluates, is saved and restored, the same on one device and on eight; and lowers for a TPU."""
    all_kinds.model.routing = name
    # Vectors of coefficients for tasks are trained alone.
    all_kinds.optimizer.trained = trained = "routing" if name == "task" else ""
    one, eight = (make_experiment(all_kinds, jax.devices()[:devices]) for devices in (1, 8))
    before = jax.device_get(eight.init_state())
    after, losses = [], []
    for experiment in (one, eight):
        state = jax.device_put(before, jax.tree.map(lambda leaf: leaf.sharding, experiment.abstract_state))
        given = (next(experiment.train_batches(0)), experiment.schedule, None)
        traced = experiment.train_step().trace(state, *given)
        state, metrics = traced.lower().compile()(state, *given)
        after.append(state)
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    old, expected, got = (flatten_dict(state.params.tree(), sep="/") for state in (before, *after))
    for path in old:
        np.testing.assert_allclose(got[path], expected[path], rtol=1e-3, atol=1e-5, err_msg=path)
        assert np.any(got[path] != old[path]) == path.startswith(trained), path

    evaluation = evaluate(eight, eight.eval_step(), after[1])
    assert evaluation["count"] == 37
    predicted = predict(eight, eight.stages.of(after[1].variables(ema=True), 0.0))
    loss = summarize(predicted.logits_NxK, predicted.labels_N).loss
    np.testing.assert_allclose(loss, evaluation["loss"], rtol=1e-5, err_msg="--mode=evaluate and training's evaluation")
    with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, after[1], {})
        checkpoints.wait()
        restored, _ = checkpoints.restore(1, eight.abstract_state)
    jax.tree.map(np.testing.assert_array_equal, restored, after[1])

    for_tpu = traced.lower(lowering_platforms=("tpu",)).as_text()
    groups = {int(count) for count in re.findall(r"feature_group_count = (\d+)", for_tpu)}
    assert groups <= {1, 8}, "a convolution has other groups than channels"


def coefficients(route, layers, **kwargs):
    """({layer: coefficients}, the routing's parameters) of random inputs, {layer: (x, inputs)}."""

    def ask(route):
        return {layer: route(layer, *xs, **kwargs) for layer, xs in layers.items()}

    _, variables = nn.init_with_output(ask, route)(jax.random.key(0))
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), variables)
    return nn.apply(ask, route)(drawn), drawn.get("params", {})


def inputs(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def test_condconv_is_a_sigmoid_of_the_blocks_average_input():
    layers = {
        f"block00/{kind}": (inputs(2, 4, 4, c), inputs(2, 8, 8, 6)) for kind, c in (("expand", 6), ("project", 9))
    }
    layers["classifier"] = (inputs(2, 5), inputs(2, 5))
    got, params = coefficients(
        routing.CondConv(3, tuple(layers)), {**layers, "block01/expand": layers["block00/expand"]}
    )
    assert set(params) == {"block00", "classifier"}, "one dense layer a block"
    assert got.pop("block01/expand") is None, "this layer is plain"
    for layer, (_, block_inputs) in layers.items():
        dense = params[layer.split("/")[0]]
        pooled = block_inputs.reshape(2, -1, block_inputs.shape[-1]).mean(1)
        expected = 1 / (1 + np.exp(-(pooled @ dense["kernel"] + dense["bias"])))
        np.testing.assert_allclose(got[layer], expected[:, None], rtol=1e-5)


@pytest.mark.parametrize(("warm_start", "temperature"), [(1.0, 30.0), (0.5, 15.5), (0.0, 1.0)])
def test_dynamic_is_a_softmax_of_each_layers_average_input(warm_start, temperature):
    layers = {"block00/expand": (inputs(2, 4, 4, 8),) * 2, "head_conv": (inputs(2, 4, 4, 3),) * 2}
    route = routing.Dynamic(4, tuple(layers), start_temperature=30.0)
    got, params = coefficients(route, layers, warm_start=warm_start)
    for layer, (x, _) in layers.items():
        squeeze, scores = (params[f"{layer.replace('/', '_')}_{name}"] for name in ("squeeze", "scores"))
        assert squeeze["bias"].shape == (max(1, x.shape[-1] // 4),)
        hidden = np.maximum(x.mean((1, 2)) @ squeeze["kernel"] + squeeze["bias"], 0)
        expected = softmax((hidden @ scores["kernel"] + scores["bias"]) / temperature)
        np.testing.assert_allclose(got[layer], expected[:, None], rtol=1e-5)


def test_task_reads_the_vector_of_each_images_task():
    layers = {"block00/expand": (inputs(3, 4, 4, 8),) * 2}
    route = routing.Task(4, tuple(layers), temperature=2.0, num_tasks=5)
    got, params = coefficients(route, layers, task_B=jnp.array([3, 0, 3]))
    expected = softmax(params["block00_expand"][[3, 0, 3]] / 2)
    np.testing.assert_allclose(got["block00/expand"], expected[:, None], rtol=1e-5)


@pytest.mark.parametrize("name", routing.ROUTINGS)
def test_groups_of_channels_have_coefficients_of_their_own(name):
    """As if each group were a network with that group's scores."""
    layers = {"block00/expand": (inputs(3, 4, 4, 8), inputs(3, 5, 5, 6))}
    task_B = jnp.array([3, 0, 3])
    grouped = routing.ROUTINGS[name](2, tuple(layers), temperature=2.0, num_tasks=5, channel_groups=3)
    got, params = coefficients(grouped, layers, task_B=task_B)
    assert got["block00/expand"].shape == (3, 3, 2)
    alone = grouped.clone(channel_groups=1)
    for group in range(3):
        # The scores' arrays end in groups x bases; a squeeze before them is every group's.
        of_group = jax.tree_util.tree_map_with_path(
            lambda path, leaf, group=group: leaf if "squeeze" in str(path) else leaf[..., 2 * group : 2 * group + 2],
            params,
        )
        ask = nn.apply(lambda route: route("block00/expand", *layers["block00/expand"], task_B=task_B), alone)
        np.testing.assert_allclose(got["block00/expand"][:, group], ask({"params": of_group})[:, 0], rtol=1e-5)


def test_uniform_is_the_plain_network_of_the_mean_kernels(all_kinds):
    all_kinds.model.routing = "uniform"
    model = make_model(all_kinds.model, num_classes=10)
    all_kinds.model.routing = "static"
    static = make_model(all_kinds.model, num_classes=10)
    images = jnp.asarray(inputs(2, 8, 8, 1))
    variables = jax.jit(lambda: model.init(jax.random.key(0), images, train=False))()
    means = {
        path.replace("/bases", "/kernel"): leaf.mean(0) if path.endswith("/bases") else leaf
        for path, leaf in flatten_dict(variables, sep="/").items()
    }

    def logits(model, variables):
        return jax.jit(lambda v: model.apply(v, images, train=False).logits_BxK)(variables)

    got, expected = logits(model, variables), logits(static, unflatten_dict(means, sep="/"))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_vectors_are_named_by_the_first_layer_that_reads_them(all_kinds):
    all_kinds.model.granularity = "block"
    names = make_experiment(all_kinds, jax.devices()[:1]).vector_names()
    assert names[:3] == ["block00/depthwise 1/2", "block00/depthwise 2/2", "block01/conv1 1/2"]
    all_kinds.model.channel_groups = 1
    assert make_experiment(all_kinds, jax.devices()[:1]).vector_names() == [name[:-4] for name in names[::2]]


def test_a_part_to_train_that_is_not_there_is_named(all_kinds):
    all_kinds.model.routing = "task"
    all_kinds.optimizer.trained = "routin"
    with pytest.raises(
        UserError, match=r"optimizer.trained = 'routin' is not a part of this model; it has routing, specialist"
    ):
        _ = make_experiment(all_kinds, jax.devices()[:1]).abstract_state


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model.synthesize": ("depthwise",)},
            "must be one or more of resnet18's kinds of layers, blocks, conv1, conv2",
        ),
        ({"model.synthesize": ("head_conv",)}, "must be one or more of resnet18's kinds of layers"),
        ({"model.synthesize_from_block": 8}, "must be one of resnet18's blocks, 0 to 7"),
        ({"model.num_bases": 0}, "must be at least 1"),
        ({"model.routing": "task", "data.task": ""}, "data.task = '': must name an integer feature"),
        ({"model.routing": "task", "loss.mix": "cutmix"}, "loss.mix = 'cutmix': would mix images of different tasks"),
    ],
)
def test_what_a_backbone_cannot_serve_is_named(all_kinds, changes, sentence):
    all_kinds.model.update(routing="condconv", synthesize=("blocks",))
    all_kinds.model.specialist.backbone = "resnet18"
    all_kinds.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=re.escape(sentence)):
        config_lib.validate(all_kinds)


@pytest.mark.parametrize(
    ("task", "sentence"), [("image", "is not an integer feature"), ("label", "num_tasks = 2, but an")]
)
def test_a_task_that_the_data_does_not_have_is_named(all_kinds, task, sentence):
    all_kinds.model.update(routing="task", num_tasks=2)
    all_kinds.data.task = task
    with pytest.raises(UserError, match=sentence):
        next(make_experiment(all_kinds).train_batches(0))


@pytest.mark.parametrize("backbone", ["mobilenet_v3_micro", "resnet18", "all_kinds"])
@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("groups", [1, 3])
def test_parameters_are_those_of_the_module(all_kinds, backbone, name, groups):
    """Counted from the tables, against the arrays that Flax makes."""
    all_kinds.model.update(
        routing=name, channel_groups=groups, synthesize=("blocks", "classifier"), synthesize_from_block=2
    )
    all_kinds.model.specialist.update(backbone=backbone, width=0.5)
    model = make_model(all_kinds.model, num_classes=10)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 24, 24, 1)), train=False))
    counted = model_cost(model, 24, channels=1)
    assert counted.parameters == sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
