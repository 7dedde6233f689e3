"""Runs a network on every image of a split: for sums of metrics during training, or for every image's logits."""

import dataclasses

import jax
import numpy as np
from jax.experimental import multihost_utils

from basisnet_jax.evaluation import calibration
from basisnet_jax.evaluation.coefficients import CoefficientSums
from basisnet_jax.evaluation.results import StageMetrics
from basisnet_jax.experiment.run import EvalStep, Experiment
from basisnet_jax.host.mesh import on_mesh
from basisnet_jax.host.terminal import Progress
from basisnet_jax.models.stages import ABLATIONS, Stages, random_cycle
from basisnet_jax.training.metrics import Metrics, is_correct, merge
from basisnet_jax.training.state import TrainState


def _check_count(count: int, experiment: Experiment) -> None:
    if count != experiment.plan.eval_examples:
        raise RuntimeError(f"evaluation counted {count} examples of {experiment.plan.eval_examples}")


def evaluate(
    experiment: Experiment, eval_step: EvalStep, state: TrainState, progress: Progress | None = None
) -> dict[str, float]:
    """Returns metrics over the evaluation split, every example counted once, and the 'count' of examples.

    Args:
      experiment: the data, mesh and evaluation settings.
      eval_step: the experiment's evaluation step.
      state: the state to evaluate: its moving averages if `eval.ema` is true.
      progress: counts the images of the current stage.

    Returns:
      'count', 'top1', 'top5', 'loss', and for a network with a preview 'preview_top1' and 'coefficient_entropy'.

    Raises:
      RuntimeError: the number of examples counted differs from the split's.
    """
    total: Metrics | None = None
    variables = on_mesh(state.variables(ema=experiment.config.eval.ema), experiment.abstract_variables)
    left = experiment.warm_start_left(int(state.step))
    for batch in experiment.eval_batches():
        total = merge(total, eval_step(variables, left, batch))
        if progress:
            progress.advance(len(batch["image"]))
    assert total is not None  # open_dataset refuses an empty split
    count = round(float(total["top1"].count))
    _check_count(count, experiment)
    return {"count": count, **{name: float(metric.compute()) for name, metric in total.items()}}


@dataclasses.dataclass(frozen=True)
class Predictions:
    """A network's outputs for all images of the evaluation split, in the split's order; complete on every host."""

    labels_N: np.ndarray  # int32
    logits_NxK: np.ndarray  # float32
    preview_logits_NxK: np.ndarray | None  # float32; None without a preview
    coefficients: CoefficientSums | None  # None without a preview


def predict(
    experiment: Experiment, stages: Stages, coefficients: str = "predicted", progress: Progress | None = None
) -> Predictions:
    """Runs the evaluation split through both stages.

    Args:
      experiment: the data, mesh and evaluation settings.
      stages: first(images uint8[B, H, W, C]) -> (preview logits [B, K], coefficients [B, L, N]), and
        second(images, coefficients or None, tasks int32[B] or None) -> logits [B, K]; float32.
      coefficients: one of `ABLATIONS`: the coefficients for the specialist. With 'shuffle_images', image i gets the
        coefficients of image `random_cycle(count)[i]` of the split, whatever the batches and devices.
      progress: counts the images of the current stage.

    Raises:
      RuntimeError: the number of examples counted differs from the split's.
    """
    first, second = stages
    change, count = jax.jit(ABLATIONS[coefficients]), experiment.plan.eval_examples
    batches = experiment.eval_batches()
    if coefficients == "shuffle_images":
        donors = experiment.eval_batches(random_cycle(count))
        batches = ({**batch, "donor": donor["image"]} for batch, donor in zip(batches, donors, strict=True))
    pieces: list[dict[str, np.ndarray]] = []
    sums: CoefficientSums | None = None
    for batch in batches:
        outputs = {"labels": batch["label"], "mask": batch["mask"]}
        if first:
            outputs["preview"], predicted_BxLxN = first(batch.get("donor", batch["image"]))
            outputs["coefficients"] = change(predicted_BxLxN)
        outputs["logits"] = second(batch["image"], outputs.get("coefficients"), batch.get("task"))
        on_host = multihost_utils.process_allgather(outputs, tiled=True)
        piece = {name: array_B[on_host["mask"] > 0] for name, array_B in on_host.items()}
        if "coefficients" in piece:
            coefficients_BxLxN = piece.pop("coefficients")
            sums = sums or CoefficientSums.zero(experiment.data.num_classes, *coefficients_BxLxN.shape[1:])
            sums.add(coefficients_BxLxN, piece["labels"], piece["preview"].argmax(axis=-1))
        pieces.append(piece)
        if progress:
            progress.advance(len(piece["labels"]))
    whole = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    _check_count(len(whole["labels"]), experiment)
    return Predictions(whole["labels"], whole["logits"], whole.get("preview"), sums)


def summarize(logits_NxK: np.ndarray, labels_N: np.ndarray) -> StageMetrics:
    """Returns the metrics of one stage's logits."""
    correct_N = is_correct(logits_NxK, labels_N)
    return StageMetrics(
        top1=float(correct_N.mean()),
        top5=float(is_correct(logits_NxK, labels_N, k=5).mean()),
        loss=calibration.cross_entropy(logits_NxK, labels_N),
        ece=calibration.reliability(logits_NxK, correct_N).ece,
    )
