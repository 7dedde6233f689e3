"""Describes an export in words: the lines to print, and model_card.md."""

import re
from collections.abc import Sequence
from typing import Any

import yaml

from basisnet_jax.config import validate, with_defaults
from basisnet_jax.experiment.model import architecture_of
from basisnet_jax.export import publishers
from basisnet_jax.host import command_line
from basisnet_jax.serving.exit_rule import ChosenRule
from basisnet_jax.serving.formats import FORMATS, WEIGHTS
from basisnet_jax.serving.manifest import Manifest


def _files(manifest: Manifest) -> list[tuple[str, str, str]]:
    """Returns (name, bytes, worst error; '' for a file that does not answer) of each file."""
    errors = {name: facts.worst_relative_error for name, facts in manifest.files.items()}
    shown = {name: "" if error is None else f"{error:.1e}" for name, error in errors.items()}
    return [(name, f"{facts.bytes:,}", shown[name]) for name, facts in manifest.files.items()]


def _accuracy(manifest: Manifest) -> list[tuple[str, str]]:
    """Returns (network or format, text with its top-1 figures) for each."""
    rows = []
    for name, reached in manifest.accuracy.top1.items():
        stages = [f"specialist {reached.specialist:.4f}"]
        if reached.preview is not None:
            stages.append(f"preview {reached.preview:.4f}")
        if both := reached.two_stages:
            stages.append(
                f"both with early termination {both.top1:.4f} ({both.exit_rate:.1%} exit, {both.madds:,.0f} "
                "multiply-adds on average)"
            )
        rows.append((name, ", ".join(stages)))
    return rows


def summary(out: str, manifest: Manifest) -> str:
    """Returns the lines to print about the export in the folder `out`."""
    files = [("file", "bytes", "worst error")]
    files += _files(manifest)
    accuracy = [(f"  {name}", what) for name, what in _accuracy(manifest)]
    lines = [
        *command_line.align(files),
        f"top-1 on {manifest.accuracy.images}:",
        *command_line.align(accuracy, left=(0, 1)),
    ]
    lines += [f"warning: {sentence}." for sentence in manifest.warnings]
    if "preview" in manifest.outputs:
        lines.append(_rule(manifest.rule))
    return "\n".join([*lines, f"{out}: the files, labels.txt, model_card.md, manifest.json"])


def _rule(chosen: ChosenRule | None) -> str:
    """Returns a sentence on which images the preview answers alone, and on how that rule was chosen."""
    if not chosen:
        return "No threshold was chosen: run --mode=evaluate on this folder."
    rule, was = chosen.rule, chosen.provenance
    text = (
        f"An image is answered by the preview alone where its {rule.criterion} at temperature {rule.temperature:.4g} "
        f"is at least {rule.threshold:.4g}."
    )
    if not (was and chosen.chosen_on and chosen.reported_on):
        return text
    here, there = (
        f"{x.exit_rate:.1%} exit, top-1 {x.top1:.4f}, {x.madds:,.0f} multiply-adds on average"
        for x in (chosen.chosen_on, chosen.reported_on)
    )
    return (
        f"{text} Chosen by {chosen.chosen_by} with {was.weights} on {was.images}: {here} on the "
        f"{chosen.chosen_on.count} images that it was chosen on; {there} on the other {chosen.reported_on.count}."
    )


def _use(manifest: Manifest, num_classes: int) -> list[str]:
    """Returns the section with the Python that opens the files of weights; nothing without such files."""
    snippets: list[str] = []
    if WEIGHTS in manifest.files:
        snippets += [
            "import basisnet_jax",
            "",
            'classifier = basisnet_jax.from_pretrained("this folder, or its id on the Hub")  # or with threshold=0.9',
            "labels, probabilities, exited_early, madds = classifier.classify(images)  # uint8[B, H, W, channels]",
        ]
    for name, form in FORMATS.items():
        if form.publisher and form.file("specialist", name) in manifest.files:
            table = architecture_of(validate(with_defaults(manifest.config)).model.specialist)
            snippets += publishers.usage(table, name, num_classes, manifest.input.channels)
    return ["## Use", "", "```python", *snippets, "```", ""] if snippets else []


