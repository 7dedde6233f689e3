"""One run at a time in a workdir."""

import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
from etils import epath

from basisnet_jax import config as config_lib
from basisnet_jax import workdir
from basisnet_jax.errors import UserError

HOLD = """
import sys, time
from etils import epath
from basisnet_jax import config, workdir
with workdir.opened(config.default(), epath.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_run_is_refused_until_the_first_is_gone_however_it_went(tmp_path):
    folder = epath.Path(tmp_path / "run")
    holding = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
    assert holding.stdout.readline() == "held\n"
    told = rf"another run is under way in {re.escape(str(folder))} \(process {holding.pid} on .+\); wait for its end"
    with pytest.raises(UserError, match=told), workdir.opened(config_lib.default(), folder):
        pass
    holding.send_signal(signal.SIGKILL)
    holding.wait()
    with workdir.opened(config_lib.default(), folder):
        # Nor do children that outlive a killed run hold it.
        child = multiprocessing.get_context("spawn").Process(target=signal.pause)
        child.start()
    try:
        with workdir.opened(config_lib.default(), folder):
            pass
    finally:
        child.kill()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(workdir.fcntl, "flock", flock)
    with workdir.opened(config_lib.default(), epath.Path(tmp_path)):
        assert "cannot be locked (Operation not supported); see to it that no other run uses it" in caplog.text


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"7", b""])
def test_a_config_that_is_none_is_refused_and_kept(tmp_path, content):
    path = pathlib.Path(tmp_path / "config.json")
    path.write_bytes(content)
    with (
        pytest.raises(UserError, match="is no config; give another --workdir, or remove it"),
        workdir.opened(config_lib.default(), epath.Path(tmp_path)),
    ):
        pass
    assert path.read_bytes() == content
