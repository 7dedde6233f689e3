"""Command lines and config values: one sentence and a code, never a traceback, a hang or half a file."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basisnet_jax import config as config_lib
from tests.conftest import make_manifest
from tests.system.test_fuzz import fuzz

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f"--config={ROOT}/configs/digits.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(arguments, whole=False) -> (exit code, what was printed), in a process of its own."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")), "PYTHONPATH": str(ROOT)}
    elsewhere = tmp_path_factory.mktemp("elsewhere")  # commands may write where they are
    command, pipes = (
        [sys.executable, ROOT / "tests" / "system" / "command_lines.py"],
        {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE},
    )
    with subprocess.Popen(command, **pipes, text=True, env=environment, cwd=elsewhere) as process:

        def run(arguments, whole=False):
            process.stdin.write(json.dumps({"arguments": arguments, "whole": whole}) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            return answer["code"], answer["text"]

        yield run
        process.stdin.close()


def check(code, text, arguments):
    """The rule of this file, for a command that ended."""
    told = f"{arguments} ended with {code}:\n{text}"
    assert code in (0, 2), told
    assert "Traceback" not in text, told
    sentences = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(sentences) == (1 if code else 0), told
    if code:
        assert text.rstrip().splitlines()[-1] == sentences[0], told


FIELDS = config_lib.flatten(config_lib.default())
ODD = (
    *("", " ", "0", "-1", "1", "2", "3", "17", "1.5", "-0.0", "0.999", "nan", "inf", "-inf", "1e308", "1e-320"),
    *("1e400", "2147483648", "99999999999999999999999", "0x10", "True", "None", "()", "(1,)", "('blocks',)"),
    *("('blocks','x')", "[]", "{}", "'", '"', "a b", "a\nb", "\x1b[31m", "\x7f", "\xe9", "\U0001d518", "%s"),
    *("{x}", "../..", "/dev/null", "/proc/1/x", "x" * 5000, "__import__('os').getcwd()", "train[:0]"),
    *("train[5:2]", "train[:-9999]", "train[::", "train+test", "all", "mnist", "folder", "efficientnet_lite0"),
    *("task", "static", "dynamic", "exponential", "bfloat16", "label"),
)
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
VALUES = st.one_of(st.sampled_from(ODD), WORDS, st.integers().map(str), st.floats().map(str))
OVERRIDES = st.builds("--config.{}={}".format, st.sampled_from(list(FIELDS)), VALUES)


@pytest.mark.parametrize("field", FIELDS)
def test_any_value_of_any_field(run, field):
    @fuzz(4)
    @given(VALUES)
    def fuzzed(value):
        arguments = [CONFIG, f"--config.{field}={value}"]
        check(*run(arguments), arguments)

    fuzzed()


FLAGS = {
    "config": st.sampled_from(
        [
            f"{ROOT}/configs/digits.py",
            f"{ROOT}/configs",
            "/dev/null",
            f"{ROOT}/README.md",
            "nowhere.py",
            "",
            "x:y",
            "a.py:b",
        ]
    ),
    "workdir": st.sampled_from(
        ["", ".", "/dev/null", "/dev/null/x", "/proc/x", "y" * 300, "~nobody/x", "é", "gs://", "run"]
    ),
    "mode": st.sampled_from(
        ["train", "finetune", "evaluate", "predict", "cost", "teacher", "compile", "export", "", "Train", "fly"]
    ),
    "images": st.sampled_from(["", "*", "**", "[", "/proc/self/mem", "README.md", "nowhere/*.jpg"]),
    "format": st.sampled_from(["table", "csv", "json", "xml", ""]),
    "topology": st.sampled_from(["v5e:2x4", "v5e", "v9:1", "v5e:0x4", "v5e:999999x4", ":", "v4:2x2", "é", ""]),
    "what": st.sampled_from(["train", "eval", ""]),
    "coordinator": st.sampled_from(["", "localhost", "localhost:1", "x:y:z"]),
    **dict.fromkeys(
        ("threshold", "slices", "per_chip_batch", "fit", "price", "stopped_code", "connect_seconds", "verbosity"),
        VALUES,
    ),
}
ARGUMENT = st.one_of(
    st.sampled_from(list(FLAGS)).flatmap(lambda name: FLAGS[name].map(lambda value: f"--{name}={value}")),
    OVERRIDES,
    st.builds("--config.{}={}".format, WORDS, VALUES),
    st.builds("--{}={}".format, WORDS, VALUES),
    st.builds("--{}".format, WORDS),
    WORDS,
)


def test_any_command_line(run, tmp_path, config):
    data = f"--config.data.dir={config.data.dir}"

    @fuzz(60)
    @given(st.booleans(), st.lists(ARGUMENT, max_size=4))
    def fuzzed(runnable, arguments):
        arguments = [*([CONFIG, f"--workdir={tmp_path / 'run'}", data] if runnable else []), *arguments]
        check(*run(arguments, whole=True), arguments)
        assert not list((tmp_path / "run").glob("*.partial"))

    fuzzed()


def test_a_workdir_alone_is_enough_with_other_settings_beside_it(run, tmp_path, config):
    """The run's own config.json is the config, in every mode; an export's in those that take one."""
    folder, digits = tmp_path / "a", config_lib.default()
    digits.data.dir = config.data.dir
    (folder / "export").mkdir(parents=True)
    (folder / "config.json").write_text(digits.to_json())
    manifest = make_manifest(config=json.loads(digits.to_json()))
    (folder / "export" / "manifest.json").write_text(json.dumps(manifest.to_json()))
    workdir, export = f"--workdir={folder}", f"--workdir={folder}/export"
    (tmp_path / "flags").write_text(f"--mode=cost\n{workdir}\n")
    other = f"{folder} holds a run with another config (seed was 0 and is 1); leave these settings as they were"
    for arguments, words in {
        (workdir, "--mode=cost", "--config.eval.exit_rate=0.25"): "average, 25.0% of images exit early",
        (f"--config={folder}/config.json", "--mode=cost", "--config.eval.exit_rate=0.25"): "average, 25.0% of images",
        (f"--flagfile={tmp_path}/flags", "--config.eval.exit_rate", "0.25"): "average, 25.0% of images exit early",
        (workdir, "--config.data.threads=1"): "",  # it trains, and ends before the first step
        (workdir, "--config.seed=1"): f"{other}, or give another --workdir: with --config.model.specialist.start_from=",
        (f"--config={folder}/config.json", "--config.seed=1"): other,
        (workdir, "--mode=evaluate", "--config.seed=1"): other,
        (workdir, "--mode=export", "--config.seed=1"): other,
        (workdir, "--mode=predict", "--images=x", "--config.seed=1"): other,
        (workdir, "--mode=evaluate", "--config.evil.ema=1"): "did you mean config.eval.ema?",
        (workdir, "--mode", "evaluate", "--config.eval.coefficients=mean"): "config.eval.coefficients = ('mean',)",
        (workdir, "--mode=teacher"): "config.distill.cache = '': must name the folder",
        (workdir, "--mode=compile", "--config.seed=-1", "--topology=v5e:2x4"): "config.seed = -1: must be at least 0",
        (export, "--mode=evaluate", "--config.seed=1"): "holds a run with another config (seed was 0 and is 1)",
        (export,): f"{export} is an export; give the --workdir of a run",
        (f"--config={folder}/export/manifest.json",): f"{folder}/export is an export; give another --workdir",
        ("--config.seed=1",): "--config is missing",
    }.items():
        code, text = run(list(arguments), whole=True)
        assert words in text, (arguments, text)
        check(code, text, arguments)
    assert {path.name for path in folder.iterdir()} == {"config.json", "export", "cost.json"}
