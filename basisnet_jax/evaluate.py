"""Whole-set metrics."""

from basisnet_jax.experiment import EvalStep, Experiment
from basisnet_jax.metrics import Metrics, merge
from basisnet_jax.state import TrainState


def evaluate(experiment: Experiment, eval_step: EvalStep, state: TrainState) -> dict[str, float]:
    """Metrics over the evaluation split, every example counted once, and their 'count'.

    Returns:
      'count', 'top1', 'top5', 'loss', and for a network with a preview 'preview_top1' and 'coefficient_entropy'.

    Raises:
      RuntimeError: the number of examples counted is not that of the split.
    """
    total: Metrics | None = None
    for batch in experiment.eval_batches():
        total = merge(total, eval_step(state, batch))
    assert total is not None  # open_dataset refuses an empty split
    count = round(float(total["top1"].count))
    if count != experiment.plan.eval_examples:
        raise RuntimeError(f"evaluation counted {count} examples of {experiment.plan.eval_examples}")
    return {"count": count, **{name: float(metric.compute()) for name, metric in total.items()}}
