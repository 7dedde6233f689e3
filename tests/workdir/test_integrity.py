"""Checkpoints that a disk has damaged, and disks that are full."""

import errno
import logging
import math
import os
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from basisnet_jax.errors import UserError
from basisnet_jax.host import files
from basisnet_jax.training.state import TrainState
from basisnet_jax.workdir import checkpoint, integrity
from basisnet_jax.workdir.checkpoint import Checkpoints


def state_of(value, size=1000):
    """A state of the same random numbers times a value; random, so that they cannot be compressed."""
    array = value * jax.random.normal(jax.random.key(0), (size,))
    tree = {"a": array, "b": array[:7]}
    return TrainState(jnp.int32(value), tree, {"mean": array[:3]}, tree, {"mean": array[:3]}, ({"mu": array},))


def save(folder, *steps, keep=9, size=1000):
    """Checkpoints of those steps, the top-1 of each a hundredth of it; 30 is the best."""
    with Checkpoints(folder / "checkpoints", keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_of(step, size), {})
            checkpoints.record(step, {"top1": 1.0 if step == 30 else step / 100})


def value(folder, which):
    """Of the state that an evaluation would take."""
    return checkpoint.restore_model(folder, which, ema=True).step


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def all_files(folder):
    return [path for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file()]


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path)


def test_every_damage_to_every_file_is_noticed(folder):
    save(folder, 10)
    place = folder / "checkpoints" / "10"
    # One that a tool other than ours reads.
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", integrity.NAME], cwd=place, check=True)
    assert integrity.damage(place) is None
    checked = [path for path in all_files(place) if path.name not in ("_CHECKPOINT_METADATA", "commit_success.txt")]
    assert len(checked) > 9
    for path in checked:
        content = path.read_bytes()
        for damaged in (content[: len(content) // 2], b"", bytes([content[0] ^ 128]) + content[1:], None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            if path.name != integrity.NAME or damaged is not None:  # without it nothing can be said of a lone one
                assert integrity.damage(place), (path, damaged)
        path.write_bytes(content)
    assert integrity.damage(place) is None


def test_a_run_goes_on_from_the_one_before_and_says_so(folder, caplog):
    save(folder, 10, 20, 30)
    flip(next(path for path in all_files(folder / "checkpoints" / "30" / "state") if path.parent.name == "d"))
    (folder / "checkpoints" / "20" / "evaluation.json").write_text("{")
    (folder / "checkpoints" / "40").mkdir()
    integrity.quarantine_damaged_checkpoints(folder / "checkpoints")
    text = caplog.text
    assert "the checkpoint of step 20 is damaged (evaluation.json differs from its checksum)" in text
    assert "the checkpoint of step 30 is damaged (state/" in text
    assert "the checkpoint of step 40 is damaged (checksums.sha256 is missing)" in text
    assert sorted(path.name for path in (folder / "damaged").iterdir()) == ["20.0", "30.0", "40.0"]
    save(folder, 20, keep=1)  # the steps can be saved again
    with Checkpoints(folder / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [20]
        restored, _ = checkpoints.restore(20, jax.eval_shape(lambda: state_of(0)))
        jax.tree.map(np.testing.assert_array_equal, restored, state_of(20))


def test_where_all_are_damaged_nothing_is_moved(folder):
    save(folder, 10, 20)
    for step in ("10", "20"):
        flip(folder / "checkpoints" / step / "state" / "_METADATA")
    before = all_files(folder)
    with pytest.raises(UserError, match=r"all checkpoints in .* are damaged \(step 10: state/_METADATA differs"):
        integrity.quarantine_damaged_checkpoints(folder / "checkpoints")
    assert all_files(folder) == before


def test_an_evaluation_passes_over_damaged_ones(folder, caplog):
    save(folder, 10, 20, 30, 31)
    assert [value(folder, which) for which in ("best", "newest", "20")] == [30, 31, 20]
    for step in ("30", "31"):
        flip(folder / "checkpoints" / step / "state" / "manifest.ocdbt")
    assert [value(folder, which) for which in ("best", "newest")] == [20, 20]
    assert "the checkpoint of step 30 in" in caplog.text
    for which, told in (
        ("30", r"'30': that checkpoint in .* is damaged; the steps are 10, 20, 30, 31\."),
        ("7", r"'7': .* has no checkpoint of that step; the steps are 10, 20, 30, 31\."),
    ):
        with pytest.raises(UserError, match=told):
            value(folder, which)


def test_a_checkpoint_that_cannot_be_had_is_answered_with_what_can(folder):
    (folder / "checkpoints").mkdir()
    with pytest.raises(UserError, match="has no checkpoint yet; wait until its run has saved one"):
        value(folder, "best")
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(10, state_of(10), {})
    with pytest.raises(UserError, match=r"so there is no best one; use the newest one .* or one of the steps 10\."):
        value(folder, "best")
    flip(folder / "checkpoints" / "10" / "state" / "_METADATA")
    with pytest.raises(UserError, match=r"all checkpoints in .* \(steps 10\) are damaged"):
        value(folder, "newest")


def test_an_evaluation_without_its_checksum_was_not_recorded(folder):
    """As a kill leaves it between the two; and what is recorded twice is listed once."""
    save(folder, 10)
    place = folder / "checkpoints" / "10"
    listed = (place / integrity.NAME).read_text()
    (place / integrity.NAME).write_text(listed.replace("evaluation.json", "another.json"))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        assert checkpoints.evaluation(10) is None
        (place / integrity.NAME).write_text(listed)
        checkpoints.record(10, {"top1": 0.5})
        assert (place / integrity.NAME).read_text().count("evaluation.json") == 1
    assert integrity.damage(place) is None
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.evaluation(10) == {"top1": 0.5}


def test_what_checksums_cannot_tell_costs_a_sentence(folder):
    """As where they were written after the damage, or by no version of ours."""
    save(folder, 10)
    place = folder / "checkpoints" / "10"
    (place / integrity.NAME).unlink()
    assert value(folder, "newest") == 10, "an older version's"
    flip(place / "state" / "manifest.ocdbt")
    with pytest.raises(UserError, match=r"the checkpoint of step 10 in .* cannot be read \("):
        value(folder, "newest")


def test_a_save_that_finds_no_room_is_left_out_with_a_warning(folder, monkeypatch, caplog):
    """Seen before it is tried."""
    save(folder, 10, keep=1)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5_000}))
    with Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(20, state_of(20), {})
        checkpoints.wait()
        needed = sum(leaf.nbytes + 8192 for leaf in jax.tree.leaves(state_of(20)))
        told = f"it needs about {needed:,} bytes, and 5,000 are free ({needed - 5_000:,} are missing)"
        assert told in checkpoints.unsaved
        assert "step 20 is not saved" in caplog.text
        assert checkpoints.latest_step() == 10
        monkeypatch.undo()
        checkpoints.save(30, state_of(30), {})
        checkpoints.wait()
        assert checkpoints.unsaved is None
        assert checkpoints.steps() == [10, 30], "of which one is the newest, and one alone has a top-1"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield epath.Path(place)
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_disk_that_fills_in_mid_save_loses_no_checkpoint(small_disk, monkeypatch, caplog):
    """Orbax meets it in a thread of its own; what it half wrote is removed."""
    save(small_disk, 10, keep=1, size=100_000)
    ballast = small_disk / "ballast"
    with Checkpoints(small_disk / "checkpoints", keep=1) as checkpoints:
        ballast.write_bytes(bytes(checkpoint.shutil.disk_usage(small_disk).free - 500_000))
        monkeypatch.setattr(Checkpoints, "_free_bytes", lambda self: math.inf)
        checkpoints.save(20, state_of(20, 100_000), {})
        monkeypatch.undo()
        checkpoints.wait()
        assert "step 20 is not saved" in checkpoints.unsaved
        assert "the run continues, and the next save may have room" in caplog.text
        assert checkpoints.latest_step() == 10
        assert [path.name for path in (small_disk / "checkpoints").iterdir()] == ["10"]
        ballast.unlink()
        checkpoints.save(30, state_of(30, 100_000), {})
    assert sorted(path.name for path in (small_disk / "checkpoints").iterdir()) == ["10", "30"]
    assert integrity.damage(small_disk / "checkpoints" / "30") is None