def _front_matter(manifest: Manifest) -> dict[str, Any]:
    """Returns the metadata of the card that the Hugging Face Hub reads, lists and searches.

    It has the network's own top-1, not the files'. A network frozen for one place has none: it was not measured on the
    evaluation split.
    """
    settings = with_defaults(manifest.config)
    backbone = settings.model.specialist.backbone
    data_set = re.sub(r"[^\w.-]+", "-", manifest.data.name)  # the hub's names have no spaces
    task = "image-classification"
    metadata = {
        "license": settings.export.license,
        "library_name": "basisnet_jax",
        "pipeline_tag": task,
        "tags": [task, "basisnet", "jax", backbone.replace("_", "-")],
        "datasets": [data_set],
        "metrics": ["accuracy"],
    }
    if manifest.frozen is not None:
        return metadata
    own = next(iter(manifest.accuracy.top1.values()))
    both = own.two_stages.top1 if own.two_stages else None
    measured = {"top-1": own.specialist, "top-1 of the preview": own.preview, "top-1 with early termination": both}
    results = {
        "task": {"type": task},
        "dataset": {"type": data_set, "name": manifest.data.name, "split": settings.data.eval_split},
        "metrics": [
            {"type": "accuracy", "name": name, "value": round(value, 6)}
            for name, value in measured.items()
            if value is not None
        ],
    }
    name = f"{backbone} for {manifest.data.name}"
    return {**metadata, "model-index": [{"name": name, "results": [results]}]}


def model_card(manifest: Manifest, classes: Sequence[str]) -> str:
    """Returns Markdown for readers who have the files without the run, with the hub's metadata before it."""
    model, data, image = manifest.config["model"], manifest.data, manifest.input
    shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    madds = {name: count for name, count in manifest.madds.items() if count}
    lines = [
        "---",
        yaml.safe_dump(_front_matter(manifest), sort_keys=False, allow_unicode=True).rstrip("\n"),
        "---",
        "",
        f"# {model['specialist']['backbone']} for {data.name}",
        "",
        f"A classifier of {len(classes)} classes ({shown}), trained with basisnet_jax "
        f"{manifest.versions['basisnet_jax']} on `{data.name}`, split `{data.train_split}`, "
        f"{manifest.step} steps. Routing: {manifest.frozen or model['routing']}.",
        "",
        *_use(manifest, len(classes)),
        "## Input",
        "",
        f"{image.color} pixels from 0 to 255, {image.layout}, {image.side} x {image.side} x "
        f"{image.channels}; .tflite and .onnx take float32, .stablehlo uint8. Crop: {image.crop}. "
        f"Resizing: {image.resize}. EXIF orientation: {image.exif_orientation}.",
        *(["", f"The preview's small image is {image.preview_image}."] if image.preview_image else []),
        "",
        "## Cost",
        "",
        ", ".join(f"{name} {count:,}" for name, count in madds.items())
        + f" multiply-adds an image; {manifest.parameters:,} parameters.",
        *(["", _rule(manifest.rule)] if "preview" in madds else []),
        "",
        "## Accuracy",
        "",
        f"Top-1 on {manifest.accuracy.images}:",
        "",
        *(f"- {name}: {what}" for name, what in _accuracy(manifest)),
        *(f"- **Warning**: {sentence}." for sentence in manifest.warnings),
        "",
        "| file | bytes | worst error, relative to an image's largest logit, against the trained network |",
        "|---|---|---|",
        *(f"| {name} | {size} | {error} |" for name, size, error in _files(manifest)),
        "",
        "## Limits",
        "",
        *(line for sentence in manifest.expires.values() for line in (sentence, "")),
        "Accuracy was measured on the images above only; for images of another kind, light or camera, measure again. "
        "An object of any other class still gets one of these classes. Not measured: latency and energy on any device, "
        "and accuracy by group of people or place.",
    ]
    return "\n".join(lines) + "\n"
