"""benchmarks/gpu_check.py runs to its end on a CPU, so that a typo costs no GPU time, and tells right from wrong."""

import dataclasses
import importlib
import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packaging.requirements import Requirement

from basisnet_jax.errors import UserError

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(BENCHMARKS))
    import gpu_check
    import gpu_forms
    import gpu_programs
    import gpu_steps
    import gpu_tasks
    import gpu_torch  # noqa: F401
    import gpu_wheels
    import rivals


@pytest.mark.parametrize("section", gpu_check.SECTIONS)
def test_every_section_runs_to_its_end(section, tmp_path, capsys):
    results = gpu_tasks.Results(tmp_path / gpu_tasks.RESULTS)
    sizes = dataclasses.replace(gpu_tasks.TINY, folder=tmp_path)
    gpu_tasks.run_section(section, gpu_check.SECTIONS[section].tasks, sizes, results)
    rows = results.all()
    assert rows
    assert capsys.readouterr().out.count("\n") == len(rows), "each result is printed, in one line"
    for row in rows:
        assert row["section"] == section
        assert "error" not in row, row["error"]
        assert row.get("right", True), row
        assert row.get("skipped", "not installed").endswith("not installed")
        assert row.get("images_per_second", 1) > 0
        assert row.get("skipped_updates", 0) == 0
    if section == "forms":
        kinds = [row["name"].split()[0] for row in rows]
        assert kinds[:2] == ["a", "parameters,"], "a norm's sums, and vectors of parameters"
        kinds = kinds[2:]
        assert set(kinds) == set(gpu_forms.FORMS)
        assert len(kinds) == 2 * sum(len(forms) for forms in gpu_forms.FORMS.values())


@pytest.mark.parametrize("wrong", [lambda y: 1.03 * y, lambda y: y.at[0, 0, 0, 0].set(jnp.nan)])
def test_a_wrong_form_is_found(wrong):
    layer = gpu_forms.TINY["pointwise 3x3 8->16"]
    form = gpu_forms.FORMS["pointwise"]["batched product"]
    for dtype in gpu_forms.TOLERANCES:
        found = gpu_forms.compared(lambda *inputs: wrong(form(*inputs)), layer, dtype, gpu_tasks.TINY)
        assert not found["right"], found


