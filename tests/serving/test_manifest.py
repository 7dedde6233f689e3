"""An export is verified before it serves: what is damaged, incomplete, swapped or foreign gets a sentence."""

import json
import pathlib
import re
import shutil

import cv2
import numpy as np
import pytest

from basisnet_jax import runtime
from basisnet_jax.errors import UserError
from basisnet_jax.inference import TwoStageClassifier
from basisnet_jax.serving.exit_rule import ExitRule
from basisnet_jax.serving.export import Export
from basisnet_jax.serving.image_files import predict_files
from basisnet_jax.serving.manifest import file_facts
from tests.serving.test_exit_rule import CHOSEN

FILES = ("preview.tflite", "specialist.tflite")


def changed(folder, **fields):
    """Gives the manifest other values; a function is given the old one."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, **{k: v(manifest[k]) if callable(v) else v for k, v in fields.items()}}))


def with_hash(folder, name, content):
    """Writes a file, and has the manifest say so."""
    (folder / name).write_bytes(content)
    facts = {"bytes": len(content), "sha256": file_facts(content).sha256, "worst_relative_error": None}
    if name == "labels.txt":
        changed(folder, labels=facts)
    else:
        changed(folder, files=lambda files: {**files, name: facts})


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-9])


def flip(folder):
    content = bytearray((folder / FILES[1]).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / FILES[1]).write_bytes(content)


def swap(folder):
    first, second = (folder / name for name in FILES)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def swap_with_hashes(folder):
    first, second = ((folder / name).read_bytes() for name in FILES)
    with_hash(folder, FILES[0], second)
    with_hash(folder, FILES[1], first)


def directory(folder):
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()


def rule(**provenance):
    content = CHOSEN.to_json()
    return lambda folder: changed(folder, rule={**content, "provenance": {**content["provenance"], **provenance}})


def other_side(folder):
    rule(step=16, resolution=16)(folder)
    changed(folder, input=lambda x: {**x, "side": 16})


def named(name):
    """Gives the manifest a file of another name."""
    return lambda folder: changed(folder, files=lambda files: {**files, name: files[FILES[0]]})


DAMAGES = {
    "manifest_cut": (cut("manifest.json"), r"manifest.json is damaged: it is not JSON"),
    "manifest_empty": (lambda folder: (folder / "manifest.json").write_text(""), "is damaged: it is not JSON"),
    "manifest_list": (lambda folder: (folder / "manifest.json").write_text("[]"), "has schema None, but this version"),
    "manifest_bytes": (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe{"), "it is not JSON"),
    "manifest_folder": (directory, "manifest.json cannot be read"),
    "manifest_missing": (
        lambda folder: (folder / "manifest.json").unlink(),
        "has no manifest.json, so it is not an export",
    ),
    "newer": (lambda folder: changed(folder, schema=3), "has schema 3, but this version reads 2; update basisnet_jax"),
    "older": (lambda folder: changed(folder, schema=None), "has schema None, .* run --mode=export again"),
    "no_files": (lambda folder: changed(folder, files=None), "manifest.json is damaged: it is not what --mode=export"),
    "unknown_field": (lambda folder: changed(folder, other=1), "manifest.json is damaged"),
    "no_madds": (lambda folder: changed(folder, madds={"total": 9}), "manifest.json is damaged"),
    "negative": (lambda folder: changed(folder, step=-1), "manifest.json is damaged"),
    "accuracy_is_text": (lambda folder: changed(folder, accuracy="high"), "manifest.json is damaged"),
    "no_input": (lambda folder: changed(folder, input={}), "manifest.json is damaged"),
    "side_is_text": (lambda folder: changed(folder, input=lambda x: {**x, "side": "8"}), "manifest.json is damaged"),
    "no_rule": (lambda folder: changed(folder, rule=None), "has no threshold; give one, or run --mode=evaluate"),
    "rule_nan": (
        lambda folder: changed(folder, rule=lambda x: {**x, "threshold": float("nan")}),
        "has no exit rule that",
    ),
    "rule_of_other_step": (rule(step=1), "chosen with the moving averages of step 1 .* but the files are of step 16"),
    "rule_of_other_files": (rule(step=16, files={FILES[0]: "0" * 64}), "and another preview.tflite, but the files are"),
    "labels_missing": (lambda folder: (folder / "labels.txt").unlink(), "labels.txt cannot be read"),
    "labels_cut": (cut("labels.txt"), "labels.txt has 11 bytes, but was exported with 20"),
    "labels_of_others": (lambda folder: with_hash(folder, "labels.txt", b"cat\ndog\n"), r"'logits': \(1, 2\)"),
    "labels_control": (
        lambda folder: with_hash(folder, "labels.txt", b"cat\n\x1b[31mdog\n"),
        r"has control characters in the name of class 1, '\\x1b\[31mdog'; rename the class",
    ),
    "madds_of_no_integer": (
        lambda folder: changed(folder, madds={"preview": 1, "total": 10**19}),
        "manifest.json is damaged",
    ),
    "labels_no_text": (lambda folder: with_hash(folder, "labels.txt", b"cat\n\xff\n"), "its byte 4 is not UTF-8"),
    **{
        f"file_named_{name}": (named(name), "names the file .*, but an export's files are in its own folder")
        for name in ("../preview.tflite", "/preview.tflite", "..", "", "a\\preview.tflite", "C:preview.tflite")
    },
    "file_missing": (lambda folder: (folder / FILES[0]).unlink(), "preview.tflite cannot be read"),
    "file_cut": (cut(FILES[1]), "specialist.tflite has .* bytes, but was exported with"),
    "one_bit": (flip, "specialist.tflite is damaged or of another export: its SHA-256 is"),
    "swapped": (swap, "preview.tflite has .* bytes, but was exported with"),
    "swapped_with_hashes": (swap_with_hashes, "the preview in .* has inputs .* but the manifest and labels.txt say"),
    "garbage": (lambda folder: with_hash(folder, FILES[0], b"no model" * 99), "preview.tflite cannot be run by LiteRT"),
    "other_side": (other_side, r"'image': \(1, 16, 16, 1\)"),
}


@pytest.fixture
def export(exported, tmp_path):
    """A copy to damage, with a rule."""
    folder = tmp_path / "export"
    shutil.copytree(exported[0], folder, ignore=shutil.ignore_patterns("*.stablehlo"))
    rule(step=16)(folder)
    np.save(tmp_path / "pixels.npy", np.zeros((2, 8, 8, 1), np.uint8))
    return folder


def run(capsys, *arguments):
    """(exit code, stderr) of the runtime's command line."""
    code = runtime.main(list(map(str, arguments)))
    return code, capsys.readouterr().err


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_export_that_is_not_whole_is_told(export, damage, capsys):
    damaged, message = DAMAGES[damage]
    damaged(export)
    code, error = run(capsys, export, export.parent / "pixels.npy")
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    with pytest.raises(UserError, match=message):
        TwoStageClassifier.from_export(str(export))
    if damage != "manifest_missing":  # without it the folder could be a run's
        with pytest.raises(UserError, match=message):
            TwoStageClassifier.from_folder(str(export))


