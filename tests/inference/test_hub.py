"""Weights that travel: written, read back without the data set, refused where the two files do not fit."""

import json
import shutil
import sys

import numpy as np
import pytest
import safetensors.numpy

import basisnet_jax
from basisnet_jax.errors import UserError
from basisnet_jax.experiment import network_files
from basisnet_jax.experiment.trained import load_trained
from basisnet_jax.inference import TwoStageClassifier
from basisnet_jax.serving.exit_rule import NEVER, ExitRule
from basisnet_jax.serving.formats import CONFIG, WEIGHTS
from tests.inference import hub_server


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)


def contents(exported):
    return {name: (exported[0] / name).read_bytes() for name in (WEIGHTS, CONFIG)}


def test_a_pretrained_network_answers_as_its_run(exported, trained, images, tmp_path):
    """From a copy beside no run and no data; half of the images exit."""
    folder = shutil.copytree(exported[0], tmp_path / "copy")
    of_run = TwoStageClassifier.from_checkpoint(str(trained), threshold=0.0)
    confidence = ExitRule().confidence(np.asarray(of_run._run(of_run.first_stage, images)[0]))
    threshold = float(np.sort(confidence)[2:4].mean())
    expected = TwoStageClassifier.from_checkpoint(str(trained), threshold)
    got = basisnet_jax.from_pretrained(str(folder), threshold)
    assert (got.classes, got.side, got.channels, got.crop) == (expected.classes, 8, 1, expected.crop)
    for ours, theirs in zip(got.classify(images), expected.classify(images), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_an_export_of_weights_alone_is_predicted_with(exported, images, tmp_path):
    manifest = json.loads((exported[0] / "manifest.json").read_text())
    manifest["files"] = {name: manifest["files"][name] for name in (WEIGHTS, CONFIG)}
    for name in ("labels.txt", WEIGHTS, CONFIG):
        shutil.copy(exported[0] / name, tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    got = TwoStageClassifier.from_folder(str(tmp_path), NEVER)
    assert not got.classify(images).exited_early.any()


def test_the_arrays_have_the_documented_names(exported):
    arrays = safetensors.numpy.load(contents(exported)[WEIGHTS])
    names = {name.split(".")[0] for name in arrays}
    assert names == {"preview", "coefficients", "specialist"}
    assert {name.split(".")[-1] for name in arrays} == {"kernel", "bases", "bias", "scale", "mean", "var"}
    bases = arrays["specialist.block00.expand.bases"]
    assert bases.shape == (4, 8, 16)
    assert bases.dtype == np.float32
    assert arrays["preview.block01.depthwise_norm.var"].shape == (24,)


def test_an_export_is_a_source_of_weights_as_its_run_is(exported):
    """For a teacher, and for a stage to start from."""
    of_export, of_run = (load_trained(str(folder)) for folder in (exported[0], exported[0].parent))
    assert of_export.fingerprint() == of_run.fingerprint()
    for name in ("model", "resolution", "crop", "channels", "backbones"):
        assert getattr(of_export, name) == getattr(of_run, name)


def changed(files, name, change):
    """The two files, one of them with another content."""
    if name == CONFIG:
        return {**files, name: json.dumps({**json.loads(files[name]), **change}).encode()}
    arrays = {key: x for key, x in {**safetensors.numpy.load(files[name]), **change}.items() if x is not None}
    return {**files, name: safetensors.numpy.save(arrays)}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (CONFIG, {"schema": 99}, "config.json has schema 99, but this version reads 1; update"),
        (CONFIG, {"classes": []}, "config.json is not what --mode=export writes"),
        (CONFIG, {"side": "8"}, "config.json is not what --mode=export writes .side is '8'"),
        (CONFIG, {"classes": ["a", "b"]}, "does not hold the network of config.json: 'preview.classifier.*has shape"),
        (CONFIG, {"model": {"num_bases": "x"}}, "config.json has a model that cannot be read"),
        (CONFIG, {"model": {"routing": "eval"}}, "config.model.routing = 'eval'"),
        (WEIGHTS, {"specialist.stem.kernel": None}, "'specialist.stem.kernel' of shape .3, 3, 1, 8. is missing"),
        (WEIGHTS, {"other": np.zeros(3)}, "its 'other' does not belong there"),
    ],
)
def test_files_that_do_not_fit_are_refused(exported, name, change, message):
    files = changed(contents(exported), name, change)
    with pytest.raises(UserError, match=message):
        network_files.from_files(files.__getitem__)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_file_that_is_cut_off_is_refused(exported, name):
    files = contents(exported)
    with pytest.raises(UserError, match=f"{name} is"):
        network_files.from_files({**files, name: files[name][:100]}.__getitem__)