def test_the_plain_loop_is_the_definition():
    """By NumPy, in float64, pixel after pixel."""
    for layer in gpu_forms.TINY.values():
        side, inputs, outputs, kernel, stride = layer
        x, bases, coefficients, _ = (np.asarray(a, np.float64) for a in gpu_forms.arrays_of(layer, "float32", 2, 3))
        kernels = np.einsum("bn,n...->b...", coefficients, bases)
        kernels = kernels.reshape(2, kernel, kernel, *kernels.shape[-2 if outputs else -1 :])
        out = -(-side // stride)
        before = max((out - 1) * stride + kernel - side, 0) // 2
        expected = np.zeros((2, out, out, outputs or inputs))
        for b, p, q, i, j in np.ndindex(2, out, out, kernel, kernel):
            row, column = p * stride + i - before, q * stride + j - before
            if 0 <= row < side and 0 <= column < side:
                pixel, tap = x[b, row, column], kernels[b, i, j]
                expected[b, p, q] += pixel @ tap if outputs else pixel * tap
        y = gpu_forms.plain_loop(*(jnp.float32(a) for a in (x, bases, coefficients)), stride)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_losses_that_leave_the_cpus_are_found(monkeypatch):
    sizes = dataclasses.replace(gpu_tasks.TINY, loss_steps=1)
    losses = {"cpu": np.array([2.0, 1.0])}
    monkeypatch.setattr(gpu_steps, "losses_of", lambda *_: losses["cpu"])
    (_, float32), *_ = list(gpu_steps.loss_tasks(sizes))
    assert float32()["right"]
    losses["cpu"] = np.array([2.0, 1.05])
    assert not float32()["right"]
    losses["cpu"] = np.array([2.0, np.nan])
    assert not float32()["right"]


FAKE_SECTION = """
import os, sys, time, gpu_tasks, pathlib
results, section = gpu_tasks.Results(pathlib.Path(sys.argv[1])), sys.argv[2]
def tasks(sizes):
    yield "good", lambda: {"right": section != "layers"}
    yield "bad", lambda: 1 / 0 if section == "losses" else {}
    yield "absent", lambda: (_ for _ in ()).throw(gpu_tasks.SkippedError("not here"))
    if section == "blocks": time.sleep(60)
    if section == "digits": os.abort()
gpu_tasks.fake_tasks = tasks
sys.modules.update(dict.fromkeys(["fake", "orbax", "orbax.checkpoint"], gpu_tasks))  # a quick start
gpu_tasks.run_section(section, "fake.fake_tasks", gpu_tasks.TINY, results)
"""


def test_a_section_that_fails_hangs_or_dies_does_not_stop_the_next_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{BENCHMARKS}:{BENCHMARKS.parent}")
    path = tmp_path / gpu_tasks.RESULTS
    command = [sys.executable, "-c", FAKE_SECTION, str(path)]
    results = gpu_tasks.Results(path)
    results.add("devices", "of an earlier run", error="stays, and does not count")
    monkeypatch.setitem(gpu_check.SECTIONS, "blocks", gpu_check.Section("", 1, ""))
    sections = ["losses", "blocks", "layers", "digits", "profile"]
    assert gpu_check.run_all(sections, command, results, minutes=1) == 1
    rows = {(row["section"], row["name"]): row for row in results.all()}
    assert all(rows[section, "good"] for section in sections if section != "blocks")
    assert rows["losses", "bad"]["error"].startswith("ZeroDivisionError")
    assert rows["losses", "absent"]["skipped"] == "not here"
    assert "stopped after" in rows["blocks", "the section"]["error"]
    assert "SIGABRT" in rows["digits", "the section"]["error"]
    last = results.all()[-1]
    assert (last["errors"], last["wrong"]) == (3, 1), "the earlier run's error is not counted"
    assert last["skipped"] >= 4


def test_all_right_is_0_and_a_machine_that_cannot_run_it_2(tmp_path):
    results = gpu_tasks.Results(tmp_path / gpu_tasks.RESULTS)
    assert gpu_check.run_all(["forms"], [sys.executable, "-c", ""], results, 1) == 0
    assert gpu_check.run_all(["devices", "forms"], [sys.executable, "-c", "exit(2)"], results, 1) == 2
    assert len(results.all()) == 1


def test_without_a_gpu_it_says_what_jax_sees(tmp_path):
    results = gpu_tasks.Results(tmp_path / gpu_tasks.RESULTS)
    with pytest.raises(UserError, match=r"JAX sees 8 x CPU \(.*\), no GPU; .*--mode=devices says why, and --tiny "):
        gpu_tasks.run_section("devices", gpu_check.SECTIONS["devices"].tasks, gpu_tasks.FULL, results)


def test_wrong_python_wrong_jax_and_missing_packages_are_sentences(monkeypatch):
    gpu_check.check_installation()
    with pytest.raises(UserError, match=r"Python 3\.10 does not fit; the check needs Python 3\.11 to 3\.13"):
        gpu_check.check_installation((3, 10))
    for version in ("0.9.2", "0.13.0"):
        with monkeypatch.context() as patch:
            patch.setattr(importlib.metadata, "version", lambda name, version=version: version)
            with pytest.raises(UserError, match=rf"JAX {version} does not fit; .*: pip install 'jax\[cuda13\]>=0\.10"):
                gpu_check.check_installation()
    monkeypatch.setattr(gpu_wheels, "MODULES", ("clu", "no_such_package"))
    with pytest.raises(UserError, match=r"^no_such_package not installed; python benchmarks/gpu_wheels\.py"):
        gpu_check.check_installation()


def test_python_of_the_check_is_setup_pys():
    (written,) = re.findall(r'python_requires=">=(3\.\d+),<(3\.\d+)"', (BENCHMARKS.parent / "setup.py").read_text())
    assert tuple(".".join(map(str, version)) for version in gpu_check.PYTHON) == written


# What a bare machine has


def distributions_with_requirements(*names):
    """The normalized names of packages and of all that they require without extras."""
    found, left = set(), list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found:
            continue
        found.add(name)
        for requirement in map(Requirement, importlib.metadata.requires(name) or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)
    return found


def test_the_check_imports_nothing_that_a_bare_machine_and_the_wheels_lack():
    """In a process where every other installed package cannot be imported."""
    there = distributions_with_requirements("jax", "flax", "optax", "orbax-checkpoint") | set(gpu_wheels.NAMES)
    absent = [
        module
        for module, packages in importlib.metadata.packages_distributions().items()
        if not {re.sub(r"[-_.]+", "-", package).lower() for package in packages} & {*there, "basisnet-jax"}
    ]
    assert {"cv2", "tensorflow_datasets", "tensorflow", "grain"} <= set(absent)
    modules = sorted({section.tasks.split(".")[0] for section in gpu_check.SECTIONS.values()})
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({absent!r}))
import gpu_check, gpu_tasks
gpu_check.check_installation()
with gpu_tasks.without_data_modules():
    for name in {modules!r}:
        importlib.import_module(name)
