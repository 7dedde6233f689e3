"""The folder of a run: it belongs to one config, and to one run at a time."""

import contextlib
import fcntl
import os
import platform
from collections.abc import Callable, Iterator

from absl import logging
from etils import epath

from basisnet_jax.errors import UserError
from basisnet_jax.host import files
from basisnet_jax.host.records import read_object
from basisnet_jax.settings.groups import Settings
from basisnet_jax.workdir import integrity
from basisnet_jax.workdir.results import RunResults
from basisnet_jax.workdir.run_folder import check_same_run

_REWRITTEN = ("config.json", "data.json")  # written at each start of a run, new or resumed
_MADE = (*_REWRITTEN, "trackers.json", "checkpoints", "events", ".lock")  # made before the first step of a run


@contextlib.contextmanager
def opened(config: Settings, folder: epath.Path) -> Iterator[Callable[[], None]]:
    """Makes the folder if it does not exist, locks it for this process alone, and yields a function.

    Call that function once the first step is done. An exception in the context before that call leaves the folder as
    it was: missing, empty, or with the files that it had.

    Raises:
      UserError: the folder cannot be written, another run has it, or it belongs to a run of another config.
    """
    with made(folder):
        had = {name for name in _MADE if (folder / name).exists()}
        with _locked(folder), _as_it_was(folder, had) as begin:
            _check_config(config, folder)
            yield begin


@contextlib.contextmanager
def made(folder: epath.Path) -> Iterator[None]:
    """Makes a folder for results; removes it at the end if it is new and empty.

    Raises:
      UserError: the folder cannot be written.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()] if files.is_local(folder) else []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); give another place with --workdir.") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for path in missing:
                os.rmdir(path)


@contextlib.contextmanager
def _as_it_was(folder: epath.Path, had: set[str]) -> Iterator[Callable[[], None]]:
    """Yields a function; an exception before its call undoes what a run writes before its first step.

    Args:
      folder: a run's.
      had: the names in `_MADE` that the folder had before.
    """
    contents = {name: (folder / name).read_bytes() for name in _REWRITTEN if (folder / name).is_file()}
    begun: list[bool] = []
    try:
        yield lambda: begun.append(True) if not begun else None
    except BaseException:
        if not begun:
            _undo(folder, had, contents)
        raise


def _undo(folder: epath.Path, had: set[str], contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        if (folder / name).read_bytes() != content:
            files.write(folder / name, content)
    for name in _MADE:
        path = folder / name
        if name not in had and path.exists():
            path.rmtree() if path.is_dir() else path.unlink()


def finished(config: Settings, folder: epath.Path) -> RunResults | None:
    """Returns the results if the folder has a finished run of this config; None otherwise.

    Raises:
      UserError: the folder belongs to a run of another config.
    """
    if not (folder / "results.json").exists():
        return None
    _check_config(config, folder)
    try:
        results = RunResults.load(folder)
        newest = integrity.checkpoint_folders(folder / "checkpoints")[-1]
        whole = int(newest.name) == results.step and integrity.damage(newest) is None
    except (OSError, ValueError, LookupError):  # damaged, or the checkpoints are gone
        return None
    return results if whole else None


@contextlib.contextmanager
def _locked(folder: epath.Path) -> Iterator[None]:
    """Locks `.lock` with the operating system's flock, which is released however the process ends.

    Network file systems pass the lock on to other hosts. Buckets have no locks, so nothing is locked there.
    """
    if not files.is_local(folder):
        yield
        return
    with contextlib.ExitStack() as held:
        try:
            lock = -1
            while lock < 0 or not _is_file(lock, folder / ".lock"):  # a refused run removes the file
                lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
                held.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.write(lock, f"process {os.getpid()} on {platform.node()}".encode())
        except BlockingIOError:
            owner = os.read(lock, 1000).decode(errors="replace")
            raise UserError(
                f"another run is using {folder} ({owner}); wait until it ends, stop it, or give another --workdir."
            ) from None
        except OSError as error:
            logging.warning("%s cannot be locked (%s); make sure that no other run uses it", folder, error.strerror)
        yield


def _is_file(descriptor: int, path: epath.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _check_config(config: Settings, folder: epath.Path) -> None:
    if (folder / "manifest.json").exists():
        raise UserError(f"{folder} is an export; give another --workdir.")
    if (folder / "checkpoints").exists() and not (folder / "checkpoints").is_dir():
        raise UserError(f"{folder}/checkpoints is not a folder; give another --workdir, or remove it.")
    way_out = (
        f"leave these settings as they were, or give another --workdir: with "
        f"--config.model.specialist.start_from={folder} (and preview.start_from) a new run starts from these weights"
    )
    try:
        if (folder / "config.json").exists():
            check_same_run(config, read_object(folder / "config.json"), str(folder), way_out=way_out)
        elif (folder / "checkpoints").exists():
            raise UserError(f"{folder} has checkpoints but no config.json; give another --workdir.")
    except OSError as error:
        raise UserError(f"cannot read {folder} ({error.strerror}); give another --workdir.") from None
    except (ValueError, AttributeError):  # not UTF-8, not JSON, or not a dictionary
        raise UserError(f"{folder}/config.json is not a config; give another --workdir, or remove it.") from None
