"""docs/samples/: the code to paste answers as basisnet_jax.runtime does.

The samples in ONNX need the extra `onnx`, and npm's onnxruntime-node in node_modules/; `make test-extras` has both. The
sample in C++ needs g++, and in LITERT_HEADERS the folder of LiteRT's headers.
"""

import importlib.util
import json
import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import types

import ai_edge_litert
import numpy as np
import pytest
from etils import epath

from basisnet_jax.export.package import write_rule
from basisnet_jax.runtime import TwoStageClassifier
from basisnet_jax.serving import zoo
from basisnet_jax.serving.exit_rule import CRITERIA, ChosenRule, ExitRule
from basisnet_jax.serving.tflite import LiteRTStage
from tests.system.doc_commands import ROOT

SAMPLES = ROOT / "docs" / "samples"
IMAGES = 8
ANSWERS = list[tuple[str, str, float]]  # class, stage, probability


def with_rule(source: pathlib.Path, folder: pathlib.Path, criterion: str) -> tuple[pathlib.Path, np.ndarray, ANSWERS]:
    """Returns a copy of an export, images of which the preview answers half, and the runtime's answers."""
    folder = shutil.copytree(source, folder / "export")
    classifier = TwoStageClassifier.from_export(str(folder), threshold=0.5)
    shape = (IMAGES, classifier.side, classifier.side, classifier.channels)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    assert classifier.first_stage is not None
    rule = ExitRule(criterion, temperature=1.3)
    middle = float(np.median(rule.confidence(classifier.first_stage(images)[0])))
    write_rule(epath.Path(folder), ChosenRule(ExitRule(criterion, 1.3, middle)))
    answers = TwoStageClassifier.from_export(str(folder)).classify(images)
    assert answers.exited_early.sum() == IMAGES // 2
    stages = ["preview" if early else "specialist" for early in answers.exited_early]
    labels = [classifier.classes[label] for label in answers.labels]
    return folder, images, list(zip(labels, stages, answers.probabilities.tolist(), strict=True))


def assert_same(printed: str, expected: ANSWERS) -> None:
    rows = [line.split("  ") for line in printed.splitlines()]
    assert [(label, stage) for label, _, stage in rows] == [(label, stage) for label, stage, _ in expected]
    assert [float(row[1]) for row in rows] == pytest.approx([answer[2] for answer in expected], abs=2e-4)


class SessionOfLiteRT:
    """Runs the .tflite file beside an .onnx file that is not there, by ONNX Runtime's names."""

    def __init__(self, path: pathlib.Path):
        self.stage = LiteRTStage(path.with_suffix(".int8_weights.tflite").read_bytes())

    def run(self, names, feed):
        outputs = dict(zip(("logits", "coefficients"), self.stage(*feed.values()), strict=False))
        return [outputs[name] for name in names]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_python_answers_as_the_runtime(criterion, tmp_path, monkeypatch, capsys):
    folder, images, expected = with_rule(pathlib.Path(zoo.folder_of("digits")), tmp_path, criterion)
    np.save(tmp_path / "pixels.npy", images)
    monkeypatch.setitem(sys.modules, "onnxruntime", types.SimpleNamespace(InferenceSession=SessionOfLiteRT))
    monkeypatch.setattr(sys, "argv", ["two_stage_onnx.py", str(folder), str(tmp_path / "pixels.npy")])
    runpy.run_path(str(SAMPLES / "two_stage_onnx.py"), run_name="__main__")
    assert_same(capsys.readouterr().out, expected)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_javascript_measures_confidence_as_the_rule_does(criterion):
    if not (node := shutil.which("node")):
        pytest.skip("Node.js is not installed")
    logits = np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32) * 3
    program = (
        f"import {{ confidence }} from {json.dumps(str(SAMPLES / 'two_stage_onnx.mjs'))};"
        f"const rule = {{ criterion: '{criterion}', temperature: 0.7 }};"
        f"console.log(JSON.stringify({json.dumps(logits.tolist())}.map((x) => confidence(x, rule))));"
    )
    done = subprocess.run([node, "--input-type=module", "-e", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == pytest.approx(ExitRule(criterion, 0.7).confidence(logits).tolist(), abs=1e-6)


@pytest.mark.skipif(not importlib.util.find_spec("tf2onnx"), reason="pip install -e '.[onnx]'")
@pytest.mark.parametrize("language", ["python", "javascript"])
def test_onnx_runtime_answers_as_litert(language, exported, tmp_path):
    folder, images, expected = with_rule(exported[0], tmp_path, "margin")
    np.save(tmp_path / "pixels.npy", images)
    images.tofile(tmp_path / "pixels.raw")
    if language == "python":
        command = [sys.executable, SAMPLES / "two_stage_onnx.py", folder, tmp_path / "pixels.npy"]
    else:
        if not (shutil.which("node") and (ROOT / "node_modules" / "onnxruntime-node").exists()):
            pytest.skip("Node.js or node_modules/onnxruntime-node is not installed")
        command = ["node", SAMPLES / "two_stage_onnx.mjs", folder, tmp_path / "pixels.raw"]
    assert_same(subprocess.run(command, capture_output=True, text=True, check=True).stdout, expected)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_cpp_answers_as_the_runtime(criterion, tmp_path):
    headers = os.environ.get("LITERT_HEADERS")
    if not (headers and shutil.which("g++")):
        pytest.skip("LITERT_HEADERS does not name the folder of LiteRT's headers, or g++ is not installed")
    folder, images, expected = with_rule(pathlib.Path(zoo.folder_of("digits")), tmp_path, criterion)
    images.tofile(tmp_path / "pixels.raw")
    library, program = pathlib.Path(ai_edge_litert.__file__).parent, tmp_path / "two_stage"
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{headers}", f"-Wl,-rpath,{library}"]
    subprocess.run(["g++", *options, SAMPLES / "two_stage.cc", library / "libLiteRt.so", "-o", program], check=True)
    rule = json.loads((folder / "manifest.json").read_text())["rule"]
    files = [folder / f"{stage}.int8_weights.tflite" for stage in ("preview", "specialist")]
    numbers = [rule["criterion"], str(rule["temperature"]), str(rule["threshold"])]
    command = [program, *files, folder / "labels.txt", *numbers, tmp_path / "pixels.raw"]
    assert_same(subprocess.run(command, capture_output=True, text=True, check=True).stdout, expected)
