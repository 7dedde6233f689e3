"""Prepared data that is damaged, half prepared or meets a full disk, and folders that change: always a sentence."""

import pathlib
import shutil

import pytest

from basisnet_jax.data import datasets, folder
from basisnet_jax.errors import UserError


@pytest.fixture
def prepared(config, tmp_path):
    """A copy of the prepared digits."""
    return shutil.copytree(config.data.dir, tmp_path / "data")


def one(place, pattern):
    (path,) = place.rglob(pattern)
    return path


def read_all(place):
    data = datasets.open_dataset("digits", str(place), "train", "test")
    return data.train.__getitems__(range(len(data.train)))


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [lambda path: cut(path, 0), lambda path: cut(path, 0.5), lambda path: flip(path, 4000), pathlib.Path.unlink],
    ids=["empty", "cut", "one byte of a block", "missing"],
)
def test_damaged_records_are_told(prepared, harm):
    assert len(read_all(prepared)) == 1297
    harm(one(prepared, "*train*array_record*"))
    with pytest.raises(UserError, match=r"is damaged \(.*\); remove its folder, and the same command prepares it"):
        read_all(prepared)


def test_a_damaged_description_is_told(prepared):
    cut(one(prepared, "dataset_info.json"), 0.5)
    with pytest.raises(UserError, match=r"the description of the data in .* is damaged \(.*\); remove its folder"):
        read_all(prepared)


def test_half_prepared_data_is_told(prepared):
    one(prepared, "dataset_info.json").unlink()
    with pytest.raises(UserError, match="has no splits: its preparation did not end, or"):
        read_all(prepared)


def test_a_disk_that_fills_during_preparation_is_told(tmp_path, monkeypatch):
    """The records' writer raises RuntimeError, not OSError."""

    def full(*_, **__):
        raise RuntimeError('Failed to finalize writing of split "train": write() failed: No space left on device')

    monkeypatch.setattr(datasets.Digits, "download_and_prepare", full)
    with pytest.raises(UserError, match=r"cannot prepare 'digits' .*No space left on device\); make room, or give"):
        datasets.open_dataset("digits", str(tmp_path), "train", "test")


def test_an_image_that_changes_during_a_run_is_told(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "1.png").write_bytes(b"before")
    split, _, _ = folder.open_splits(str(tmp_path), "train", "train", 0.0)
    path = tmp_path / "train" / "a" / "1.png"
    path.write_bytes(b"after")
    assert split.__getitems__([0])[0]["image"] == b"after", "its bytes are read when they are needed"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"cannot read .*1.png \(Is a directory\), which was there when the run began"):
        split.__getitems__([0])
    (tmp_path / "train" / "a" / "2.png").write_bytes(b"new")
    assert len(split) == 2, "a new file waits for the next run"
