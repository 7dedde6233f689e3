"""A thousand characters of nineteen scripts (docs/examples/glyphs.md): each system in several widths.

Every run trains on `train` and looks at `sweep` alone while it trains; figures are of `validation`, the main split, and
of `unseen_fonts`. So a rate that is tried (--rates) needs no other splits.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks.studies import Row, Study

EPOCHS = 8.0
RATE = 16e-3
# (system, width) with a rate that was better on `sweep`, in the mean of the seeds. Systems with bases were tried at .5.
RATES = {("static", 0.6): 32e-3}
# The run static_1.2 of the same seed has to be finished first.
TEACHER = {"distill.teacher": "{out}/static_1.2-{seed}", "distill.weight": 0.5, "distill.temperature": 2.0}
# The rates are for batches of 128; for Adam's, they grow with the root of the batch (arXiv 2205.10287).
SCALED = {"optimizer.scale_with_batch": "sqrt", "optimizer.reference_batch": 128}


def length(epochs: float) -> Mapping[str, Any]:
    """Returns the settings of a run of so many epochs."""
    return {
        "epochs": epochs,
        "warm_start_epochs": epochs / 4,
        "schedule.warmup_epochs": epochs / 16,
        "eval_every_epochs": epochs / 4,
    }


def row(what: str, config: str, width: float, overrides: Mapping[str, Any]) -> Row:
    """Makes a row of one width, at its learning rate; `what` begins with the system."""
    rate = RATES.get((what.split()[0].rstrip(","), width), RATE)
    return what, config, {"optimizer.learning_rate": rate, "model.specialist.width": width, **overrides}


def widths(name: str, what: str, config: str, several: tuple[float, ...], **overrides: Any) -> dict[str, Row]:
    """Makes the rows of one system in several widths."""
    model = {f"model.{field}": value for field, value in overrides.items()}
    return {f"{name}_{width}": row(what, config, width, model) for width in several}


def both(name: str, what: str, overrides: Mapping[str, Any]) -> dict[str, Row]:
    """Makes the rows of a static network and of the BasisNet of about its multiply-adds, with the same change."""
    return {
        f"static_{name}_0.6": row(f"static, {what}", "glyphs_static", 0.6, overrides),
        f"basisnet_n8_{name}_0.5": row(f"BasisNet, N = 8, {what}", "glyphs", 0.5, overrides),
    }


# Channels are multiples of 8, so some widths are one network: 0.3 and 0.35.
ROWS = {
    **widths("static", "static", "glyphs_static", (0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2)),
    **widths("basisnet_n4", "BasisNet, N = 4", "glyphs", (0.3, 0.4, 0.5, 0.6, 0.8), num_bases=4),
    **widths("basisnet_n8", "BasisNet, N = 8", "glyphs", (0.3, 0.4, 0.5, 0.6, 0.8), num_bases=8),
    **widths("basisnet_n16", "BasisNet, N = 16", "glyphs", (0.3, 0.4, 0.5, 0.6, 0.8), num_bases=16),
    # A preview that sees 16 pixels, not 10, and is wider: for early exit.
    **widths(
        "basisnet_n8_preview16",
        "BasisNet, N = 8, a preview at 16 pixels",
        "glyphs",
        (0.3, 0.4, 0.5, 0.6, 0.8),
        num_bases=8,
        **{"preview.resolution": 16, "preview.width": 0.5},
    ),
    # As dear as that one, but narrow, and it sees more: which half of a preview's cost pays?
    **widths(
        "basisnet_n8_preview24",
        "BasisNet, N = 8, a preview at 24 pixels",
        "glyphs",
        (0.5, 0.6, 0.8),
        num_bases=8,
        **{"preview.resolution": 24, "preview.width": 0.35},
    ),
    # A cooler softmax tells images further apart, as CondConv's sigmoids do.
    **widths(
        "basisnet_n8_temperature1",
        "BasisNet, N = 8, temperature 1",
        "glyphs",
        (0.5,),
        num_bases=8,
        temperature=1.0,
    ),
    # One vector a block, as CondConv has it.
    **widths(
        "basisnet_n8_block", "BasisNet, N = 8, a vector a block", "glyphs", (0.5,), num_bases=8, granularity="block"
    ),
    # Four vectors a layer, each for a quarter of its output channels; coefficients from the pool, not the dense layer.
    **widths(
        "basisnet_n8_groups4", "BasisNet, N = 8, four vectors a layer", "glyphs", (0.5,), num_bases=8, channel_groups=4
    ),
    **widths(
        "basisnet_n8_pool",
        "BasisNet, N = 8, coefficients from the pool",
        "glyphs",
        (0.5,),
        num_bases=8,
        coefficients_from="pool",
    ),
    **widths(
        "basisnet_n8_groups4_pool",
        "BasisNet, N = 8, four vectors a layer from the pool",
        "glyphs",
        (0.5,),
        num_bases=8,
        channel_groups=4,
        coefficients_from="pool",
    ),
    **widths(
        "basisnet_n8_shared_depthwise",
        "BasisNet, N = 8, shared depthwise kernels",
        "glyphs",
        (0.5,),
        num_bases=8,
        synthesize=("expand", "project"),
    ),
    **widths("condconv_n8", "CondConv, N = 8", "glyphs_static", (0.3, 0.4, 0.5, 0.6, 0.8), routing="condconv"),
    **widths(
        "condconv_n4_whole",
        "CondConv, N = 4, head and classifier too",
        "glyphs_static",
        (0.3, 0.5),
        routing="condconv",
        num_bases=4,
        synthesize=("blocks", "head_conv", "classifier"),
    ),
    # As in its paper, the temperature falls from 30 to 1, here in the warm start.
    **widths(
        "dynamic_n4",
        "dynamic convolution, N = 4",
        "glyphs_static",
        (0.3, 0.4, 0.5, 0.6, 0.8),
        routing="dynamic",
        num_bases=4,
        temperature=1.0,
        start_temperature=30.0,
    ),
    # What the recipe does: the warm start's length, the batch, more decay of the weights, a teacher of width 1.2.
    "basisnet_n8_short_warm_start_0.5": row(
        "BasisNet, N = 8, an eighth of the warm start", "glyphs", 0.5, {"warm_start_epochs": EPOCHS / 32}
    ),
    "basisnet_n8_preview_weight_0_0.5": row(
        "BasisNet, N = 8, the preview only mixes: it learns no classes", "glyphs", 0.5, {"loss.preview_weight": 0.0}
    ),
    "basisnet_n8_long_warm_start_0.5": row(
        "BasisNet, N = 8, twice the warm start", "glyphs", 0.5, {"warm_start_epochs": EPOCHS / 2}
    ),
    **both("batch_64", "batches of 64", {"batch_size": 64, **SCALED}),
    **both("batch_256", "batches of 256", {"batch_size": 256, **SCALED}),
    **both("decay_0.1", "weight decay 0.1", {"optimizer.weight_decay": 0.1}),
    **both("distilled", "learns from static, width 1.2", TEACHER),
    # The script is given with the image, and no preview has to infer it.
    "task_n8_0.5": row(
        "task routing, N = 8, the script is given",
        "glyphs_static",
        0.5,
        {"model.routing": "task", "model.num_bases": 8, "model.num_tasks": 19, "data.task": "script"},
    ),
}

# Adam's second moment over 100 steps in place of 1,000: it helped one of two seeds that learn little in the first 600.
ROWS |= {
    f"{name}_b2": (f"{what}, b2 = .99", config, {**overrides, "optimizer.decay": 0.99})
    for name, (what, config, overrides) in ROWS.items()
    if name.rsplit("_", 1)[0] in ("static", "basisnet_n8", "basisnet_n8_preview24", "condconv_n8")
}


def scripts() -> Mapping[str, str]:
    """Returns {character: its script}."""
    from basisnet_jax.data import glyph_fonts

    return {character: script for script, character in glyph_fonts.classes(())}


STUDY = Study(
    rows=ROWS,
    reported=("validation", "unseen_fonts"),
    sweep={"data.eval_split": "sweep"},
    common={"data.eval_split": "sweep", **length(EPOCHS)},
    group_of=scripts,
)
