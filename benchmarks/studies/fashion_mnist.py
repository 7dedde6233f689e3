"""Fashion-MNIST in four epochs, two CPU cores: each system at its own learning rate, N from 1 to 16, other recipes.

docs/results.md has what came of it. The teacher of the 'distilled' rows has to be trained first.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks.studies import Row, Study

STATIC, PREVIEW = "compare/fashion_mnist_static", "compare/fashion_mnist_preview"
RATES = {STATIC: {"optimizer.learning_rate": 8e-3}, PREVIEW: {"optimizer.learning_rate": 16e-3}}
STRONG = {"data.policy": "randaugment", "data.policy_magnitude": 5.0, "data.erasing": 0.25}
MIXUP = {"loss.mix": "mixup", "loss.mix_alpha": 0.2}
TEACHER = {"distill.teacher": "{out}/teacher-{seed}", "distill.weight": 0.5, "distill.temperature": 2.0}
LONG = {"epochs": 12.0, "warm_start_epochs": 3.0, "eval_every_epochs": 3.0, "schedule.warmup_epochs": 1.5}


def row(what: str, config: str, overrides: Mapping[str, Any]) -> Row:
    """Makes a row at its system's learning rate."""
    return what, config, {**RATES[config], **overrides}


def both(name: str, what: str, overrides: Mapping[str, Any]) -> dict[str, Row]:
    """Makes a row of either side under another recipe."""
    return {
        f"static_{name}": row(f"static, {what}", STATIC, overrides),
        f"preview_n4_{name}": row(f"BasisNet, N = 4, {what}", PREVIEW, overrides),
    }


def bases(number: int, width: float, preview_width: float, preview_resolution: int) -> Mapping[str, Any]:
    """Makes a row with N bases, and with widths that keep the multiply-adds within 2% of the static network's."""
    preview = {"model.preview.width": preview_width, "model.preview.resolution": preview_resolution}
    return {"model.num_bases": number, "model.specialist.width": width, **preview}


ROWS = {
    "static": row("static", STATIC, {}),
    "preview_n1": row("a preview that routes nothing", PREVIEW, bases(1, 1.04, 0.5, 14)),
    "preview_n2": row("BasisNet, N = 2", PREVIEW, bases(2, 1.04, 0.5, 10)),
    "preview_n4": row("BasisNet, N = 4", PREVIEW, bases(4, 0.84, 0.75, 10)),
    "preview_n8": row("BasisNet, N = 8", PREVIEW, bases(8, 0.84, 0.5, 10)),
    "preview_n16": row("BasisNet, N = 16", PREVIEW, bases(16, 0.7, 0.5, 16)),
    "anneal": row("a warm start by temperature, from 30", PREVIEW, {"model.warm_start": "temperature"}),
    "block": row("a vector a block", PREVIEW, {"model.granularity": "block"}),
    **both("strong", "RandAugment and random erasing", STRONG),
    **both("mixup", "mixup", MIXUP),
    "teacher": row("the teacher: static, twice as wide", STATIC, {"model.specialist.width": 2.0}),
    **both("distilled", "learns from the teacher", TEACHER),
    **both("strong_distilled", "strong augmentation, and the teacher", STRONG | TEACHER),
    **both("long", "three times as long", LONG),
    **both("strong_long", "strong augmentation, three times as long", STRONG | LONG),
}

STUDY = Study(
    rows=ROWS,
    reported=("test",),
    sweep={"data.train_split": "train[:50000]", "data.eval_split": "train[50000:]"},
)
