"""The folder of a run: it belongs to one config, and to one run at a time."""

import contextlib
import fcntl
import json
import os
import platform
from collections.abc import Iterator

import ml_collections
from absl import logging
from etils import epath

from basisnet_jax import files
from basisnet_jax.config import check_same_run
from basisnet_jax.errors import UserError


@contextlib.contextmanager
def opened(config: ml_collections.ConfigDict, folder: epath.Path) -> Iterator[None]:
    """Makes the folder if it is not there, and holds it for this process alone.

    Raises:
      UserError: it cannot be written, another run has it, or it belongs to a run of another config.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); give another place with --workdir.") from None
    with _locked(folder):
        _check_config(config, folder)
        yield


@contextlib.contextmanager
def _locked(folder: epath.Path) -> Iterator[None]:
    """Holds `.lock` by the operating system's flock, which ends with the process, however that ends.

    Network file systems pass it on to other hosts. Buckets know no locks, so there nothing is held.
    """
    if not files.is_local(folder):
        yield
        return
    with contextlib.ExitStack() as held:
        try:
            lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
            held.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.write(lock, f"process {os.getpid()} on {platform.node()}".encode())
        except BlockingIOError:
            owner = os.read(lock, 1000).decode(errors="replace")
            raise UserError(
                f"another run is under way in {folder} ({owner}); wait for its end, stop it, or give another --workdir."
            ) from None
        except OSError as error:
            logging.warning("%s cannot be locked (%s); see to it that no other run uses it", folder, error.strerror)
        yield


def _check_config(config: ml_collections.ConfigDict, folder: epath.Path) -> None:
    if (folder / "checkpoints").exists() and not (folder / "checkpoints").is_dir():
        raise UserError(f"{folder}/checkpoints is no folder; give another --workdir, or remove it.")
    try:
        saved = (folder / "config.json").read_text() if (folder / "config.json").exists() else None
        if saved is not None:
            check_same_run(config, json.loads(saved), str(folder))
        elif (folder / "checkpoints").exists():
            raise UserError(f"{folder} has checkpoints but no config.json to tell whose; give another --workdir.")
    except OSError as error:
        raise UserError(f"cannot read {folder} ({error.strerror}); give another --workdir.") from None
    except (ValueError, AttributeError):  # no UTF-8, no JSON, or no fields
        raise UserError(f"{folder}/config.json is no config; give another --workdir, or remove it.") from None
