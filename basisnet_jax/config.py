"""A run's config: what users see of the settings, and its validation.

A file in `configs/` starts from `default()` and changes what its run needs. `validate` turns that into `Settings`,
which the code below is given. `python -m basisnet_jax.config` prints docs/reference/settings.md.
"""

import argparse
import difflib
import re
from typing import Any, TypeAlias

import ml_collections

from basisnet_jax.errors import UserError
from basisnet_jax.models.architectures import ARCHITECTURES
from basisnet_jax.serving.formats import FORMATS
from basisnet_jax.settings import declare
from basisnet_jax.settings.declare import fail
from basisnet_jax.settings.groups import ModelSettings, Settings

Config: TypeAlias = ml_collections.ConfigDict | Settings  # what functions take that a user calls
DECLARED = {declared.name: declared for declared in declare.declared(Settings())}
MAY_CHANGE_ON_RESUME = tuple(name for name, declared in DECLARED.items() if declared.may_change_on_resume)


def default() -> ml_collections.ConfigDict:
    """Returns the config that all others change; locked, so that a misspelled field is an error."""
    return declare.to_config(Settings())


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns {'model.num_bases': 4, ...} of a ConfigDict or of nested dictionaries."""
    fields: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, ml_collections.ConfigDict | dict)
        fields.update(flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return fields


def with_defaults(saved: dict[str, Any]) -> ml_collections.ConfigDict:
    """Returns the config of a `config.json`, perhaps of an older version: fields that it lacks have their defaults."""
    config = default()
    config.update_from_flattened_dict({name: value for name, value in flatten(saved).items() if name in DECLARED})
    return config


def nearest_field(name: str) -> str:
    """Returns the sentence that answers an unknown field."""
    by_leaf = {field.split(".")[-1]: field for field in DECLARED}
    close = difflib.get_close_matches(name, DECLARED, n=1)
    leaf = difflib.get_close_matches(name.split(".")[-1], by_leaf, n=1)
    meant = close or [by_leaf[x] for x in leaf]
    hint = f"did you mean config.{meant[0]}?" if meant else "the fields are listed in docs/reference/settings.md."
    return f"there is no field config.{name}; {hint}"


def validate(config: Config) -> Settings:
    """Returns a config as typed settings, each within its rule; settings that were validated come back as they are.

    Raises:
      UserError: a field is unknown, missing or out of range, or two do not fit each other; the sentence names the
        field, its value and the rule.
    """
    if isinstance(config, Settings):
        return config
    for field in flatten(config):
        if field not in DECLARED:
            raise UserError(nearest_field(field))
    checked = declare.from_config(Settings, config)
    _check_together(checked)
    return checked


def _check_together(config: Settings) -> None:
    """Raises UserError if two settings do not fit each other."""
    if config.model.routing != "static":
        _check_synthesized(config.model)
    if config.data.eval_share and config.data.name != "folder":
        fail(
            "data.eval_share",
            config.data.eval_share,
            "is for data.name 'folder'; slice a TFDS split, as in 'train[:90%]'",
        )
    if config.model.routing == "task" and not config.data.task:
        fail("data.task", config.data.task, "must name an integer feature of the data set for the routing 'task'")
    if config.model.routing == "task" and config.loss.mix != "none":
        fail("loss.mix", config.loss.mix, "would mix images of different tasks; the routing 'task' needs 'none'")
    if config.loss.mix != "none" and config.batch_size % (2 * config.accumulate_steps):
        fail("batch_size", config.batch_size, "loss.mix pairs images; it must be a multiple of 2 * accumulate_steps")
    if config.distill.cache and not config.distill.teacher:
        fail("distill.cache", config.distill.cache, "needs config.distill.teacher, whose logits it holds")
    formats = config.export.formats
    unmade = "onnx" in formats and "tflite" not in formats
    if not formats or unmade or ("web" in formats and not any(name.endswith("tflite") for name in formats)):
        rule = (
            f"must be one or more of {', '.join(FORMATS)}; 'onnx' needs 'tflite', from which it is made, and 'web' "
            "needs 'tflite' or a smaller kind of it, which it runs"
        )
        fail("export.formats", formats, rule)
    if config.model.routing == "preview" and not config.export.early_exit and "safetensors" in formats:
        fail("export.early_exit", False, "is for files that run; leave 'safetensors' out of config.export.formats")
    if config.eval.checkpoint not in ("best", "newest") and not config.eval.checkpoint.isdecimal():
        fail("eval.checkpoint", config.eval.checkpoint, "must be 'best', 'newest' or a step such as '1621'")


def _check_synthesized(model: ModelSettings) -> None:
    """Raises UserError if what is to be synthesized is not in the specialist."""
    name, table = model.specialist.backbone, ARCHITECTURES[model.specialist.backbone]
    kinds = dict.fromkeys(layer.split("/")[-1] for layer in (*table.block_layers(), *table.head_layers()))
    if not model.synthesize or not {*model.synthesize} <= {"blocks", *kinds}:
        rule = f"must be one or more of {name}'s kinds of layers, {', '.join(['blocks', *kinds])}"
        fail("model.synthesize", model.synthesize, rule)
    if model.synthesize_from_block >= len(table.blocks):
        rule = f"must be one of {name}'s blocks, 0 to {len(table.blocks) - 1}"
        fail("model.synthesize_from_block", model.synthesize_from_block, rule)


def table_cell(text: str) -> str:
    """Returns a sentence as Markdown shows it in a table, every character as it is."""
    return re.sub(r"([|*<])", r"\\\1", text)


def page() -> str:
    """Returns docs/reference/settings.md."""
    lines = [
        "# Settings",
        "",
        "Generated by `python -m basisnet_jax.config`. A config file or the command line",
        "(`--config.model.num_bases=8`) changes a run's settings. *r* marks a setting that a resumed run may change.",
    ]
    before = None
    for declared in DECLARED.values():
        prefix = declared.name.rpartition(".")[0]
        if prefix != before:
            lines += ["", f"## {prefix or 'the run'}", "", "| setting | default | meaning |", "|---|---|---|"]
            before = prefix
        rule = f" {declared.rule.words[0].upper()}{declared.rule.words[1:]}." if declared.rule else ""
        mark = " *r*" if declared.may_change_on_resume else ""
        meaning = table_cell(f"{declared.meaning}{rule}")
        lines.append(f"| `{declared.name}`{mark} | `{declared.default!r}` | {meaning} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m basisnet_jax.config", description="Prints docs/reference/settings.md."
    ).parse_args()
    print(page(), end="")
