"""Weights of other libraries: read, named, and the same logits as theirs."""

import json

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from basisnet_jax.models.architectures import ARCHITECTURES, published_by
from basisnet_jax.models.layers import Backbone
from basisnet_jax.models.routing import static_route
from basisnet_jax.weights import conversion, pretrained
from basisnet_jax.weights.naming import NAMINGS
from tests.weights import torch_golden

GOLDEN = json.loads(torch_golden.PATH.read_text()) if torch_golden.PATH.exists() else {}


def state_dict(publisher, name):
    """Of one of our networks, its names and shapes by our rules, its weights as the golden ones were drawn."""
    table, naming = ARCHITECTURES[name], NAMINGS[publisher]
    backbone, names = Backbone(table, torch_golden.CLASSES), naming.names(table)
    shapes = jax.eval_shape(
        lambda: backbone.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), static_route, train=False)
    )
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        *layer, last = (key.key for key in path[1:] if key.key != "batch_norm")
        shape = conversion._file_shapes(leaf.shape, "/".join(layer), naming)[0]
        arrays[names["/".join(layer), last]] = torch_golden.drawn(names["/".join(layer), last], shape)
    return arrays


def our_logits(publisher, name):
    table = published_by(ARCHITECTURES[name], publisher)
    variables = conversion.from_publisher(state_dict(publisher, name), table, publisher, "")
    return logits_of(table, variables, torch_golden.images())


def logits_of(table, variables, images):
    backbone = Backbone(table, variables["params"]["classifier"]["bias"].size)
    return np.asarray(
        jax.jit(lambda v, x: backbone.apply(v, x, static_route, train=False).logits_BxK)(variables, images)
    )


@pytest.mark.parametrize("network", GOLDEN)
def test_names_are_the_publishers(network):
    """If this fails for a table that you changed, it is no longer theirs; tests/weights/torch_golden.py has theirs."""
    sizes = {name: array.size for name, array in state_dict(*network.split()).items()}
    assert torch_golden.fingerprint(sizes) == GOLDEN[network]["names"]


# One of each rule of names and of each set of conventions; `python -m tests.weights.torch_golden` compares them all.
@pytest.mark.parametrize(
    "network",
    [
        "torchvision mobilenet_v3_small",
        "timm mobilenet_v3_small",
        "torchvision efficientnet_b0",
        "timm mobilenet_v2",
        "torchvision resnet18",
    ],
)
def test_logits_are_those_of_the_publishers_network(network, tmp_path):
    publisher, name = network.split()
    save_file(state_dict(publisher, name), path := tmp_path / "weights.safetensors")
    table = published_by(ARCHITECTURES[name], publisher)
    variables = pretrained.load_file(path, table, name, "specialist")
    expected = np.asarray(GOLDEN[network]["logits"])
    got = logits_of(table, variables, torch_golden.images())
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.fixture
def keras(monkeypatch):
    """Keras on JAX, its weights zeros until they are set: drawing them would compile a program a shape."""
    keras = pytest.importorskip("keras")
    assert keras.backend.backend() == "jax", "tests/conftest.py asks for it"
    zeros = lambda self, shape, dtype=None: np.zeros(shape, np.float32)  # noqa: E731
    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", zeros)
    return keras


@pytest.mark.parametrize(
    ("name", "theirs", "options"),
    [
        ("mobilenet_v2", "MobileNetV2", {}),
        ("mobilenet_v3_large", "MobileNetV3Large", {"include_preprocessing": False}),
        ("mobilenet_v3_small", "MobileNetV3Small", {"include_preprocessing": False}),
        ("efficientnet_b0", "EfficientNetB0", {}),
    ],
)
def test_logits_are_those_of_keras_applications(keras, name, theirs, options, tmp_path):
    side, table = 64, published_by(ARCHITECTURES[name], "keras")
    network = getattr(keras.applications, theirs)(
        weights=None, classes=12, classifier_activation=None, input_shape=(side, side, 3), **options
    )
    rng = np.random.default_rng(0)
    for weight in network.weights:
        weight.assign(keras_drawn(rng, weight.path, weight.shape))
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes with what it was built with until then
    images = rng.uniform(-1, 1, (2, side, side, 3)).astype(np.float32)
    # EfficientNet normalizes pixels from 0 to 255 itself.
    theirs_see = (images + 1) * 127.5 if name == "efficientnet_b0" else images
    trained, others = network.trainable_variables, network.non_trainable_variables
    variables = tuple([weight.value for weight in weights] for weights in (trained, others))
    expected = np.asarray(jax.jit(lambda v, x: network.stateless_call(*v, x)[0])(variables, theirs_see))

    network.save_weights(path := tmp_path / "network.weights.h5")
    loaded = pretrained.load_file(path, table, name, "specialist")
    got = logits_of(table, loaded, images)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    older = pretrained.load_file(as_keras_2_saves(network, tmp_path / "network.h5"), table, name, "specialist")
    jax.tree.map(np.testing.assert_array_equal, older, loaded)


def keras_drawn(rng, path, shape):
    """Weights with which all of the network matters: its norms are far from the identity."""
    layer, last = path.split("/")[-2:]
    if layer.startswith("normalization"):
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        return {"mean": mean, "variance": std**2, "count": np.array(0)}[last].reshape(shape)
    if "kernel" in last:
        fan_in = np.prod(shape[:2]) if shape[-1] == 1 else np.prod(shape[:-1])
        return rng.normal(size=shape) * (2 / fan_in) ** 0.5
    return rng.uniform(0.5, 1.5, shape) if last in ("gamma", "moving_variance") else rng.uniform(-0.2, 0.2, shape)


def as_keras_2_saves(network, path):
    """The layout of the files from which keras.applications reads its published weights."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in network.layers]
        for layer in network.layers:
            group = file.create_group(layer.name)
            depthwise = "depthwise_" if type(layer).__name__ == "DepthwiseConv2D" else ""
            names = [f"{layer.name}/{depthwise}{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, layer.weights, strict=True):
                group[name] = weight.numpy()
    return path
