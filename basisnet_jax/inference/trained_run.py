"""Opens a trained run for inference, and finds the exit rule that fits the run."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from basisnet_jax.config import Config
from basisnet_jax.errors import UserError
from basisnet_jax.experiment import network_files
from basisnet_jax.experiment.model import make_model
from basisnet_jax.experiment.plan import derive
from basisnet_jax.host.records import read_object, typed
from basisnet_jax.models.basisnet import BasisNet, Variables
from basisnet_jax.serving.exit_rule import ChosenRule, Provenance, threshold_rule
from basisnet_jax.serving.export import Export
from basisnet_jax.serving.formats import WEIGHTS
from basisnet_jax.settings.declare import fail
from basisnet_jax.settings.groups import ModelSettings, Settings
from basisnet_jax.training.schedule import warm_start
from basisnet_jax.workdir.checkpoint import restore_model
from basisnet_jax.workdir.run_folder import is_export, open_run


@dataclasses.dataclass(frozen=True)
class OpenedRun:
    """A trained run, restored for the first device; its data may be missing."""

    folder: epath.Path
    config: Settings  # the run's; `model` may compute differently
    model: BasisNet
    step: int  # after which the variables were saved
    variables: Variables  # float32 arrays of NumPy
    data_name: str  # people's name for the training data set
    warm_start_left: float  # at `step`, from 1 to 0
    classes: tuple[str, ...]
    side: int  # of the images, in pixels
    channels: int


def open_trained(workdir: str, config: Config | None = None, **of_the_model: Any) -> OpenedRun:
    """Restores the model and the facts of a trained run, or of an export with the format 'safetensors'.

    Args:
      workdir: folder of the run or of the export.
      config: as in `TwoStageClassifier.from_checkpoint`.
      of_the_model: fields of config.model that change how the model computes, and not its parameters.

    Raises:
      UserError: no run, no checkpoint, another model than the config's, or a routing that needs more than an image.
    """
    folder, config = open_run(workdir, config, or_export=True)
    if config.model.routing == "task":
        fail("model.routing", "task", "needs each image's task, which an image file does not have")
    model_settings = dataclasses.replace(config.model, **of_the_model)
    if is_export(workdir):
        return _open_weights(folder, config, model_settings)
    facts = _facts(folder / "data.json")
    model = make_model(model_settings, len(facts.classes))
    alone = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=1))
    plan = derive(alone, train_examples=facts.train_examples, eval_examples=1, devices=1, processes=1, training=False)
    step, variables = restore_model(folder, config.eval.checkpoint, ema=config.eval.ema)
    return OpenedRun(
        folder=folder,
        config=config,
        model=model,
        step=step,
        variables=variables,
        warm_start_left=float(warm_start(step, plan.warm_start_steps)),
        data_name=facts.name or config.data.name,
        classes=tuple(facts.classes),
        side=config.eval_resolution,
        channels=facts.channels,
    )


def _open_weights(folder: epath.Path, config: Settings, model_settings: ModelSettings) -> OpenedRun:
    """Opens an export's weights. Raises UserError if it has none, or they are damaged."""
    export = Export.open(os.fspath(folder))
    manifest = export.manifest
    if WEIGHTS not in manifest.files or manifest.frozen:
        raise UserError(f"{folder} has no {WEIGHTS} of a run's network; give the --workdir of the run.")
    facts, _, variables = network_files.from_files(export.read)
    return OpenedRun(
        folder=folder,
        config=config,
        model=make_model(model_settings, len(facts.classes)),
        step=manifest.step,
        variables=variables,
        warm_start_left=facts.warm_start,
        data_name=manifest.data.name,
        classes=tuple(facts.classes),
        side=config.eval_resolution,
        channels=facts.channels,
    )


def rule_of(opened: OpenedRun, threshold: float | None = None) -> ChosenRule:
    """Returns the rule to use with a run that has a preview.

    Args:
      opened: the run.
      threshold: the user's threshold; None takes the rule that --mode=evaluate chose.

    Raises:
      UserError: there is no rule, the rule was chosen with other weights, or the threshold is not a probability.
    """
    if threshold is not None:
        return ChosenRule(threshold_rule(threshold))
    folder = opened.folder / "evaluation"
    chosen = ChosenRule.load(folder)
    chosen.check_fits(provenance_of(opened.config, opened.data_name, opened.step), folder)
    return chosen


@dataclasses.dataclass(frozen=True)
class _DataFacts:
    """What `data.json` says of the training data."""

    classes: list[str]
    channels: int
    train_examples: int
    name: str = ""


def _facts(path: epath.Path) -> _DataFacts:
    """Reads a run's `data.json`. Raises UserError if it is missing, or is not what --mode=train writes."""
    try:
        content = read_object(path)
        names = {field.name for field in dataclasses.fields(_DataFacts)}
        facts = typed(_DataFacts, {name: value for name, value in content.items() if name in names})
        if not facts.classes or facts.channels not in (1, 3) or facts.train_examples < 1:
            raise ValueError
        return facts
    except FileNotFoundError:
        raise UserError(
            f"there is no {path}, which has the names of the classes; the run's --mode=train writes it."
        ) from None
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path} is damaged: it is not what --mode=train writes; run that once more.") from None


def provenance_of(config: Settings, data_name: str, step: int, files: Mapping[str, str] | None = None) -> Provenance:
    """Returns what a rule is chosen or used with: weights and images.

    Args:
      config: settings of the evaluation or the prediction.
      data_name: people's name for the data set.
      step: the checkpoint's step.
      files: {name: SHA-256} of an export's files; None for a checkpoint.
    """
    return Provenance(
        step=step,
        checkpoint=config.eval.checkpoint,
        ema=config.eval.ema,
        resolution=config.eval_resolution,
        data=data_name,
        split=config.data.eval_split,
        crop=config.data.eval_crop,
        padding=config.data.eval_padding if config.data.eval_crop == "central" else 0,
        exif_orientation=config.data.exif_orientation,
        files=dict(files or {}),
    )