def test_a_whole_export_serves_by_its_rule(export, capsys):
    assert run(capsys, export, export.parent / "pixels.npy") == (0, "")
    assert TwoStageClassifier.from_folder(str(export)).rule == CHOSEN.rule
    assert runtime.TwoStageClassifier.from_export(str(export), 0.25).rule == ExitRule(threshold=0.25)


def test_a_rule_of_another_kind_of_files_is_warned_of(export, caplog):
    facts = Export.open(str(export)).manifest.files[FILES[0]]
    rule(step=16, files={FILES[0]: facts.sha256})(export)
    opened = Export.open(str(export))
    opened.rule(None, FILES)
    assert not caplog.messages
    opened.rule(None, ["preview.int8.tflite", "specialist.int8.tflite"])
    (message,) = caplog.messages
    assert "was chosen with preview.tflite, but preview.int8.tflite, specialist.int8.tflite are used now" in message


def test_pixels_that_do_not_fit_are_told(export, capsys):
    pixels = export.parent / "pixels.npy"
    images = np.zeros((2, 8, 8, 1), np.uint8)
    np.savez(export.parent / "pixels.npz", images)
    for name, message in (
        ("pixels.npz", "is not a .npy file"),
        ("none.npy", "cannot be read (No such file"),
    ):
        code, error = run(capsys, export, export.parent / name)
        assert code == 2
        assert message in error
        assert "pickle" not in error
    np.save(pixels, images)
    whole = pixels.read_bytes()
    for damaged in (whole[:9], whole.replace(b"{", b"(", 1), b"PK\x03\x04" + whole):
        pixels.write_bytes(damaged)
        code, error = run(capsys, export, pixels)
        assert code == 2
        assert "is not a .npy file of pixels" in error
        assert error.count("\n") == 1
    for array, message in (
        (images / np.float32(255), "pixels of type float32 do not fit; give uint8 from 0 to 255"),
        (images.astype(np.int64), "pixels of type int64 do not fit"),
        (images[0], "is not a batch of images; give images[None]"),
        (images[:, :4], "resize them to (8, 8, 1)"),
        (np.zeros((), np.uint8), "do not fit"),
        (np.array([{}], object), "is not a .npy file of pixels"),
    ):
        np.save(pixels, array, allow_pickle=True)
        code, error = run(capsys, export, pixels)
        assert code == 2
        assert message in error


@pytest.mark.parametrize("threshold", ["90", "nan", "-1"])
def test_a_threshold_that_is_no_probability_is_told(export, threshold, capsys):
    code, error = run(capsys, export, export.parent / "pixels.npy", f"--threshold={threshold}")
    assert code == 2
    assert "is not a probability" in error


def test_the_docs_lead_from_a_photograph_to_an_answer(export, monkeypatch, capsys):
    """The code of docs/guides/deploy.md, as it stands there."""
    page = (pathlib.Path(runtime.__file__).parent.parent / "docs" / "guides" / "deploy.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (from_photo,) = (block for block in blocks if "load_image(" in block)
    folder = export.parent / "runs" / "digits"
    folder.mkdir(parents=True)
    export.rename(folder / "export")
    monkeypatch.chdir(export.parent)
    photo = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)
    cv2.imwrite("photo.jpg", photo)
    exec(from_photo, {})
    (row,), _ = predict_files(TwoStageClassifier.from_folder("runs/digits/export"), "photo.jpg")
    label, _, stage = capsys.readouterr().out.split()
    assert (label, stage) == (row.label, row.stage)
