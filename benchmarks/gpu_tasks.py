"""The tasks of gpu_check.py: their sizes, how a section runs them, and how their results are kept."""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from basisnet_jax.errors import UserError

Figures = dict[str, Any]
Tasks = Iterator[tuple[str, Callable[[], Figures]]]  # (name, a call that returns the figures to record)
RESULTS = "gpu_check.jsonl"
# Modules that read images and weights. The check does neither, so it runs where they are not installed.
DATA_MODULES = (
    "cv2",
    "tensorflow_datasets",
    "grain",
    "array_record.python.array_record_data_source",
    "array_record.python.array_record_module",
    "h5py",
    "safetensors.numpy",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the sections run on."""

    tiny: bool
    forms_batch: int = 8  # images where a form's values are compared
    batch: int = 128  # images where a layer or the network of 7 blocks is timed
    num_bases: int = 16
    side: int = 224
    classes: int = 1000
    blocks: tuple[int, ...] = (0, 1, 3, 6, 10, 12, 13)  # of MobileNetV3-Large, by index, as in tpu_estimates.py
    width: float = 1.0
    loss_steps: int = 20
    imagenet_batches: tuple[int, ...] = (128, 512)
    two_stage_batch: int = 256
    exit_rates: tuple[int, ...] = (0, 50, 90)  # percent
    torch_networks: tuple[str, ...] = ("mobilenetv3_large_100", "efficientnet_b0", "tf_efficientnet_cc_b0_8e")
    rounds: int = 5
    turn: float = 0.2  # seconds that a round repeats a call for, at least
    folder: pathlib.Path = pathlib.Path()  # where the profile's trace is kept


FULL = Sizes(tiny=False)
TINY = Sizes(
    tiny=True,
    forms_batch=2,
    batch=2,
    num_bases=2,
    side=16,
    classes=10,
    blocks=(3,),
    width=0.25,
    loss_steps=3,
    imagenet_batches=(2,),
    two_stage_batch=4,
    exit_rates=(0, 50),
    torch_networks=("mobilenetv3_small_050", "tf_efficientnet_cc_b0_4e"),
    rounds=1,
    turn=0.0,
)


class SkippedError(Exception):
    """Says in one sentence why a task cannot run here, which is not an error."""


@contextlib.contextmanager
def without_data_modules() -> Iterator[None]:
    """Puts a mock in the place of each of DATA_MODULES that is not installed, for imports inside the context."""
    importlib.import_module("orbax.checkpoint")  # looks for some of them itself
    missing = [name for name in DATA_MODULES if importlib.util.find_spec(name.split(".")[0]) is None]
    names = {".".join(name.split(".")[: depth + 1]) for name in missing for depth in range(name.count(".") + 1)}
    sys.modules.update({name: mock.MagicMock() for name in names})
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


@dataclasses.dataclass(frozen=True)
class Results:
    """Results: each is printed as soon as it is there, and appended to a file of JSON lines."""

    path: pathlib.Path

    def add(self, section: str, name: str, seconds: float = 0.0, **figures: Any) -> None:
        """Records one result; figures that are lists or dictionaries are not printed."""
        with self.path.open("a") as file:
            file.write(json.dumps({"section": section, "name": name, "seconds": round(seconds, 2), **figures}) + "\n")
        shown = {key: value for key, value in figures.items() if not isinstance(value, list | dict)}
        print(f"{section:9} {name}: {', '.join(f'{key} {_shown(value)}' for key, value in shown.items())}", flush=True)

    def all(self) -> list[Figures]:
        """Returns the results of this run and of earlier runs with the same file."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []


def _shown(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def run_section(section: str, function: str, sizes: Sizes, results: Results) -> None:
    """Runs the tasks of a section; a task that fails is recorded with its error, and the next one runs.

    Args:
      section: the section's name.
      function: 'module.function' that makes the section's tasks from the sizes.
      sizes: the sizes.
      results: where results go.

    Raises:
      UserError: the machine cannot run the check.
    """
    start = time.perf_counter()

    def attempt(name: str, call: Callable[[], Figures | None]) -> None:
        nonlocal start
        try:
            figures = call()
        except UserError:
            raise
        except SkippedError as reason:
            figures = {"skipped": str(reason)}
        except Exception as error:
            text = " ".join(str(error).split())
            lines = traceback.format_exc().splitlines()
            figures = {"error": f"{type(error).__name__}: {text[:300]}", "traceback": lines}
        now = time.perf_counter()
        if figures is not None:
            results.add(section, name, now - start, **figures)
        start = now

    def all_tasks() -> None:
        module, name = function.split(".")
        with without_data_modules():
            tasks = getattr(importlib.import_module(module), name)
        for title, call in tasks(sizes):
            attempt(title, call)

    attempt("its preparation", all_tasks)
