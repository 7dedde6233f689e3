"""The installed packages: their versions, and whether they belong together. Imports no JAX: it may be a wrong one."""

import importlib.metadata
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import basisnet_jax

PACKAGE = "basisnet_jax"
_PLUGIN = re.compile(r"libtpu|jax-\w+-plugin")  # packages with which JAX uses a device other than the CPU
_EXTRAS = ("cuda13", "cuda12", "tpu")  # JAX's extras that bring them

Find = Callable[[str], importlib.metadata.Distribution | None]


def find_installed(name: str, path: Sequence[str] | None = None) -> importlib.metadata.Distribution | None:
    """Returns an installed package; None if it is not installed.

    Args:
      name: the package's name.
      path: folders to search; None is Python's own path.
    """
    where = list(sys.path if path is None else path)
    return next(iter(importlib.metadata.distributions(name=name, path=where)), None)


def mismatches(python: str | None = None, find: Find = find_installed) -> dict[str, str]:
    """Returns {package: sentence} for each installed version that another package refuses.

    Checked are the versions that this package needs, and those that JAX asks of jaxlib and of its plugins. A package
    that is missing is not a mismatch.

    Args:
      python: version of Python; None is the version of this process.
      find: returns an installed package by name.
    """
    python = python or ".".join(map(str, sys.version_info[:3]))
    own = find(PACKAGE)
    if own and (needs := own.metadata["Requires-Python"]) and python not in SpecifierSet(needs):
        way_out = "make a virtual environment with a Python that fits"
        return {"Python": f"Python {python} does not fit {PACKAGE}, which needs {needs}; {way_out}."}
    sentences: dict[str, str] = {}
    for package in filter(None, (own, find("jax"))):
        for needed in _needed(package, find):
            other = find(needed.name)
            if other and not needed.specifier.contains(other.version, prereleases=True):
                sentences.setdefault(
                    needed.name,
                    f"{needed.name} {other.version} does not fit {package.name} {package.version}, which needs "
                    f"{needed.name}{needed.specifier}; run {_command(needed, find)}.",
                )
    return sentences


def plugins(find: Find = find_installed) -> dict[str, str]:
    """Returns {name: version} of the installed packages with which JAX uses a device other than the CPU."""
    jax = find("jax")
    names = sorted(
        {name for text in jax.requires or () if _PLUGIN.fullmatch(name := Requirement(text).name)} if jax else ()
    )
    return {name: package.version for name in names if (package := find(name))}


def install_jax(names: Sequence[str], version: str) -> str:
    """Returns the command that installs JAX, jaxlib and plugins of one version.

    Args:
      names: plugins, or extras of JAX that bring them, such as 'cuda13'.
      version: as pip writes it, such as '==0.12.0'.
    """
    extras = ",".join(extra for extra in _EXTRAS if any(extra in name for name in names))
    return f"pip install --upgrade 'jax{f'[{extras}]' if extras else ''}{version}'"


def _needed(package: importlib.metadata.Distribution, find: Find) -> Iterator[Requirement]:
    """Yields the requirements of a package, of its extra 'train', and of its extras that bring an installed plugin."""
    needed = [Requirement(text) for text in package.requires or ()]

    def is_of(requirement: Requirement, extra: str) -> bool:
        return requirement.marker is None or requirement.marker.evaluate({"extra": extra})

    installed = [x for x in needed if _PLUGIN.fullmatch(x.name) and find(x.name)]
    extras = package.metadata.get_all("Provides-Extra") or ()
    in_use = ["", "train", *(extra for extra in extras if any(is_of(requirement, extra) for requirement in installed))]
    return (requirement for requirement in needed if any(is_of(requirement, extra) for extra in in_use))


def _command(needed: Requirement, find: Find) -> str:
    """Returns the command that makes a requirement fit."""
    jax = find("jax")
    if jax and needed.name == "jax":
        return install_jax(list(plugins(find)), str(needed.specifier))
    if jax and (needed.name == "jaxlib" or _PLUGIN.fullmatch(needed.name)):
        return install_jax(list(plugins(find)), f"=={jax.version}")
    return f"pip install --upgrade '{needed.name}{needed.specifier}'"


# Packages that a result may depend on.
PACKAGES = (
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "clu",
    "grain",
    "tensorflow-datasets",
    "ml-collections",
    "numpy",
)


def versions() -> dict[str, str]:
    """Returns {name: version} of everything that a result may depend on."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"basisnet_jax": basisnet_jax.__version__, "python": platform.python_version(), **packages}


def versions_line() -> str:
    """Returns the versions of this package, JAX and Python, as they are printed."""
    jax = importlib.metadata.version("jax")
    return f"basisnet_jax {basisnet_jax.__version__}, JAX {jax}, Python {platform.python_version()}"
