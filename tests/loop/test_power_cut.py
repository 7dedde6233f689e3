"""What is on disk before it counts, so that a power cut between the two costs nothing."""

import types

from basisnet_jax.host import terminal
from basisnet_jax.loop import training_loop


def test_points_of_an_evaluation_are_on_disk_before_the_evaluation_is_recorded(monkeypatch, tmp_path):
    """A resumed run does not evaluate a step again that is recorded, so a lost point would stay lost."""
    order = []
    loop = object.__new__(training_loop.TrainingLoop)
    loop.checkpoints = types.SimpleNamespace(evaluation=lambda _: None, record=lambda *_: order.append("recorded"))
    loop.experiment = types.SimpleNamespace(plan=types.SimpleNamespace(eval_examples=1, epoch=lambda _: 1))
    loop.writer = types.SimpleNamespace(flush=lambda: order.append("flushed"))
    loop.progress, loop.newest_evaluation = terminal.Progress(silent=True), {"eval": ".5"}
    loop.eval_step, loop.event_folder = None, tmp_path
    monkeypatch.setattr(training_loop, "evaluate", lambda *_: {"top1": 0.5, "loss": 1.0, "count": 1})
    monkeypatch.setattr(training_loop.events, "write_evaluation", lambda *_: None)
    monkeypatch.setattr(training_loop.events, "sync", lambda _: order.append("synced"))
    loop._evaluation(3, None)
    assert order == ["flushed", "synced", "recorded"]
