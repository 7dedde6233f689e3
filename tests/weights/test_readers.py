"""Weights files of other libraries that must be refused, and stages that start from those that need not be."""

import re

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from basisnet_jax.errors import UserError
from basisnet_jax.experiment.model import make_model
from basisnet_jax.experiment.trained import start_from, starting_weights
from basisnet_jax.weights import readers
from tests.weights.test_naming import state_dict
from tests.weights.test_pretrained import one_sentence


def refused(path, words):
    with pytest.raises(UserError, match=words) as error:
        readers.read(path)
    one_sentence(error)


def test_safetensors_that_are_damaged_are_refused(tmp_path):
    save_file({"weight": np.ones((8, 9), np.float32)}, path := tmp_path / "weights.safetensors")
    assert readers.read(path)["weight"].shape == (8, 9)
    content = path.read_bytes()
    lies = content.replace(b"[8,9]", b"[9,9]"), content.replace(b'"data_offsets":[0,', b'"data_offsets":[4,')
    huge = (2**40).to_bytes(8, "little") + content[8:]
    for bad in (b"", content[:5], content[:30], content[:-1], huge, *lies):
        assert bad != content
        path.write_bytes(bad)
        refused(path, "cut off, damaged or not what its name says")
    refused(tmp_path / "absent.safetensors", "No such file")


@pytest.fixture
def keras_file(tmp_path):
    """keras_file(write, name): an .h5 file with one layer, into whose group of arrays `write` writes."""

    def make(write, name="network.weights.h5"):
        path = tmp_path / name
        with h5py.File(path, "w") as file:
            write(file.create_group("layers/dense/vars"))
        return path

    return make


def test_keras_files_that_lead_elsewhere_or_lie_are_refused(keras_file, tmp_path):
    numbers = np.ones((3, 2), np.float32)
    good = keras_file(lambda group: group.create_dataset("0", data=numbers), "good.weights.h5")
    np.testing.assert_array_equal(readers.read(good)["layers/dense/vars/0"], numbers)

    def virtual(group):
        layout = h5py.VirtualLayout((3, 2), "f4")
        layout[...] = h5py.VirtualSource(good, "layers/dense/vars/0", (3, 2))
        group.create_virtual_dataset("0", layout)

    def link(to):
        return lambda group: group.__setitem__("0", to)

    for write, words in (
        (link(h5py.ExternalLink(good, "layers/dense/vars/0")), "'0' is not in"),
        (link(h5py.SoftLink("/layers/dense")), "'0' is not in"),
        (virtual, "does not hold its own numbers"),
        (lambda group: group.create_dataset("0", (3,), "f4", external=[(good, 0, 12)]), "its own numbers"),
        (lambda group: group.create_dataset("0", data=["text"]), "its own numbers"),
        (lambda group: group.create_dataset("0", (2**20, 2**10), "f4", chunks=(1, 1)), "larger than a weights file"),
        (lambda group: group.create_group("0"), "is not a dataset"),
        (lambda group: None, "no layers with weights"),
    ):
        refused(keras_file(write), words)
    content = good.read_bytes()
    for bad in (b"", b"text", content[:100], content[: len(content) // 2]):
        good.write_bytes(bad)
        refused(good, "cannot be read|cut off")


def small_basisnet(config):
    """A BasisNet for colour images whose specialist is MobileNetV3-Small, and its variables."""
    config.model.update(routing="preview", num_bases=2, synthesize=("depthwise",), synthesize_from_block=8)
    config.model.specialist.update(backbone="mobilenet_v3_small", width=1.0, resolution=32)
    model = make_model(config.model, num_classes=5)
    images = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def test_a_stage_starts_from_another_librarys_file(config, tmp_path):
    variables, arrays = small_basisnet(config), state_dict("torchvision", "mobilenet_v3_small")
    save_file(arrays, path := tmp_path / "weights.safetensors")
    config.model.specialist.start_from = str(path)
    with pytest.raises(UserError, match=r"--config\.model\.specialist\.conventions=torchvision") as error:
        starting_weights("specialist", config.model.specialist)
    one_sentence(error)
    config.model.specialist.conventions = "torchvision"
    conventions = make_model(config.model, 5).specialist.architecture.conventions
    assert (conventions.padding, conventions.epsilon, len(conventions.input_mean)) == ("symmetric", 1e-3, 3)
    sources = {"specialist": starting_weights("specialist", config.model.specialist)}
    started = start_from(variables, sources, noise=0.0, seed=0)["params"]["specialist"]
    for basis in started["block08"]["depthwise"]["bases"]:
        np.testing.assert_array_equal(basis, arrays["features.9.block.1.0.weight"][:, 0].transpose(1, 2, 0))
    np.testing.assert_array_equal(started["head_dense"]["bias"], arrays["classifier.0.bias"])
    assert not np.any(started["classifier"]["kernel"]), "twelve classes are not five: it is drawn anew"


@pytest.mark.parametrize(
    ("publisher", "name", "width", "sentence"),
    [
        (
            *("torchvision", "mobilenet_v3_large", 1.0),
            "does not hold mobilenet_v3_small of width 1: 'features.1.block.1.fc1.weight' of shape (8, 16, 1, 1) is "
            "missing; the nearest is 'features.",
        ),
        (
            *("torchvision", "mobilenet_v3_small", 0.5),
            "does not hold mobilenet_v3_small of width 0.5: 'features.0.0.weight' has shape (16, 3, 3, 3), "
            "not (8, 3, 3, 3).",
        ),
        (
            *("timm", "mobilenet_v2", 1.0),
            "'conv_stem.weight' has shape (32, 3, 3, 3), not (16, 3, 3, 3).",
        ),
        (
            *("torchvision", "resnet18", 1.0),
            "'conv_stem.weight' of shape (16, 3, 3, 3) is missing; the nearest is 'conv1.weight' of shape (64, ",
        ),
    ],
)
def test_weights_of_another_architecture_are_named(config, tmp_path, publisher, name, width, sentence):
    save_file(state_dict(publisher, name), path := tmp_path / "weights.safetensors")
    config.model.specialist.update(
        backbone="mobilenet_v3_small", width=width, start_from=str(path), conventions=publisher
    )
    with pytest.raises(UserError, match=re.escape(sentence)) as error:
        starting_weights("specialist", config.model.specialist)
    one_sentence(error)
