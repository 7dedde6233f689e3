"""Whole-set metrics: from sums while a run trains, from every image's logits when it is looked at closely."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from scipy import special

from basisnet_jax.evaluation import calibration
from basisnet_jax.experiment.run import EvalStep, Experiment
from basisnet_jax.host.terminal import Progress
from basisnet_jax.models.ablations import ABLATIONS, random_cycle
from basisnet_jax.models.stages import Stages
from basisnet_jax.training.losses import correct
from basisnet_jax.training.metrics import Metrics, merge
from basisnet_jax.training.state import TrainState


def evaluate(
    experiment: Experiment, eval_step: EvalStep, state: TrainState, progress: Progress | None = None
) -> dict[str, float]:
    """Returns metrics over the evaluation split, every example counted once, and their 'count'.

    Args:
      experiment: its data, mesh and evaluation settings.
      eval_step: the experiment's.
      state: what is evaluated: its moving averages, if `eval.ema` says so.
      progress: counts the images of its stage.

    Returns:
      'count', 'top1', 'top5', 'loss', and for a network with a preview 'preview_top1' and 'coefficient_entropy'.

    Raises:
      RuntimeError: the number of examples counted is not that of the split.
    """
    total: Metrics | None = None
    variables, left = state.variables(ema=experiment.config.eval.ema), experiment.warm_start_left(int(state.step))
    for batch in experiment.eval_batches():
        total = merge(total, eval_step(variables, left, batch))
        if progress:
            progress.advance(len(batch["image"]))
    assert total is not None  # open_dataset refuses an empty split
    count = round(float(total["top1"].count))
    _check_count(count, experiment)
    return {"count": count, **{name: float(metric.compute()) for name, metric in total.items()}}


def _check_count(count: int, experiment: Experiment) -> None:
    if count != experiment.plan.eval_examples:
        raise RuntimeError(f"evaluation counted {count} examples of {experiment.plan.eval_examples}")


@dataclasses.dataclass
class CoefficientSums:
    """Coefficients summed over images, so that no more than tables by class are held; float64."""

    classes: np.ndarray  # [K, L, N], by the image's class
    guesses: np.ndarray  # [K, L, N], by the class that the preview guesses
    squares: np.ndarray  # [L], squared coefficients
    entropy: np.ndarray  # [L], of the coefficients over log N
    wins: np.ndarray  # [L, N], images for which a basis has the largest coefficient
    images: np.ndarray  # [K], by class
    guessed: np.ndarray  # [K], by the preview's guess

    @classmethod
    def zero(cls, num_classes: int, vectors: int, bases: int) -> "CoefficientSums":
        """Of no image."""
        by_class, by_vector = (num_classes, vectors, bases), (vectors,)
        shapes = (by_class, by_class, by_vector, by_vector, (vectors, bases), (num_classes,), (num_classes,))
        return cls(*map(np.zeros, shapes))

    def add(self, coefficients_BxLxN: np.ndarray, labels_B: np.ndarray, guesses_B: np.ndarray) -> None:
        """A batch more."""
        coefficients_BxLxN = coefficients_BxLxN.astype(np.float64)
        bases = coefficients_BxLxN.shape[-1]
        np.add.at(self.classes, labels_B, coefficients_BxLxN)
        np.add.at(self.images, labels_B, 1)
        np.add.at(self.guesses, guesses_B, coefficients_BxLxN)
        np.add.at(self.guessed, guesses_B, 1)
        self.squares += np.square(coefficients_BxLxN).sum(axis=(0, -1))
        self.entropy += special.entr(coefficients_BxLxN).sum(axis=(0, -1)) / np.log(max(bases, 2))
        self.wins += (coefficients_BxLxN.argmax(axis=-1)[..., None] == np.arange(bases)).sum(axis=0)

    def means(self) -> dict[str, np.ndarray]:
        """'by_class' [K, L, N] (0 for a class without images), 'entropy' [L], 'wins' [L, N]."""
        count = self.images.sum()
        by_class = self.classes / np.maximum(self.images, 1)[:, None, None]
        return {"by_class": by_class, "entropy": self.entropy / count, "wins": self.wins / count}

    def class_share(self) -> dict[str, Any]:
        """The share of their variance over the images that lies between the classes that the preview guesses.

        With c[b] the coefficients of image b, m their mean, k(b) the class that the preview guesses, and m[k] the mean
        over the n[k] images of class k, it is sum_k n[k] |m[k] - m|^2 / sum_b |c[b] - m|^2. Coefficients that have
        nothing to do with K classes get (K - 1) / (B - 1).

        Returns:
          'all' over all vectors together, 'vectors' of each; 0 where the coefficients are the same for all images.
        """
        count = self.guessed.sum()
        of_mean_L = np.square(self.guesses.sum(axis=0)).sum(axis=-1) / count
        of_means_L = (np.square(self.guesses).sum(axis=-1) / np.maximum(self.guessed, 1)[:, None]).sum(axis=0)
        between_L, total_L = of_means_L - of_mean_L, self.squares - of_mean_L
        # Float32's rounding alone is less than a billionth.
        least = 1e-9 * count
        vectors_L = np.where(total_L > least, between_L / np.maximum(total_L, least), 0.0)
        everything = between_L.sum() / total_L.sum() if total_L.sum() > least else 0.0
        return {"all": float(everything), "vectors": vectors_L.tolist()}


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a network says of every image of the evaluation split, in the split's order; whole on every host."""

    labels_N: np.ndarray  # int32
    logits_NxK: np.ndarray  # float32
    preview_logits_NxK: np.ndarray | None  # float32; None without a preview
    coefficients: CoefficientSums | None  # None without a preview


def predict(
    experiment: Experiment, stages: Stages, coefficients: str = "predicted", progress: Progress | None = None
) -> Predictions:
    """Runs the evaluation split through both stages.

    Args:
      experiment: its data, mesh and evaluation settings.
      stages: first(images uint8[B, H, W, C]) -> (preview logits [B, K], coefficients [B, L, N]), and
        second(images, coefficients or None, tasks int32[B] or None) -> logits [B, K]; float32.
      coefficients: one of `ABLATIONS`, what the specialist gets. For 'shuffle_images' it gets for image i what the
        preview predicts for image `random_cycle(count)[i]` of the split, whatever the batches and the devices.
      progress: counts the images of its stage.

    Raises:
      RuntimeError: the number of examples counted is not that of the split.
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
        found = {"labels": batch["label"], "mask": batch["mask"]}
        if first:
            found["preview"], predicted_BxLxN = first(batch.get("donor", batch["image"]))
            found["coefficients"] = change(predicted_BxLxN)
        found["logits"] = second(batch["image"], found.get("coefficients"), batch.get("task"))
        on_host = multihost_utils.process_allgather(found, tiled=True)
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


def is_correct(logits_NxK: np.ndarray, labels_N: np.ndarray, k: int = 1) -> np.ndarray:
    """`losses.correct`, as float64[N] on the host."""
    return np.asarray(correct(jnp.asarray(logits_NxK), jnp.asarray(labels_N), k), np.float64)


def summarize(logits_NxK: np.ndarray, labels_N: np.ndarray) -> dict[str, Any]:
    """Top-1, top-5, loss (cross entropy) and ECE."""
    correct_N = is_correct(logits_NxK, labels_N)
    return {
        "top1": float(correct_N.mean()),
        "top5": float(is_correct(logits_NxK, labels_N, k=5).mean()),
        "loss": calibration.cross_entropy(logits_NxK, labels_N),
        "ece": calibration.reliability(logits_NxK, correct_N).ece,
    }
