"""What command lines do when nobody reads what they print any more, as after `| head`."""

import os
import subprocess
import sys

import pytest

from basisnet_jax.host.command_line import exit_quietly_on_broken_pipe

BY_HAND = """
from basisnet_jax.host.command_line import exit_quietly_on_broken_pipe
with exit_quietly_on_broken_pipe():
    {}"""


def run_unread(*arguments, **environment):
    """Into a pipe that has lost its reader."""
    reader, unread = os.pipe()
    os.close(reader)
    command = [sys.executable, *arguments]
    try:
        return subprocess.run(
            command, stdout=unread, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}, timeout=120
        )
    finally:
        os.close(unread)


@pytest.mark.parametrize("module", ["main", "compare", "runtime"])
def test_every_command_line_ends_in_silence(module):
    done = run_unread("-m", f"basisnet_jax.{module}", "--help", PYTHONUNBUFFERED="")
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("what", ["[print(x) for x in range(10**5)]", "print(1)", "print(1), exit(2)"])
def test_much_output_or_little_and_an_exit_code_of_its_own(what, unbuffered):
    done = run_unread("-c", BY_HAND.format(what), PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (141, "")


def test_errors_may_go_into_the_same_pipe():
    """As with `2>&1 | head`."""
    what = "import os, sys; os.dup2(1, 2); sys.stderr.write('1'); print(1)"
    assert run_unread("-c", BY_HAND.format(what), PYTHONUNBUFFERED="").returncode == 141


def test_a_failure_is_not_silenced():
    done = run_unread("-c", BY_HAND.format("print(1), open('nowhere')"), PYTHONUNBUFFERED="")
    assert "No such file or directory: 'nowhere'" in done.stderr


def test_another_broken_pipe_is_an_error():
    with pytest.raises(BrokenPipeError, match="a worker's"), exit_quietly_on_broken_pipe():
        raise BrokenPipeError("a worker's")
