"""What --mode=devices says of a machine, and of what is wrong with it."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from basisnet_jax.errors import UserError
from basisnet_jax.host import accelerator, devices

GPU = accelerator.Gpu(driver=(580, 65), capability=(9, 0))
OLD_GPU = accelerator.Gpu(driver=(470, 82), capability=(7, 0))


def test_the_report_names_versions_devices_memory_and_folders(tmp_path):
    lines, problems = devices.report(str(tmp_path / "data"))
    text = "\n".join(lines)
    assert problems == []
    for words in (
        f"JAX {jax.__version__}",
        "jaxlib ",
        "plugins    none",
        "8 x CPU",
        "GiB on this host",
        "not there yet",
    ):
        assert words in text


def test_folders_that_cannot_be_written_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: pathlib.Path(path) != tmp_path)
    _, (problem,) = devices.report(str(tmp_path))
    assert problem == f"{tmp_path} cannot be written; make it writable, or name another with --config.data.dir."


@pytest.mark.parametrize(
    ("machine", "platform", "words"),
    [
        (accelerator.Machine({}, gpus=(GPU,)), "cpu", f"pip install --upgrade 'jax[cuda13]=={jax.__version__}'."),
        (accelerator.Machine({}, tpu=True), "cpu", f"pip install --upgrade 'jax[tpu]=={jax.__version__}'."),
        (accelerator.Machine({}, gpus=(OLD_GPU,)), "cpu", "but JAX needs at least driver 525.60"),
        (accelerator.Machine({}, gpus=(GPU,)), "gpu", None),
        (accelerator.Machine({}, tpu=True), "tpu", None),
        (accelerator.Machine({}), "cpu", None),
    ],
)
def test_an_accelerator_that_jax_does_not_use_is_told(machine, platform, words, monkeypatch):
    monkeypatch.setattr(accelerator, "look", lambda _: machine)
    told = devices.problems(platform)
    if words is None:
        assert told == []
    else:
        (sentence,) = told
        assert words in sentence


def test_a_gpu_is_read_from_nvidia_smi(tmp_path, monkeypatch):
    """A stand-in for the driver's program."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 550.54.15, 7.5\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert accelerator.read_gpus(devices.nvidia_smi()) == (accelerator.Gpu((550, 54, 15), (7, 5)),)
    monkeypatch.setenv("PATH", "/nowhere")
    assert devices.nvidia_smi() == []


@pytest.mark.parametrize(("platforms", "words"), [("cuda", "JAX_PLATFORMS='cuda' asks for"), ("", "JAX finds no dev")])
def test_no_device_of_the_kind_asked_for_is_told(platforms, words, monkeypatch):
    def none():
        raise RuntimeError("Unable to initialize backend 'cuda': no plugin\nmore")

    monkeypatch.setattr(jax, "devices", none)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    with pytest.raises(UserError, match=words) as error:
        devices.available()
    assert "\n" not in str(error.value)
    _, problems = devices.report("")
    assert str(error.value) in problems


def test_the_mode_needs_no_config_and_a_missing_platform_no_traceback():
    command = [sys.executable, "-m", "basisnet_jax.main"]
    done = subprocess.run([*command, "devices"], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    assert "  devices    8 x CPU" in done.stdout
    environment = {**os.environ, "JAX_PLATFORMS": "cuda"}
    arguments = ["--config=digits", "--workdir=/nonexistent/run"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 2
    assert "error: JAX_PLATFORMS='cuda' asks for devices that JAX does not find" in done.stderr
    assert "Traceback" not in done.stderr
