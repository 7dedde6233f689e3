"""Checks this project on an NVIDIA GPU in under ten minutes, and times it there: static, synthesized, and PyTorch.

    python benchmarks/gpu_check.py [--out runs/gpu_check] [--minutes 9.5] [--sections forms blocks]
    JAX_PLATFORMS=cpu python benchmarks/gpu_check.py --tiny

Each result is printed as soon as it is there, and appended to gpu_check.jsonl in the folder --out. A section runs in a
process of its own with its share of the time that is left, so that one that fails, hangs or is slow does not stop the
next ones. The images are random. --tiny runs every section on small sizes, on a CPU too: it shows that the check works.

The exit code is 0 if every task ran and every value is right, 1 if not, 2 if this machine cannot run the check.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import pathlib
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import gpu_tasks
import gpu_wheels

from basisnet_jax.errors import UserError
from basisnet_jax.host import accelerator

PYTHON = ((3, 11), (3, 14))  # setup.py's range: from the first, below the second
CANNOT_RUN = 2  # exit code of a section, and of the check


class Section(NamedTuple):
    """A part of the check, made by a function 'module.function' of the sizes."""

    tasks: str
    share: float  # of the time, relative to other sections
    meaning: str


# In the order in which they run: the most telling first.
SECTIONS = {
    "devices": Section("gpu_programs.device_tasks", 3, "what JAX sees, and the versions"),
    "forms": Section("gpu_forms.value_tasks", 9, "the values of every form of a layer, beside a plain loop"),
    "losses": Section("gpu_steps.loss_tasks", 8, "the losses of training steps, beside the CPU's"),
    "blocks": Section("gpu_steps.block_tasks", 10, "the steps of seven blocks of MobileNetV3-Large"),
    "pytorch": Section("gpu_torch.tasks", 5, "timm's MobileNetV3-Large, EfficientNet-B0 and its CondConv form"),
    "imagenet": Section("gpu_steps.imagenet_tasks", 16, "the training step of configs/imagenet_mbv3.py"),
    "layers": Section("gpu_forms.time_tasks", 6, "the time of layers in every form"),
    "profile": Section("gpu_steps.profile_tasks", 3, "a trace of a training step"),
    "two_stage": Section("gpu_steps.two_stage_tasks", 6, "two-stage inference, by exit rate"),
    "digits": Section("gpu_steps.digits_tasks", 4, "the training step of configs/digits.py"),
}


def check_installation(python: tuple[int, ...] = sys.version_info[:2]) -> None:
    """Raises UserError if Python, JAX or a package does not fit, before anything starts JAX."""
    if not PYTHON[0] <= python < PYTHON[1]:
        raise UserError(
            f"Python {'.'.join(map(str, python))} does not fit; the check needs Python 3.11 to 3.13, run it with one."
        )
    modules = ("jax", "flax", "optax", "orbax", *gpu_wheels.MODULES)
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"{', '.join(missing)} not installed; python benchmarks/gpu_wheels.py, where there is a network, gathers "
            "what the check needs besides JAX, Flax, Optax and Orbax."
        )
    version = importlib.metadata.version("jax")
    oldest, above = accelerator.JAX
    if not oldest <= tuple(int(number) for number in version.split(".")[:2]) < above:
        raise UserError(
            f"JAX {version} does not fit; the project needs JAX from {oldest[0]}.{oldest[1]} on, below "
            f"{above[0]}.{above[1]}: pip install 'jax[cuda13]>={oldest[0]}.{oldest[1]},<{above[0]}.{above[1]}'."
        )


def run_all(sections: list[str], command: list[str], results: gpu_tasks.Results, minutes: float) -> int:
    """Runs each section in a process of its own; returns the exit code of the check.

    Args:
      sections: names of the sections.
      command: runs one section, if the section's name is appended.
      results: where the sections' results go, and what happens to a section.
      minutes: time for all of them.
    """
    start, earlier = time.monotonic(), len(results.all())
    for index, name in enumerate(sections):
        left = 60 * minutes - (time.monotonic() - start)
        allowed = left * SECTIONS[name].share / sum(SECTIONS[other].share for other in sections[index:])
        try:
            code = subprocess.call([*command, name], timeout=allowed)
        except subprocess.TimeoutExpired:
            results.add(name, "the section", error=f"stopped after {allowed:.0f} s, its share of --minutes={minutes:g}")
            continue
        if code == CANNOT_RUN:
            return CANNOT_RUN
        if code:
            reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            results.add(name, "the section", error=f"its process ended with {reason}")
    rows = results.all()[earlier:]
    counts = {
        "results": len(rows),
        "errors": sum("error" in row for row in rows),
        "wrong": sum(row.get("right") is False for row in rows),
        "skipped": sum("skipped" in row for row in rows),
    }
    results.add("check", "the whole", time.monotonic() - start, **counts, kept_in=str(results.path))
    return 1 if counts["errors"] or counts["wrong"] else 0


def main() -> int:
    """Runs the check, or with --section one section of it in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/gpu_check"), help="folder of results")
    parser.add_argument("--minutes", type=float, default=9.5, help="time for all sections")
    help_of_sections = "; ".join(f"{name}: {section.meaning}" for name, section in SECTIONS.items())
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help=help_of_sections)
    parser.add_argument("--tiny", action="store_true", help="small sizes, on any device")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    results = gpu_tasks.Results(options.out / gpu_tasks.RESULTS)
    try:
        check_installation()
        options.out.mkdir(parents=True, exist_ok=True)
        if options.section:
            from basisnet_jax.host import compilation_cache

            compilation_cache.use_compilation_cache()
            sizes = dataclasses.replace(gpu_tasks.TINY if options.tiny else gpu_tasks.FULL, folder=options.out)
            gpu_tasks.run_section(options.section, SECTIONS[options.section].tasks, sizes, results)
            return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return CANNOT_RUN
    command = [sys.executable, __file__, f"--out={options.out}", *(["--tiny"] if options.tiny else []), "--section"]
    # The devices come first: they say whether there is a GPU.
    sections = ["devices", *(name for name in SECTIONS if name in options.sections and name != "devices")]
    return run_all(sections, command, results, options.minutes)


if __name__ == "__main__":
    sys.exit(main())
