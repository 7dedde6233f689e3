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
from etils.epath import gpath, testing

from basisnet_jax import config as config_lib
from basisnet_jax.errors import UserError
from basisnet_jax.host import files
from basisnet_jax.workdir import integrity, lock
from tests.conftest import run_results

HOLD = """
import sys, time
from etils import epath
from basisnet_jax import config
from basisnet_jax.workdir import lock
with lock.opened(config.default(), epath.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_run_is_refused_until_the_first_is_gone_however_it_went(tmp_path):
    folder = epath.Path(tmp_path / "run")
    holding = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
    assert holding.stdout.readline() == "held\n"
    told = rf"another run is using {re.escape(str(folder))} \(process {holding.pid} on .+\); wait until it ends"
    with pytest.raises(UserError, match=told), lock.opened(config_lib.default(), folder):
        pass
    holding.send_signal(signal.SIGKILL)
    holding.wait()
    with lock.opened(config_lib.default(), folder):
        # Nor do children that outlive a killed run hold it.
        child = multiprocessing.get_context("spawn").Process(target=signal.pause)
        child.start()
    try:
        with lock.opened(config_lib.default(), folder):
            pass
    finally:
        child.kill()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with lock.opened(config_lib.default(), epath.Path(tmp_path)):
        assert "cannot be locked (Operation not supported); make sure that no other run uses it" in caplog.text


def test_checkpoints_that_are_no_folder_are_refused(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(UserError, match="is not a folder"), lock.opened(config_lib.default(), epath.Path(tmp_path)):
        pass


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"7", b""])
def test_a_config_that_is_none_is_refused_and_kept(tmp_path, content):
    path = pathlib.Path(tmp_path / "config.json")
    path.write_bytes(content)
    with (
        pytest.raises(UserError, match="is not a config; give another --workdir, or remove it"),
        lock.opened(config_lib.default(), epath.Path(tmp_path)),
    ):
        pass
    assert path.read_bytes() == content


def test_a_bucket_is_passed_through_and_not_locked(tmp_path, monkeypatch):
    """gs:// by way of epath alone, its functions answered by a local folder as Google's would be."""

    def local(path):
        assert str(path).startswith(("gs://bucket", str(tmp_path))), "a path of the bucket that lost its name"
        return str(path).replace("gs://bucket", str(tmp_path))

    def one(original, path, *rest, **keywords):
        return original(local(path), *rest, **keywords)

    def two(original, path, target, **keywords):
        return original(local(path), local(target), **keywords)

    def named(original, path):
        return [name.replace(str(tmp_path), "gs://bucket") for name in original(local(path))]

    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)  # TensorFlow would ask Google itself
    single = dict.fromkeys(("exists", "isdir", "listdir", "makedirs", "mkdir", "open", "remove", "rmtree", "stat"), one)
    with testing.mock_epath(**single, glob=named, rename=two, replace=two):
        folder = files.absolute("gs://bucket/runs/a")
        for _ in range(2):
            with lock.opened(config_lib.default(), folder), lock.opened(config_lib.default(), folder):
                files.write(folder / "config.json", config_lib.default().to_json())
        for step in ("10", "20"):
            (folder / "checkpoints" / step / "state").mkdir(parents=True)
            files.write(folder / "checkpoints" / step / "state" / "array", step)
            files.write(folder / "checkpoints" / step / "commit_success.txt", "as Orbax does there")
            integrity.write_checksums(folder / "checkpoints" / step)
            assert integrity.damage(folder / "checkpoints" / step) is None
        files.write(folder / "checkpoints" / "20" / "state" / "array", "")
        integrity.quarantine_damaged_checkpoints(folder / "checkpoints")
    found = {str(path.relative_to(tmp_path / "runs" / "a")) for path in tmp_path.rglob("*") if path.is_file()}
    assert "checkpoints/10/state/array" in found
    assert "damaged/20.0/state/array" in found
    assert ".lock" not in found


def test_a_path_is_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    for given, expected in (
        ("gs://bucket/runs/a", "gs://bucket/runs/a"),
        ("runs/a", f"{tmp_path}/runs/a"),
        (f"file://{tmp_path}/runs", f"{tmp_path}/runs"),
        ("~/runs", "/home/someone/runs"),
        ("/runs/../runs", "/runs"),
    ):
        assert os.fspath(files.absolute(given)) == expected


def test_what_a_refused_run_has_rewritten_is_as_it_was(tmp_path):
    """Where it was to be resumed: its files stay, whatever is checked first."""
    saved = config_lib.default().to_json()
    (tmp_path / "config.json").write_text(saved)
    (tmp_path / "events").mkdir()
    folder = epath.Path(tmp_path)

    def run(*, begun):
        with lock.opened(config_lib.default(), folder) as begin:
            files.write(folder / "config.json", "{}")
            files.write(folder / "data.json", "{}")
            (folder / "checkpoints").mkdir()
            if begun:
                begin()
            raise UserError("refused")

    with pytest.raises(UserError, match="refused"):
        run(begun=False)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "events"}
    assert (tmp_path / "config.json").read_text() == saved
    with pytest.raises(UserError, match="refused"):
        run(begun=True)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "events", "data.json", "checkpoints", ".lock"}
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_lock_that_a_refused_run_removes_is_no_lock(tmp_path, monkeypatch):
    """Between another run's opening of the file and its lock, the refused one removes it."""
    folder, flock, removed = epath.Path(tmp_path), lock.fcntl.flock, []

    def remove_and_lock(descriptor, how):
        if not removed:
            removed.append((tmp_path / ".lock").unlink())
        flock(descriptor, how)

    monkeypatch.setattr(lock.fcntl, "flock", remove_and_lock)
    with lock.opened(config_lib.default(), folder):
        assert removed
        with pytest.raises(UserError, match="another run is using"), lock.opened(config_lib.default(), folder):
            pass


def test_a_finished_run_is_known_by_its_results_and_its_last_checkpoint(tmp_path):
    folder, config = epath.Path(tmp_path), config_lib.default()
    assert lock.finished(config, folder) is None
    files.write(folder / "config.json", config.to_json())
    run_results(step=20).save(folder)
    assert lock.finished(config, folder) is None
    (folder / "checkpoints" / "20").mkdir(parents=True)
    integrity.write_checksums(folder / "checkpoints" / "20")
    assert lock.finished(config, folder) == run_results(step=20)
    (folder / "checkpoints" / "21").mkdir()
    integrity.write_checksums(folder / "checkpoints" / "21")
    assert lock.finished(config, folder) is None
    for damaged in ("{", "[]", "7"):
        files.write(folder / "results.json", damaged)
        assert lock.finished(config, folder) is None
    run_results(step=21).save(folder)
    config.seed = 1
    with pytest.raises(UserError, match="seed was 0 and is 1"):
        lock.finished(config, folder)


def test_an_export_is_no_workdir(tmp_path):
    (tmp_path / "manifest.json").touch()
    with pytest.raises(UserError, match="is an export"), lock.opened(config_lib.default(), epath.Path(tmp_path)):
        pass
