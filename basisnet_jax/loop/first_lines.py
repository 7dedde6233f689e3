"""The start of a training's output: the lines that say what runs, on what and where, and the stage that shows steps."""

import math

from basisnet_jax.experiment.run import Experiment
from basisnet_jax.host import compilation_cache, devices, installed, terminal


def first_lines(experiment: Experiment, workdir: str, resumed_from: int | None) -> list[str]:
    """Returns the first lines of a training: what runs, on what, and where its results go.

    Args:
      experiment: the run's.
      workdir: the run's folder, as the user gave it.
      resumed_from: step of the checkpoint that the run resumes from; None for a new run.
    """
    used = experiment.mesh.devices.ravel().tolist()
    plan, data, config = experiment.plan, experiment.data, experiment.config
    begins = "new" if resumed_from is None else f"resumed from step {resumed_from:,} of {plan.total_steps:,}"
    rows = {
        "devices": devices.described(used),
        "data": f"{data.name}, {data.num_classes:,} classes: {plan.train_examples:,} images to train on, "
        f"{plan.eval_examples:,} to evaluate",
        **_networks(experiment),
        "teacher": config.distill.teacher,
        "training": f"{config.epochs:g} epochs, {plan.total_steps:,} steps of {plan.batch_size:,} images, "
        f"seed {config.seed}",
        "workdir": f"{workdir} ({begins})",
    }
    lines = [(name, text) for name, text in rows.items() if text] + [("note", note) for note in plan.notes]
    lines += [("problem", sentence) for sentence in devices.problems(used[0].platform)]
    return [installed.versions_line(), *(f"  {name:10} {text}" for name, text in lines)]


def epoch_of(experiment: Experiment, step: int) -> str:
    """Returns the epoch of a step counted from 1, as 'epoch 3/40'."""
    return f"epoch {experiment.plan.epoch(step)}/{math.ceil(experiment.config.epochs)}"


def show_training(experiment: Experiment, first: int, progress: terminal.Progress) -> None:
    """Begins the stage that shows a training after its first `first` steps."""
    progress.stage(
        epoch_of(experiment, first + 1),
        experiment.plan.total_steps,
        done=first,
        step_images=experiment.plan.batch_size,
        waiting=compilation_cache.compiling(),
        logged=False,
    )


def _networks(experiment: Experiment) -> dict[str, str]:
    """Returns a row for each network, and one for both where there are two."""
    cost, model, settings = experiment.cost(), experiment.model, experiment.config.model
    parameters, mixed = f"{cost.parameters:,} parameters", cost.synthesis + cost.specialist
    large = f"{settings.specialist.backbone}, {experiment.image_shape[0]} px"
    if model.preview is None:
        routing = f", routing {settings.routing}" if model.routing else ""
        return {"network": f"{large}{routing}: {mixed:,} multiply-adds, {parameters}"}
    small = f"{settings.preview.backbone}, {settings.preview.resolution} px"
    return {
        "preview": f"{small}: {cost.preview:,} multiply-adds",
        "specialist": f"{large}, {settings.num_bases} bases: {mixed:,} multiply-adds",
        "both": f"{cost.total:,} multiply-adds an image, {parameters}",
    }
