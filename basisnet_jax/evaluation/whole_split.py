"""Evaluates a split during training, from sums of metrics; `predictions.py` keeps every image's logits."""

from basisnet_jax.evaluation.predictions import _check_count
from basisnet_jax.experiment.run import EvalStep, Experiment
from basisnet_jax.host.terminal import Progress
from basisnet_jax.training.metrics import Metrics, merge
from basisnet_jax.training.state import TrainState


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
    variables, left = state.variables(ema=experiment.config.eval.ema), experiment.warm_start_left(int(state.step))
    for batch in experiment.eval_batches():
        total = merge(total, eval_step(variables, left, batch))
        if progress:
            progress.advance(len(batch["image"]))
    assert total is not None  # open_dataset refuses an empty split
    count = round(float(total["top1"].count))
    _check_count(count, experiment)
    return {"count": count, **{name: float(metric.compute()) for name, metric in total.items()}}
