"""What JAX can use on this machine, what is wrong with the installation, and what TensorFlow may not use."""

import contextlib
import os
import pathlib
import subprocess
from collections.abc import Sequence

import jax

from basisnet_jax.errors import UserError
from basisnet_jax.host import accelerator, compilation_cache, installed


def available() -> list[jax.Device]:
    """Returns the devices of all processes.

    Raises:
      UserError: there is no device of the kind that JAX_PLATFORMS asks for.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that there is a backend
        platforms = os.environ.get("JAX_PLATFORMS", "")
        reason = next(iter(str(error).splitlines()), "no backend")
        raise UserError(
            f"JAX_PLATFORMS={platforms!r} asks for devices that JAX does not find ({reason}); run "
            "python -m basisnet_jax.main --mode=devices without JAX_PLATFORMS, which says why."
            if platforms
            else f"JAX finds no device ({reason}); set JAX_PLATFORMS=cpu to use the CPU."
        ) from None


def described(devices: Sequence[jax.Device]) -> str:
    """Describes devices, as '8 x TPU v5 lite on 2 hosts'."""
    kind, hosts = devices[0].device_kind, len({device.process_index for device in devices})
    cores = compilation_cache.usable_cores()
    kind = f"CPU ({cores} core{'s' if cores > 1 else ''})" if kind == "cpu" else kind
    return f"{len(devices)} x {kind}" + (f" on {hosts} hosts" if hosts > 1 else "")


def problems(platform: str | None) -> list[str]:
    """Returns a sentence for each problem of the installation, with the command that solves it.

    Args:
      platform: that JAX uses: 'cpu', 'gpu' or 'tpu'; None if JAX finds no device.
    """
    return [*installed.mismatches().values(), *_unused(accelerator.look(nvidia_smi()), platform)]


def nvidia_smi() -> list[str]:
    """Returns the lines in which nvidia-smi describes the GPUs; none where it is not installed."""
    command = ["nvidia-smi", "--query-gpu=driver_version,compute_cap", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return []


def report(data_dir: str) -> tuple[list[str], list[str]]:
    """Describes the machine and the installation.

    Args:
      data_dir: folder of TFDS's prepared data; '' is TFDS's default.

    Returns:
      (lines to print, problems).
    """
    try:
        devices, unusable = available(), []
    except UserError as error:
        devices, unusable = [], [str(error)]
    here = [device for device in devices if device.process_index == jax.process_index()]
    cache = compilation_cache.folder()
    data = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    packages = {"jaxlib": installed.find_installed("jaxlib"), "flax": installed.find_installed("flax")}
    rows = {
        "packages": ", ".join(f"{name} {package.version}" for name, package in packages.items() if package),
        "plugins": ", ".join(f"{name} {version}" for name, version in installed.plugins().items()) or "none",
        "devices": described(devices) if devices else "none",
        "memory": _memory(here),
        "programs": f"{cache} ({_access(cache)})" if cache else "not kept",
        "data": f"{data} ({_access(data)})",
    }
    lines = [installed.versions_line(), *(f"  {name:10} {text}" for name, text in rows.items())]
    unwritable = [
        f"{folder} cannot be written; make it writable, or name another with {variable}."
        for folder, variable in ((cache, "JAX_COMPILATION_CACHE_DIR"), (data, "--config.data.dir"))
        if folder and _access(folder) == "not writable"
    ]
    return lines, [*unusable, *problems(devices[0].platform if devices else None), *unwritable]


def _unused(machine: accelerator.Machine, platform: str | None) -> list[str]:
    """Returns a sentence if the machine has an accelerator that JAX does not use."""
    extra, what = accelerator.best_extra(machine)
    if not (machine.tpu or machine.gpus) or platform == ("tpu" if machine.tpu else "gpu"):
        return []
    if extra == "train":  # the driver or the GPU is too old, as `what` says
        return [f"{what}. Update the driver, or use another GPU."]
    return [f"{what} is here, but JAX does not use it; run {installed.install_jax([extra], f'=={jax.__version__}')}."]


def _memory(devices: Sequence[jax.Device]) -> str:
    """Describes the memory of this process's devices, and of the host."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    limits = [stats["bytes_limit"] for device in devices if "bytes_limit" in (stats := device.memory_stats() or {})]
    device = f"{min(limits) / 2**30:.1f} GiB per device, " if limits else ""
    return f"{device}{host:.1f} GiB on this host"


def _access(folder: pathlib.Path) -> str:
    """Returns whether this process can write into a folder, or could make it."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
        return "not writable"
    return "writable" if there == folder else "not there yet"


def hide_accelerators_from_tensorflow() -> None:
    """Hides GPUs and TPUs from TensorFlow: its first operation would take all memory of a GPU that JAX trains on.

    TensorFlow built for GPUs is what Colab has. Where TensorFlow has run before, what it took stays taken.
    """
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # TensorFlow has run before
        for kind in ("GPU", "TPU"):
            tf.config.set_visible_devices([], kind)
