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
from tests.test_fuzz import fuzz

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = f"--config={ROOT}/configs/digits.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(arguments, whole=False) -> (exit code, what was printed), in a process of its own."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")), "PYTHONPATH": str(ROOT)}
    elsewhere = tmp_path_factory.mktemp("elsewhere")  # commands may write where they are
    command, pipes = (
        [sys.executable, ROOT / "tests" / "command_lines.py"],
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
        ["train", "evaluate", "predict", "cost", "teacher", "compile", "export", "", "Train", "fly"]
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