"""
    path = f"{BENCHMARKS}:{BENCHMARKS.parent}"
    run = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_wheels_are_pinned_by_the_lock():
    entries = gpu_wheels.locked(gpu_wheels.NAMES)
    assert re.findall(r"^([a-z-]+)==[\d.]+ \\\n    --hash=sha256:", entries, re.MULTILINE) == sorted(gpu_wheels.NAMES)


# Launches, memory, traces


def test_launches_are_counted_from_the_program():
    """Two products that wait for each other, and a loop of three turns with one fusion."""
    text = """HloModule m

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%p), index=1
  %wrapped = f32[4]{0} fusion(%x), kind=kLoop, calls=%c
  ROOT %t = (s32[], f32[4]{0}) tuple(%i, %wrapped)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %g = f32[4]{0} custom-call(%a), custom_call_target="__cublas$gemm"
  %start = f32[4]{0} all-reduce-start(%g)
  %done = f32[4]{0} all-reduce-done(%start)
  %w = (s32[], f32[4]{0}) while(%init), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %copy = f32[4]{0} copy(%done)
}
"""
    assert gpu_programs.launches(types.SimpleNamespace(as_text=lambda: text)) == 3 + 3


def test_a_trace_is_read_per_step(tmp_path):
    trace = """
planes { name: "/device:GPU:0"
  event_metadata { key: 1 value { id: 1 name: "gemm" } }
  event_metadata { key: 2 value { id: 2 name: "fusion" } }
  lines { name: "Stream #7(Compute)" events { metadata_id: 1 duration_ps: 6000000000 }
          events { metadata_id: 2 duration_ps: 1500000000 } events { metadata_id: 2 duration_ps: 1500000000 } }
  lines { name: "XLA Ops" events { metadata_id: 1 duration_ps: 6000000000 } } }
planes { name: "/host:CPU" lines { name: "Stream" events { metadata_id: 1 duration_ps: 9 } } }
"""
    data = jax.profiler.ProfileData
    (tmp_path / "a.xplane.pb").write_bytes(data.text_proto_to_serialized_xspace(trace))
    read = gpu_steps.read_trace(tmp_path / "a.xplane.pb")
    assert read["kernels_and_copies"] == pytest.approx(3 / gpu_steps.TRACED_STEPS)
    assert read["device_ms"] == pytest.approx(9 / gpu_steps.TRACED_STEPS)
    assert list(read["most_ms"].items()) == [("gemm", pytest.approx(2.0)), ("fusion", pytest.approx(1.0))]


def test_a_further_form_is_found_by_its_setting(monkeypatch):
    """rivals.GPU_KERNELS names the setting; other settings stand in for it here."""
    monkeypatch.setattr(rivals, "GPU_KERNELS", "temperature")
    assert rivals.step_forms() == {"taps": {"temperature": False}, "kernels": {"temperature": True}}
    assert rivals.depthwise_kernels() == {}
    monkeypatch.setattr(rivals, "GPU_KERNELS", "padding")
    assert rivals.depthwise_kernels() == {"kernels": {"padding": True}}
    assert rivals.step_forms() == {"taps": {}}


def test_results_are_appended_and_read_back(tmp_path, capsys):
    results = gpu_tasks.Results(tmp_path / "r.jsonl")
    assert results.all() == []
    results.add("layers", "a", 0.123456, ms=1234.5678, launches=5013, losses=[1.0])
    results.add("layers", "b", error="ValueError: no")
    assert [row["name"] for row in results.all()] == ["a", "b"]
    assert json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])["losses"] == [1.0]
    assert capsys.readouterr().out.splitlines()[0] == "layers    a: ms 1,235, launches 5,013"
