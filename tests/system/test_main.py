"""The command line as a user has it, in processes of its own."""

import os
import pathlib
import platform
import re
import signal
import subprocess
import sys
import time

import pytest

DATED = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
LOG = (
    DATED + r"(basisnet_jax |  (devices|data|preview|specialist|both|training|workdir|note) ).*",
    DATED + r"preparing digits in .*",
    DATED + r"(making the network|opening the event files)",
    DATED + r"epoch \d+/400: compiling, once \(.*\): \d+ s",
    DATED
    + r"epoch \d+/400: [\d,]+ of 32,425 steps, loss [\d.]+, top-1 [\d.]+(, eval [\d.]+)?, [\d,]+ images/s, .* left",
    DATED + r"step [\d,]+, epoch \d+: top-1 [\d.]+, the preview alone [\d.]+, loss [\d.]+",
    r"stopped and saved; the same command resumes from there \(workdir .*\)\.",
)
TINY = "--config=tests/configs/tiny.py"


def command(*arguments):
    return [sys.executable, "-m", "basisnet_jax.main", *arguments]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--config=configs/digits.py", "--config.batchsize=64"), "did you mean config.batch_size?"),
        (("--config=configs/digits.py", "--config.model.num_base=64"), "did you mean config.model.num_bases?"),
        (("--config=configs/digits.py", "--config.batch_size=many"), "batch_size"),
        (("--config=configs/digits.py", "--config.batch_size=0"), "config.batch_size = 0: must be at least 1."),
        (("--config=configs/digits.py", "--config.batch_size=30"), "does not divide over 8 devices; use 24 or 32."),
        (("--config=configs/digits.py", "--confg=1"), "confg"),
        (("--config=configs/digits.py", "--mode=fly"), "fly"),
        (("--config=configs/digits.py", "--mode=compile"), "--mode=compile needs --topology"),
        (("--config=configs/digits.py", "--topology=v5e:2x4"), "use --mode=compile"),
        (
            ("--config=configs/digits.py", "--mode=predict", "--images=x", "--threshold=90"),
            "--threshold=90 is not a probability; give a number from 0 to 1",
        ),
        (("--config=configs/digits.py", "--mode=export", "--threshold=nan"), "--threshold=nan is not a probability"),
        (("--config=configs/digits.py", "--threshold=0.5"), "use --mode=predict or --mode=export, or leave it out"),
        (
            ("--config=configs/digits.py", "--mode=export", "--images=x"),
            "--images is not for --mode=export; use --mode=finetune or --mode=predict",
        ),
        (("--config=configs/digits.py", "extra"), "unknown argument 'extra'"),
        (("--mode=predict", "--model=cats", "--images=x"), "there is no model 'cats'; the models that come along are"),
        (("--mode=predict", "--model=digits", "--images=x"), "leave out --config and --workdir"),
        (("--config=configs/digit.py",), "there is no config file 'configs/digit.py'; did you mean configs/digits.py?"),
        ((), "run has no config.json, so there is no run in it; start one with --config=configs/digits.py"),
        (("--config.seed=1",), "run has no config.json, so there is no run in it"),
        (("--config=configs",), "--config=configs is a folder; give a file, as in --config=configs/digits.py."),
        (("--config=configs/digits.py", "--workdir=/proc/run"), "cannot write to /proc/run"),
        (("--config=configs/digits.py", "--config.data.name=mnist", "--config.data.dir=/nowhere"), "is not prepared"),
    ],
)
def test_a_mistake_costs_one_sentence_and_code_2(arguments, words, tmp_path):
    workdir = () if any("workdir" in argument for argument in arguments) else (f"--workdir={tmp_path / 'run'}",)
    done = subprocess.run(command(*arguments, *workdir), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_help_begins_with_examples_and_version_needs_no_config():
    done = subprocess.run(command("--help"), capture_output=True, text=True, timeout=300)
    head = done.stdout.split("flags:")[0]
    assert head.startswith("Trains, evaluates, uses and exports two-stage image classifiers")
    for mode in ("evaluate", "predict", "export", "cost"):
        assert f"python -m basisnet_jax.main --mode={mode} " in head
    assert "--version: " in done.stdout
    assert "--topology: " not in done.stdout, "a mode's flags are shown with that mode"
    assert done.stderr == ""
    done = subprocess.run(command("--mode=predict", "--help"), capture_output=True, text=True, timeout=300)
    for flag in ("--images: ", "--threshold: ", "--config: "):
        assert flag in done.stdout
    assert "--topology: " not in done.stdout
    assert done.stderr == ""
    done = subprocess.run(command("--version"), capture_output=True, text=True, timeout=300)
    assert re.fullmatch(r"basisnet_jax [\d.]+, JAX [\d.]+, Python [\d.]+\n", done.stdout)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_saves_and_says_so(config, tmp_path):
    run = command(
        "--mode", "train", TINY, f"--workdir={tmp_path}", f"--config.data.dir={config.data.dir}", "--config.epochs=400"
    )
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    del environment["JAX_COMPILATION_CACHE_DIR"]  # the tests' own
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as first:
        wait_for(lambda: any((tmp_path / "checkpoints").glob("[0-9]*")))
        started_with = pathlib.Path(f"/proc/{first.pid}/environ")
        tunables = started_with.read_text() if started_with.exists() else ""
        first.send_signal(signal.SIGINT)
        output, _ = first.communicate(timeout=120)
    assert first.returncode == 0, output
    if platform.libc_ver()[0] == "glibc":
        assert "GLIBC_TUNABLES=" in tunables, "freed memory is kept"
        assert "arena_max" not in tunables, "in several arenas, as training wants it"
    assert "stopped and saved; the same command resumes from there" in output
    lines = [line for line in output.splitlines() if not any(re.fullmatch(pattern, line) for pattern in LOG)]
    assert not lines, "what a log file gets besides a run's own lines"
    assert list((tmp_path / "cache" / "basisnet_jax" / "jax").glob("*/jit_train_step*")), "compiled programs are kept"


def wait_for(condition, seconds=180):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