def test_an_export_without_weights_says_how_to_get_them(exported, tmp_path):
    manifest = json.loads((exported[0] / "manifest.json").read_text())
    del manifest["files"][WEIGHTS]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"has no model.safetensors; run --mode=export with --config.export.formats="):
        basisnet_jax.from_pretrained(str(tmp_path))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in server, which huggingface_hub speaks to as to the hub; its cache is the test's own."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="pip install -e '.[hub]'")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "a-token")
    with hub_server.running() as server:
        yield server


def test_a_network_is_pushed_and_opened_from_the_hub(exported, images, hub):
    folder = str(exported[0])
    url = basisnet_jax.push_to_hub(folder, "somebody/digits", endpoint=hub.endpoint)
    assert url == f"{hub.endpoint}/somebody/digits/commit/{hub.commit('somebody/digits')}"
    pushed = hub.repositories["somebody/digits"]
    assert pushed["README.md"].decode() == hub.cards[0] == (exported[0] / "model_card.md").read_text()
    assert pushed.keys() == {x.name for x in exported[0].iterdir()} - {"model_card.md"} | {"README.md"}
    got = basisnet_jax.from_pretrained("somebody/digits", NEVER, endpoint=hub.endpoint)
    assert sorted(hub.served) == sorted([CONFIG, WEIGHTS, "labels.txt", "manifest.json"])
    expected = basisnet_jax.from_pretrained(folder, NEVER)
    np.testing.assert_array_equal(got.classify(images).probabilities, expected.classify(images).probabilities)
    with pytest.raises(UserError, match=r"'somebody/other' is not a folder, and cannot be read from the hub \("):
        basisnet_jax.from_pretrained("somebody/other", endpoint=hub.endpoint)
    with pytest.raises(UserError, match=r"'runs/of/mine' is not a folder, and cannot be read from the hub \("):
        basisnet_jax.from_pretrained("runs/of/mine", endpoint=hub.endpoint)


def test_the_hub_reads_the_card(exported):
    """With huggingface_hub's own parser: the metadata, and the measured top-1."""
    hub = pytest.importorskip("huggingface_hub", reason="pip install -e '.[hub]'")
    data = hub.ModelCard.load(exported[0] / "model_card.md").data
    assert data.license == "unknown"
    assert data.library_name == "basisnet_jax"
    assert data.datasets == ["digits"]
    reached = json.loads((exported[0] / "manifest.json").read_text())["accuracy"]["top1"]["jax"]
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    expected = {"top-1": reached["specialist"], "top-1 of the preview": reached["preview"]}
    assert found == pytest.approx(expected, abs=1e-6)
    assert {(result.dataset_name, result.dataset_split) for result in data.eval_results} == {("digits", "test[:37]")}


def test_a_folder_that_is_not_whole_is_not_pushed(exported, tmp_path):
    folder = shutil.copytree(exported[0], tmp_path / "copy")
    (folder / WEIGHTS).write_bytes(b"")
    with pytest.raises(UserError, match=r"model.safetensors has 0 bytes"):
        basisnet_jax.push_to_hub(str(folder), "somebody/digits")


def test_without_the_hubs_package_its_extra_is_named(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"huggingface_hub is not installed; run pip install -e '.\[hub\]'"):
        basisnet_jax.from_pretrained("somebody/digits")
