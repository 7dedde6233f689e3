"""Compiled programs kept on disk (JAX's persistent compilation cache), so that a run compiles only what is new."""

import os
import pathlib
from typing import Any

import jax
from absl import logging

_CONFIG: Any = jax.config  # not all versions of JAX declare the types of its options
MAX_BYTES = 2**30  # above it, the least recently used programs are deleted first


def use_compilation_cache() -> None:
    """Keeps compiled programs in a folder of the user's cache.

    JAX_COMPILATION_CACHE_DIR names another folder, or none ('').

    The folder is basisnet_jax/jax in $XDG_CACHE_HOME, or in ~/.cache. It has a subfolder for each number of cores that
    a process may use: XLA splits a CPU's loops over the cores when it compiles, and JAX's keys do not contain their
    number. The keys do contain the CPU's instruction sets, so machines with different CPUs can share the folder. If the
    folder cannot be written, a warning says so and the run compiles everything.
    """
    if _CONFIG.jax_compilation_cache_dir is not None:
        return
    folder = _default_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
        _remove_unfinished(folder)
    except OSError as error:
        logging.warning(
            "cannot write to %s (%s), so compiled programs are not kept; give another folder with "
            "JAX_COMPILATION_CACHE_DIR",
            folder,
            error.strerror,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)


def _remove_unfinished(folder: pathlib.Path) -> None:
    """Removes programs that a killed process left unfinished: JAX writes a program, then the time of its last use.

    JAX 0.10 keeps no further program while one lacks its time, and no JAX replaces a program that is cut off.
    """
    for program in folder.glob("*-cache"):
        if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
            program.unlink(missing_ok=True)


def folder() -> pathlib.Path | None:
    """Returns the folder of the compiled programs; None where they are not kept."""
    named = _CONFIG.jax_compilation_cache_dir
    return _default_folder() if named is None else pathlib.Path(named) if named else None


def _default_folder() -> pathlib.Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return pathlib.Path(home, "basisnet_jax", "jax", f"{usable_cores()}-cores").expanduser()


def usable_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compiling() -> str:
    """Returns the text shown while a program is compiled: it says so if the program is kept."""
    kept = _CONFIG.jax_compilation_cache_dir
    return "compiling, once (kept: the next run starts sooner)" if kept else "compiling, once"