def test_other_errors_of_a_save_are_not_taken_for_a_full_disk(folder, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(integrity, "write_checksums", fail)
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(10, state_of(10), {})
    with pytest.raises(OSError, match="Input/output error"):
        checkpoints.wait()
    monkeypatch.undo()
    checkpoints.__exit__(None, None, None)


def test_a_file_is_written_whole_or_not_at_all_with_the_users_permissions(folder, monkeypatch):
    path, old = folder / "results.json", os.umask(0o027)
    try:
        files.write(path, "old")
    finally:
        os.umask(old)
    assert pathlib.Path(path).stat().st_mode & 0o777 == 0o640

    def replace(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="No space left"):
        files.write(path, b"new")
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("results.json", "old")]


@pytest.fixture
def synced(monkeypatch):
    """{inode: its size when it was last brought to disk}."""
    sizes, fsync = {}, os.fsync

    def noted(descriptor):
        fsync(descriptor)
        sizes[os.fstat(descriptor).st_ino] = os.fstat(descriptor).st_size

    monkeypatch.setattr(os, "fsync", noted)
    return sizes


def test_a_checkpoint_is_on_disk_before_it_gets_its_checksums(folder, synced):
    """A power cut must leave the newest checkpoint, since the one before is removed. Orbax's stamp may be lost."""
    save(folder, 10)
    place = folder / "checkpoints" / "10"
    for path in (*all_files(place), *(path for path in pathlib.Path(place).rglob("*") if path.is_dir())):
        if path.name not in (integrity._STAMPED_LATER, "commit_success.txt"):
            assert synced.get(path.stat().st_ino) == path.stat().st_size, f"a power cut would empty {path}"


def test_a_checkpoint_is_read_without_the_files_that_a_power_cut_may_empty(folder):
    save(folder, 10)
    for name in (integrity._STAMPED_LATER, "commit_success.txt"):
        (folder / "checkpoints" / "10" / name).write_text("")
    integrity.quarantine_damaged_checkpoints(folder / "checkpoints")
    with Checkpoints(folder / "checkpoints", 9) as checkpoints:
        assert int(checkpoints.restore(10, state_of(10))[0].step) == 10


def test_a_file_is_on_disk_before_it_has_its_name(folder, synced, monkeypatch):
    replace, before = os.replace, []

    def noted(source, target):
        before.append(synced[os.stat(source).st_ino])
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    files.write(folder / "results.json", "12345")
    assert before == [5]
    assert os.stat(folder).st_ino in synced, "the name, too"


@pytest.fixture(autouse=True)
def absl_reaches_caplog(caplog):
    caplog.set_level(logging.WARNING)
