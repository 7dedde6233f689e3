"""What a user reads when processes or GPUs lose each other. tests/system/test_distributed.py runs real processes."""

import os

import jax
import pytest

from basisnet_jax.host import distributed

# Texts of jaxlib, as users report them: jax-ml/jax#19307 and #22747, openxla/xla#7201, and jaxlib's own strings.
TEXTS = {
    "INTERNAL: external/xla/xla/service/gpu/nccl_utils.cc:216: NCCL operation async_err failed: remote process exited "
    "or there was a network error": "GPUs could not exchange data",
    "INTERNAL: Failed to execute XLA Runtime executable: run time error: custom call 'xla.gpu.all_reduce' failed: "
    "NCCL operation ncclCommInitRank(&comm, nranks, id, rank) failed: unhandled system error (run with NCCL_DEBUG=INFO "
    "for details). Last NCCL warning(error) log entry (may be unrelated) 'socketTryAccept: Accept failed: Bad file "
    "descriptor'.": "GPUs could not exchange data",
    "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n/job:jax_worker/replica:0/task:1\n"
    "The tasks have crashed.": "a process no longer answers",
    "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was preempted/died/restarted "
    "unexpectedly or this task is experiencing network issues.": "process 0 cannot be reached",
    "DEADLINE_EXCEEDED: Barrier timed out. Id: sync. This usually happens because a task triggered the barrier too "
    "early or too slowly.": "one process did not reach the point where the others wait",
}


class Exited(Exception):  # noqa: N818
    """Stands for the end of the process."""


@pytest.fixture
def exits(monkeypatch):
    """Returns the exit codes of processes that would have ended."""
    codes = []

    def exit_process(code):
        codes.append(code)
        raise Exited

    monkeypatch.setattr(os, "_exit", exit_process)
    return codes


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("many", [False, True])
def test_a_broken_connection_is_one_sentence(text, many, exits, monkeypatch, capsys):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: many)
    with pytest.raises(Exited), distributed.exit_when_a_peer_dies():
        raise jax.errors.JaxRuntimeError(text)
    assert exits == [distributed.LOST], "the launch scripts restart a run that ends with this code"
    *trace, sentence = capsys.readouterr().err.strip().splitlines()
    assert trace, "the error itself is printed, too"
    assert sentence.startswith(f"error: {TEXTS[text]}")
    assert sentence.endswith("the same command resumes from the newest checkpoint.")
    assert text.splitlines()[0][-40:] in sentence, "the report is quoted"
    assert len(sentence) < 1000


def test_a_long_report_is_quoted_in_part():
    said = distributed.explain_broken_connection(RuntimeError("x" * 5000 + " NCCL operation failed " + "y" * 5000))
    assert "NCCL operation failed" in said
    assert len(said) < 1000


def test_other_errors_are_not_explained(exits, monkeypatch, capsys):
    """A process alone raises them; one of many ends with the general sentence."""
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte.")
    assert distributed.explain_broken_connection(error) is None
    with pytest.raises(jax.errors.JaxRuntimeError), distributed.exit_when_a_peer_dies():
        raise error
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with pytest.raises(Exited), distributed.exit_when_a_peer_dies():
        raise error
    assert "on an error of its own or because another process died" in capsys.readouterr().err
    assert exits == [distributed.LOST]
