"""Gathers the wheels that gpu_check.py needs beside JAX, Flax, Optax and Orbax, for a machine without a network.

    python benchmarks/gpu_wheels.py [--out wheels] [--python 3.12]

The versions and hashes are those of requirements.lock. On the other machine, from a checkout:

    pip install --no-index --no-deps --find-links=wheels -r wheels/names.txt
    PYTHONPATH=$PWD python benchmarks/gpu_check.py

which leaves a package alone that is installed there. Packages that read data and weights are not gathered: the check
puts a mock in their place (gpu_tasks.DATA_MODULES).
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

LOCK = pathlib.Path(__file__).parent.parent / "requirements.lock"
MODULES = ("absl", "clu", "etils", "filelock", "ml_collections", "packaging", "wrapt")  # imported by the check
NAMES = ("absl-py", "clu", "etils", "filelock", "ml-collections", "packaging", "wrapt")  # their packages
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MOST_BYTES = 64e6


def locked(names: tuple[str, ...]) -> str:
    """Returns the entries of these packages in the lock, with their hashes."""
    entries = re.findall(r"^[a-z][^\n]*(?:\n    [^\n]+)+", LOCK.read_text(), re.MULTILINE)
    return "\n".join(entry for entry in entries if entry.split("==")[0] in names) + "\n"


def main() -> None:
    """Downloads the wheels, and says what they weigh."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("wheels"))
    parser.add_argument("--python", default="3.12", help="version of Python on the other machine")
    options = parser.parse_args()
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write(locked(NAMES))
        requirements.flush()
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        platforms = [f"--platform={platform}" for platform in PLATFORMS]
        where = [f"--python-version={options.python}", f"--dest={options.out}"]
        subprocess.run([*download, *platforms, *where, "--require-hashes", "-r", requirements.name], check=True)
    (options.out / "names.txt").write_text("\n".join(NAMES) + "\n")
    size = sum(path.stat().st_size for path in options.out.glob("*.whl"))
    print(f"{len(NAMES)} wheels, {size / 1e6:.1f} MB, in {options.out}")
    if size > MOST_BYTES:
        sys.exit(f"error: more than {MOST_BYTES / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
