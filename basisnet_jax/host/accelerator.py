"""Chooses what pip installs on this machine: which extra of setup.py, and whether Python has to restart afterwards.

The notebook imports this module from a checkout, before anything is installed: it needs Python alone.
"""

import dataclasses
import glob
import importlib
import importlib.metadata
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Mapping

JAX = ((0, 10), (0, 13))  # setup.py's range of JAX: from the first, below the second
NUMPY = (2, 0)  # the oldest NumPy of setup.py
# TFDS cannot be imported with this tensorflow-metadata or a newer one beside a protobuf older than that: its generated
# code refuses, and its requirements do not say so. Colab has such a pair, and packages that need the old protobuf.
METADATA = (1, 21)
PROTOBUF = (6,)
OURS = ("clu", "ai-edge-litert")  # packages that this project's extras bring, and that nothing else brings
# Modules whose __version__ is their package's: an imported one that pip replaced stays the old one until a restart.
IMPORTED = {
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax",
    "google.protobuf": "protobuf",
    "h5py": "h5py",
    "matplotlib": "matplotlib",
    "ml_dtypes": "ml-dtypes",
    "numpy": "numpy",
    "optax": "optax",
    "scipy": "scipy",
}
RESTART = "restart the session (Colab: Runtime > Restart session), then run all cells again"

Version = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Cuda:
    """What JAX's build for one CUDA version needs (docs.jax.dev, Installation)."""

    extra: str
    driver: Version  # oldest NVIDIA driver
    capability: Version  # oldest GPU

    @property
    def packages(self) -> tuple[str, str]:
        """Returns the distributions that hold JAX's plugin."""
        return f"jax-{self.extra}-plugin", f"jax-{self.extra}-pjrt"


CUDA = (Cuda("cuda13", driver=(580,), capability=(7, 5)), Cuda("cuda12", driver=(525, 60), capability=(5, 2)))
NAMES = (
    *OURS,
    *IMPORTED.values(),
    *(package for cuda in CUDA for package in cuda.packages),
    "libtpu",
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-metadata",
)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU, as nvidia-smi describes it."""

    driver: Version
    capability: Version


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the choice depends on."""

    installed: Mapping[str, str]  # {distribution: version}
    gpus: tuple[Gpu, ...] = ()
    tpu: bool = False
    libtpu_wanted: str = ""  # by the installed JAX: 0.0.42 for libtpu==0.0.42.*


@dataclasses.dataclass(frozen=True)
class Install:
    """What pip has to do."""

    sentence: str  # what was found, and what follows
    pip: tuple[str, ...]  # arguments of each pip command, quoted for a shell; () if all is installed and fits


def look(nvidia_smi: Iterable[str]) -> Machine:
    """Describes this machine: its installed packages, its GPUs, and whether it has a TPU.

    JAX_PLATFORMS=cpu hides the accelerators.

    Args:
      nvidia_smi: output lines of `nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader`, or a
        shell's message that there is no such command.
    """
    importlib.invalidate_caches()  # pip may have run since the last look
    installed = {name: version for name in NAMES if (version := _installed(name))}
    libtpu = _libtpu_wanted(importlib.metadata.requires("jax") or ()) if "jax" in installed else ""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return Machine(installed, libtpu_wanted=libtpu)
    gpus = read_gpus(nvidia_smi) if sys.platform == "linux" else ()  # JAX has CUDA wheels for Linux alone
    return Machine(installed, gpus, has_tpu(os.environ), libtpu)


def imported_versions() -> dict[str, str]:
    """Returns {distribution: version} of the modules in IMPORTED that this process has imported."""
    versions = {package: getattr(sys.modules.get(name), "__version__", "") for name, package in IMPORTED.items()}
    return {package: version for package, version in versions.items() if version}


def read_gpus(nvidia_smi: Iterable[str]) -> tuple[Gpu, ...]:
    """Returns the GPUs in lines such as '550.54.15, 7.5'; other lines are messages."""
    matches = (re.fullmatch(r"([\d.]+), *(\d+\.\d+)", line.strip()) for line in nvidia_smi)
    return tuple(Gpu(_parsed(match[1]), _parsed(match[2])) for match in matches if match)


def has_tpu(environ: Mapping[str, str], root: str = "/") -> bool:
    """Returns whether the host has a TPU, by what Colab sets or by the chips' devices.

    Any machine may use /dev/vfio; TPUs there have Google's vendor on the PCI bus.
    """
    if environ.get("TPU_ACCELERATOR_TYPE") or glob.glob(f"{root}/dev/accel[0-9]*"):
        return True
    vendors = (pathlib.Path(path).read_text().strip() for path in glob.glob(f"{root}/sys/bus/pci/devices/*/vendor"))
    return bool(glob.glob(f"{root}/dev/vfio/[0-9]*")) and "0x1ae0" in vendors


