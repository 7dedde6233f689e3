"""A static network's weights by torchvision's and timm's names: read back, refused where there is no such network."""

import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from basisnet_jax.config import default, validate
from basisnet_jax.errors import UserError
from basisnet_jax.experiment.model import make_model
from basisnet_jax.export import checks, publishers
from basisnet_jax.export.folded import Network
from basisnet_jax.export.freeze import frozen
from basisnet_jax.models.architectures import ARCHITECTURES, published_by
from basisnet_jax.models.layers import Backbone
from basisnet_jax.models.routing import static_route
from basisnet_jax.models.stages import normalize
from basisnet_jax.weights import naming
from basisnet_jax.weights.conversion import from_publisher, to_publisher
from tests.weights.torch_golden import drawn

CLASSES = 10


def weights_of(init):
    """Variables with all of a network's shapes, and values with which all of the network matters; nothing compiles."""
    leaf_names = {"kernel": "weight", "bases": "weight", "scale": "weight", "var": "running_var"}

    def values(path, leaf):
        *layer, last = (key.key for key in path)
        array = drawn(".".join([*layer, leaf_names.get(last, last)]), leaf.shape[::-1])
        return np.ascontiguousarray(array.T)

    return jax.tree_util.tree_map_with_path(values, jax.eval_shape(init))


def make_network(model, side=8, channels=1):
    pixels = np.zeros((1, side, side, channels), np.float32)
    variables = weights_of(lambda: model.init(jax.random.key(0), pixels, train=False))
    return Network(model, variables, 0.0, side, channels)


# One of each rule of names.
@pytest.mark.parametrize(
    ("publisher", "name"),
    [
        ("torchvision", "mobilenet_v2"),
        ("torchvision", "mobilenet_v3_small"),
        ("timm", "mobilenet_v3_small"),
        ("timm", "resnet18"),
    ],
)
def test_arrays_come_back_as_they_were(publisher, name):
    table = published_by(ARCHITECTURES[name], publisher)
    assert naming.network_of(table, publisher) == naming.NETWORKS[publisher][name][0]
    backbone, images = Backbone(table, CLASSES), np.zeros((1, 32, 32, 3), np.float32)
    variables = weights_of(lambda: backbone.init(jax.random.key(0), images, static_route, train=False))
    arrays = to_publisher(variables, table, publisher)
    jax.tree.map(np.testing.assert_array_equal, from_publisher(arrays, table, publisher, ""), variables)


@pytest.fixture
def tiny_in_timm(monkeypatch):
    """As if timm had the tests' tiny network, with TensorFlow's conventions too."""
    monkeypatch.setitem(naming.NETWORKS["timm"], "tiny", ("tiny", "tf_tiny"))


def test_a_file_is_read_back_before_it_is_written(config, tiny_in_timm, monkeypatch, tmp_path):
    config.model.routing = "static"
    network = make_network(make_model(validate(config).model, CLASSES))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    files, logits = checks.convert_and_check(network, ("timm.safetensors",), [images])
    np.testing.assert_array_equal(logits["timm.safetensors"].specialist, logits["jax"].specialist)
    arrays = safetensors.numpy.load(files["specialist.timm.safetensors"])
    assert arrays["blocks.1.0.conv_pw.weight"].shape == (24, 8, 1, 1)
    assert arrays["conv_head.weight"].shape == (16, 24, 1, 1)
    (tmp_path / "weights").write_bytes(files["specialist.timm.safetensors"])
    with safetensors.safe_open(tmp_path / "weights", "numpy") as file:
        assert file.metadata()["architecture"] == "tf_tiny"
        assert file.metadata()["mean"] == "[0.5]"
    damaged = {**arrays, "classifier.weight": arrays["classifier.weight"] + 1}
    monkeypatch.setattr(publishers, "to_file", lambda *_: safetensors.numpy.save(damaged))
    with pytest.raises(UserError, match=r"specialist.timm.safetensors, run by basisnet_jax, is off by .*was written"):
        checks.convert_and_check(network, ("timm.safetensors",), [images])


def test_a_network_that_a_publisher_lacks_is_told(config, tiny_in_timm):
    network = make_network(make_model(validate(config).model, CLASSES))
    with pytest.raises(UserError, match=r"timm has no network whose kernels depend on the image; freeze the special"):
        publishers.to_file(network, "timm.safetensors")
    config.model.routing = "static"
    network = make_network(make_model(validate(config).model, CLASSES))
    with pytest.raises(UserError, match=r"torchvision has no network like this one \(same padding, .* 0.001, 1 chan"):
        publishers.to_file(network, "torchvision.safetensors")


def frozen_specialist(conventions, channels):
    """MobileNetV3-Small frozen for one place: two bases in each block, mixed by what a preview said."""
    config = default()
    config.model.num_bases = 2
    config.model.specialist.update(backbone="mobilenet_v3_small", resolution=64, conventions=conventions)
    network = make_network(make_model(validate(config).model, CLASSES), side=64, channels=channels)
    shape = jax.eval_shape(network.stages().first, np.zeros((1, 64, 64, channels), np.uint8))[1].shape[1:]
    coefficients = np.random.default_rng(1).dirichlet(np.ones(shape[1]), shape[0])
    return frozen(network, coefficients)


@pytest.mark.parametrize(
    ("name", "conventions", "channels", "theirs"),
    [
        ("timm.safetensors", "", 1, "tf_mobilenetv3_small_100"),
        ("timm.safetensors", "timm", 3, "mobilenetv3_small_100"),
        ("torchvision.safetensors", "torchvision", 3, "mobilenet_v3_small"),
    ],
)
def test_a_frozen_specialist_gives_the_same_logits_there(name, conventions, channels, theirs, tmp_path, monkeypatch):
    """Their library makes the network and reads the file, as the lines in the card say."""
    monkeypatch.setitem(sys.modules, "triton", None)  # PyTorch's CUDA build imports it, which crashes beside TensorFlow
    torch = pytest.importorskip("torch", reason="pip install -e '.[torch-parity]'")
    pytest.importorskip("timm", reason="pip install -e '.[torch-parity]'")
    pytest.importorskip("torchvision", reason="pip install -e '.[torch-parity]'")
    network = frozen_specialist(conventions, channels)
    table = network.model.specialist.architecture
    (tmp_path / f"specialist.{name}").write_bytes(publishers.to_file(network, name))
    lines = publishers.usage(table, name, CLASSES, channels)
    assert theirs in "\n".join(lines)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, channels), np.uint8)
    mean, std = (torch.tensor(x)[:, None, None] for x in publishers.normalization(table.conventions).values())
    names = {"pixels": torch.tensor(images).permute(0, 3, 1, 2), "mean": mean, "std": std}
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.chdir(tmp_path)
        exec("\n".join(lines), names)
    expected = jax.jit(lambda v, x: network.model.apply(v, normalize(x), train=False).logits_BxK)(
        network.variables, images
    )
    largest = np.abs(expected).max()
    np.testing.assert_allclose(names["logits"].numpy(), expected, rtol=1e-4, atol=1e-4 * largest)
