"""What a run says: a progress bar or plain lines while it trains, and files in the workdir when it is done."""

import importlib.metadata
import json
import platform
import sys
from typing import Any

import jax
import tqdm
from etils import epath

import basisnet_jax
from basisnet_jax import files

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


class ProgressBar:
    """A live bar on a terminal; nothing in a log file, where CLU's lines tell. Of many processes the first has it."""

    def __init__(self, *, total_steps: int, start_step: int, batch_size: int) -> None:
        self._batch_size = batch_size
        self._silent = jax.process_index() > 0
        self._bar = tqdm.tqdm(
            total=total_steps * batch_size,
            initial=start_step * batch_size,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            disable=self._silent or not on_terminal(),
        )

    def update(self, **shown: float) -> None:
        """One step more, and the figures to show beside the bar."""
        self._bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()}, refresh=False)
        self._bar.update(self._batch_size)

    def say(self, line: str) -> None:
        """A line above the bar."""
        if not self._silent:
            self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()


def on_terminal() -> bool:
    """Whether somebody is looking."""
    return sys.stderr.isatty()


def versions() -> dict[str, str]:
    """Of everything that a result may depend on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"basisnet_jax": basisnet_jax.__version__, "python": platform.python_version(), **found}


def write_json(path: epath.Path, content: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    files.write(path, json.dumps(content, indent=2) + "\n")


def summary(results: dict[str, Any]) -> str:
    """The lines that a finished run prints."""
    evaluation, madds = results["eval"], results["madds"]
    top1 = f"top-1 {evaluation['top1']:.4f} (top-5 {evaluation['top5']:.4f}) on {evaluation['count']} images"
    if evaluation["preview_top1"] is not None:
        top1 += f"; the preview alone {evaluation['preview_top1']:.4f}"
    stages = " + ".join(f"{name} {madds[name]:,}" for name in ("preview", "synthesis", "specialist") if madds[name])
    rate = results["images_per_second"]  # None where no step was timed: the first step of each process is not
    speed = "" if rate is None else f", {rate:.0f} images/s"
    return "\n".join(
        [
            top1,
            f"{madds['total']:,} multiply-adds an image ({stages}), {results['parameters']:,} parameters",
            f"{results['step']} steps in {results['train_seconds']:.0f} s{speed}",
        ]
    )