def choose_install(machine: Machine, in_checkout: bool) -> Install:
    """Returns what pip has to do for the best device that JAX can use on this machine.

    The extra brings jax, jaxlib and the plugin or libtpu in versions that belong together. What else is built against
    stays as it is: NumPy, for which pip finds a JAX (with NumPy 2.1 no newer one than 0.11), and TensorFlow, whose
    files tensorflow-cpu would write over.
    """
    extra, device = best_extra(machine)
    if _fits(machine, extra):
        return Install(f"{device}: all packages are installed, and fit.", ())
    own_tensorflow = "tensorflow" in machine.installed
    wanted = "without-tensorflow" if own_tensorflow else extra
    arguments = [f'--editable ".[{wanted}]"' if in_checkout else f'"basisnet_jax[{wanted}]"']
    if own_tensorflow and extra != "train":
        arguments.append(f'"jax[{extra}]"')
    if _parsed(numpy := machine.installed.get("numpy", "")) >= NUMPY:
        arguments.append(f"numpy=={numpy}")
    if own_tensorflow and _parsed(machine.installed.get("protobuf", "6")) < PROTOBUF:
        arguments.append(f'"tensorflow-metadata<{_text(METADATA)}"')
    commands = [f"install --quiet {' '.join(arguments)}"]
    if useless := _other_plugins(machine, extra):
        commands.insert(0, f"uninstall --quiet --yes {' '.join(useless)}")
    return Install(f"{device}: pip installs what is missing, some minutes.", tuple(commands))


def what_remains(machine: Machine, imported: Mapping[str, str], pip_ran: bool) -> str:
    """Returns what the user has to do before JAX is imported, as a sentence; '' if nothing.

    Args:
      machine: as it is after pip.
      imported: versions of what this process has imported.
      pip_ran: whether pip has just installed something. JAX, once imported, does not look for plugins again.
    """
    extra, _ = best_extra(machine)
    if not _fits(machine, extra):
        return f"pip did not install the extra '{extra}': fix what it printed above, and run this cell again"
    replaced = {name: old for name, old in imported.items() if machine.installed.get(name, old) != old}
    if replaced:
        names = ", ".join(f"{name} {old} (now {machine.installed[name]})" for name, old in replaced.items())
        return f"Python still has packages that pip replaced, {names}: {RESTART}"
    if pip_ran and "jax" in imported:
        return f"JAX was imported before its packages were installed: {RESTART}"
    return ""


def best_extra(machine: Machine) -> tuple[str, str]:
    """Returns the extra, and the device that it is for."""
    if machine.tpu:
        return "tpu", "A TPU"
    if not machine.gpus:
        return "train", "No GPU and no TPU, JAX uses the CPU"
    driver = min(gpu.driver for gpu in machine.gpus)
    capability = min(gpu.capability for gpu in machine.gpus)
    told = f"NVIDIA driver {_text(driver)} and compute capability {_text(capability)}"
    able = [cuda.extra for cuda in CUDA if driver >= cuda.driver and capability >= cuda.capability]
    if not able:
        oldest = CUDA[-1]
        need = f"driver {_text(oldest.driver)} and capability {_text(oldest.capability)}"
        return "train", f"A GPU with {told}, but JAX needs at least {need}; it uses the CPU"
    there = [extra for extra in able if f"jax-{extra}-plugin" in machine.installed]
    return (there or able)[0], f"A GPU with {told}"


def _fits(machine: Machine, extra: str) -> bool:
    """Returns whether the packages of the extra are installed, in versions that belong together."""
    installed = machine.installed
    if not all(name in installed for name in (*OURS, "jax", "jaxlib", "flax")):
        return False
    if not JAX[0] <= _parsed(installed["jax"])[:2] < JAX[1]:
        return False
    if "tensorflow" not in installed and "tensorflow-cpu" not in installed:
        return False
    if (
        _parsed(installed.get("protobuf", "6")) < PROTOBUF
        and _parsed(installed.get("tensorflow-metadata", "")) >= METADATA
    ):
        return False
    if extra == "tpu":
        return f"{installed.get('libtpu', '')}.".startswith(f"{machine.libtpu_wanted}.")
    # With jax 0.12.0.1 come jaxlib and plugin 0.12.0.1.
    return extra == "train" or installed.get(f"jax-{extra}-plugin") == installed["jaxlib"]


def _other_plugins(machine: Machine, extra: str) -> list[str]:
    """Returns the installed packages of the plugin for the other CUDA: JAX cannot use two."""
    others = [cuda for cuda in CUDA if extra.startswith("cuda") and cuda.extra != extra]
    return [name for cuda in others for name in cuda.packages if name in machine.installed]


def _installed(name: str) -> str:
    """Returns the version of an installed distribution; '' if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _libtpu_wanted(requirements: Iterable[str]) -> str:
    """Returns 0.0.42 of JAX's requirement libtpu==0.0.42.*, '' if JAX has no such requirement."""
    matches = (re.match(r"libtpu==([\d.]+)\.\*", line) for line in requirements)
    return next((match[1] for match in matches if match), "")


def _parsed(version: str) -> Version:
    """Returns the numbers that a version begins with: (0, 12, 0) of 0.12.0rc1."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(x) for x in match[0].split(".")) if match else ()


def _text(version: Version) -> str:
    return ".".join(str(x) for x in version)
