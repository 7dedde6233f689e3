"""Weights that travel: written, read back without the data set, refused where the two files do not fit."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

import basisnet_jax
from basisnet_jax.errors import UserError
from basisnet_jax.experiment import network_files
from basisnet_jax.inference import TwoStageClassifier
from basisnet_jax.serving.exit_rule import NEVER, ExitRule
from basisnet_jax.serving.formats import CONFIG, WEIGHTS


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
