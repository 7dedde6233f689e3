"""LiteRT in a process of its own: the same answers, and a sentence where that process crashes, hangs or grows."""

import io
import os
import shutil
import signal

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from basisnet_jax import runtime
from basisnet_jax.errors import UserError
from basisnet_jax.serving import isolated, zoo
from basisnet_jax.serving.isolated import IsolatedStage
from basisnet_jax.serving.tflite import LiteRTStage
from basisnet_jax.serving.two_stage import TwoStageClassifier

EXPORT = zoo.folder_of("digits")


def preview():
    with open(f"{EXPORT}/preview.int8_weights.tflite", "rb") as file:
        return IsolatedStage(file.read())


def test_the_answers_are_the_same(capsys, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 24, 24, 1), np.uint8)
    here, there = (TwoStageClassifier.from_export(EXPORT, 0.5, isolated=apart) for apart in (False, True))
    for mine, others in zip(here.classify(images), there.classify(images), strict=True):
        np.testing.assert_array_equal(mine, others)
    np.save(tmp_path / "pixels.npy", images)
    printed = []
    for flags in ([], ["--isolated"]):
        assert runtime.main([EXPORT, str(tmp_path / "pixels.npy"), *flags]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_a_process_that_dies_in_a_call_is_told():
    stage = preview()
    os.kill(stage._process.pid, signal.SIGSEGV)
    with pytest.raises(UserError, match="the export's file cannot be run: LiteRT's process ended with code -11"):
        stage(np.zeros((1, 24, 24, 1), np.uint8))


@pytest.mark.parametrize("images", [1, 1000])  # the pipe holds few: the caller waits while it writes, or while it reads
def test_a_process_that_hangs_is_told(images):
    stage = preview()
    stage._seconds = 0.2
    os.kill(stage._process.pid, signal.SIGSTOP)
    with pytest.raises(UserError, match=r"has not answered for 0.2 seconds"):
        stage(np.zeros((images, 24, 24, 1), np.uint8))


def test_the_current_folder_is_not_imported_from(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit('this file was run')")
    monkeypatch.chdir(tmp_path)
    assert preview()(np.zeros((1, 24, 24, 1), np.uint8))[0].shape == (1, 10)


def test_a_message_that_claims_much_is_refused():
    with pytest.raises(ValueError, match="sends a message of 1099511627776 bytes"):
        isolated._receive(io.BytesIO(isolated._LENGTH.pack(2**40)))


def test_the_process_ends_with_its_stage():
    stage = preview()
    process = stage._process
    assert process.poll() is None
    del stage
    assert process.wait(30) == -signal.SIGKILL


def test_a_file_that_litert_cannot_read_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"."):
        IsolatedStage(b"no model at all" * 100)
    shutil.copytree(EXPORT, tmp_path / "export")
    path = tmp_path / "export" / "specialist.int8_weights.tflite"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="was exported with"):
        TwoStageClassifier.from_export(str(tmp_path / "export"), isolated=True)


def with_a_negative_scale():
    """The preview's file, where the int8 weights of one channel have a scale that XNNPACK refuses."""
    with open(f"{EXPORT}/preview.int8_weights.tflite", "rb") as file:
        content = bytearray(file.read())
    graph = schema.Model.GetRootAs(content).Subgraphs(0)
    for number in range(graph.TensorsLength()):
        tensor = graph.Tensors(number)
        if tensor.Type() == schema.TensorType.INT8 and tensor.Quantization().ScaleLength() > 1:
            tensor.Quantization().ScaleAsNumpy()[0] = -1.0  # a view of the content
            return bytes(content)
    raise AssertionError("no tensor has a scale for each channel")


def test_a_file_that_fails_in_its_first_call_is_told():
    """A scale of a channel that XNNPACK refuses: with its true hash, as whoever made the export can write it."""
    for make in (LiteRTStage, IsolatedStage):
        failing = make(with_a_negative_scale())
        with pytest.raises(UserError, match=r"cannot (be )?run.*scale"):
            failing(np.zeros((1, 24, 24, 1), np.uint8))
