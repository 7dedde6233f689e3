"""Many processes as one run: how they find each other, and how they stop together.

A run of one process needs none of this; there every function costs nothing.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from basisnet_jax.errors import UserError
from basisnet_jax.host.lost_peer import RESUMES

# A process without a heartbeat for this long counts as dead, and the others stop. A thread of JAX's own sends the
# heartbeats, also while the process compiles.
HEARTBEAT_SECONDS = 60
SHUTDOWN_SECONDS = 300  # the first process that is done waits this long for the last
LEAVE_SECONDS = 10  # a process that was refused waits this long for the others, which may have been refused too
LOST = 1  # exit code of a process that cannot reach the others, or stops because it lost them
# What it means where such a part stands in an error of jaxlib
_BROKEN_CONNECTIONS = {
    "NCCL": "GPUs could not exchange data, or one waited too long for the others; look for an earlier error in the "
    "logs of all processes, check the network between the nodes and the size of /dev/shm, and run with "
    "NCCL_DEBUG=INFO to see the step that fails",
    "heartbeat": "a process no longer answers; its log says why, or its node is gone",
    "coordination service": "process 0 cannot be reached; its log says why, or its node is gone",
    "Barrier timed out": "one process did not reach the point where the others wait; its log says why",
}
_BEFORE, _LONGEST_REPORT = 100, 500  # characters of the error that the sentence quotes: before that part, and in all
_LONGEST_SENTENCE = 1000  # bytes of an error that the other processes receive


def initialize(
    coordinator: str | None, num_processes: int | None, process_id: int | None, connect_seconds: int
) -> None:
    """Connects the processes of a run; to be called before anything touches a device.

    Where the first three arguments are None, JAX reads them from the environment of Cloud TPU, GKE, SLURM and Open MPI;
    elsewhere the process is alone. A process of SLURM has one GPU where its node runs several, else all of its node's.

    Args:
      coordinator: 'host:port' of process 0, as the others reach it.
      num_processes: of the run; with 1 the process is alone, whatever the environment says.
      process_id: 0 to num_processes - 1.
      connect_seconds: a process that has not met all others by then gives up, says so, and exits with code `LOST`.

    Raises:
      UserError: the arguments are incomplete or wrong.
    """
    if num_processes == 1:
        return
    # JAX aborts with a stack trace where it cannot connect, so JAX's timeout is longer than ours.
    timer = threading.Timer(connect_seconds, _exit, [_no_connection(connect_seconds), LOST])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            _local_device_ids(),
            initialization_timeout=connect_seconds + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        given = (coordinator, num_processes, process_id) != (None,) * 3
        if given or "coordinator_address should be defined" not in str(error):
            raise UserError(
                f"the processes of this run cannot be connected ({str(error).splitlines()[0]}); give each one "
                "--coordinator=HOST:PORT --num_processes=N --process_id=I, or --num_processes=1 if there is only one."
            ) from None
    finally:
        timer.cancel()


def _local_device_ids() -> list[int] | None:
    """Returns [], all GPUs that this process sees, where JAX would take the wrong one; None leaves the choice to JAX.

    Under SLURM JAX takes GPU number SLURM_LOCALID, also where a node runs one process, whose other GPUs then idle
    (jax-ml/jax#16788), and where SLURM shows each process its own GPU alone, which is number 0 to all of them.
    """
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE")  # such as '8(x3),1': 8 processes on three nodes, 1 on another
    if tasks is None or "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return None
    one_process_a_node = set(re.sub(r"\(x\d+\)", "", tasks).split(",")) == {"1"}
    one_visible_gpu = len(os.environ.get("CUDA_VISIBLE_DEVICES", "all,").split(",")) == 1
    return [] if one_process_a_node or one_visible_gpu else None


def _no_connection(seconds: int) -> str:
    return (
        f"the processes of this run did not all connect within {seconds} s; check that all are started with the same "
        "--coordinator and --num_processes, each has its own --process_id, and all can reach the coordinator's port, "
        "or wait longer with --connect_seconds."
    )


@contextlib.contextmanager
def raise_user_errors_on_all_processes() -> Iterator[None]:
    """Raises any process's UserError on all processes, at the context's end: none waits for a process that stopped."""
    error: UserError | None = None
    try:
        yield
    except UserError as raised:
        error = raised
    if jax.distributed.is_initialized():
        own = str(error).encode()[:_LONGEST_SENTENCE] if error else b""
        padded = np.frombuffer(own.ljust(_LONGEST_SENTENCE, b"\0"), np.uint8)
        everyones = np.asarray(multihost_utils.process_allgather(padded)).reshape(-1, _LONGEST_SENTENCE)
        for process, sentence in enumerate(everyones):
            if sentence.any() and error is None:
                text = sentence.tobytes().rstrip(b"\0").decode(errors="replace")
                error = UserError(f"process {process} of {len(everyones)}: {text}")
    if error is not None:
        raise error


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], bool]]:
    """Yields stop(step): whether SIGINT or SIGTERM has asked to stop. A second SIGINT stops at once.

    A SIGTERM after another one, or after a SIGINT, is the same request: programs that pass signals on may send both.

    Call stop once before each step. Any of many processes may get the signal; all get True at the same step, which
    JAX's preemption service sets a little ahead of the fastest process.
    """
    received: list[int] = []
    many = jax.distributed.is_initialized()

    def handler(number: int, frame: object) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)
        if many:
            signal.raise_signal(signal.SIGTERM)  # the preemption service handles it

    # With many processes, the preemption service's handler for SIGTERM stays.
    previous = {
        number: signal.signal(number, handler)
        for number in ((signal.SIGINT,) if many else (signal.SIGINT, signal.SIGTERM))
    }
    try:
        yield multihost_utils.reached_preemption_sync_point if many else lambda step: bool(received)
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def total(*counts: int) -> tuple[int, ...]:
    """Returns the sum of each count over all processes, which wait for each other."""
    if not jax.distributed.is_initialized():
        return counts
    everyones = np.asarray(multihost_utils.process_allgather(np.array(counts))).reshape(-1, len(counts))
    return tuple(everyones.sum(axis=0).tolist())


def from_process_0(text: str) -> str:
    """Returns the text of process 0, on all processes."""
    if not jax.distributed.is_initialized():
        return text
    own = text.encode() if jax.process_index() == 0 else b""
    (size,) = total(len(own))
    padded = np.frombuffer(own.ljust(size, b"\0"), np.uint8)
    return np.asarray(multihost_utils.process_allgather(padded)).reshape(-1, size)[0].tobytes().decode()


def is_first() -> bool:
    """Returns whether this process is alone or the first of many. A process that is alone starts no device for it."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def say(text: str) -> None:
    """Prints the text; of many processes only the first prints."""
    if is_first():
        print(text)


@contextlib.contextmanager
def exit_when_a_peer_dies() -> Iterator[None]:
    """Ends a process of many that fails in this context: it must not wait for processes that wait for it.

    By default a process that ends waits until all are done, for `SHUTDOWN_SECONDS`. After sys.exit this one waits
    `LEAVE_SECONDS` for others that do the same. After any other exception it says what happened and exits with `LOST`
    at once. So does a process that is alone, if its GPUs could not exchange data.
    """
    try:
        yield
    except SystemExit as leaving:
        if jax.distributed.is_initialized():
            timer = threading.Timer(LEAVE_SECONDS, _exit, ["", leaving.code])
            timer.daemon = True
            timer.start()
        raise
    except BaseException as error:
        broken = explain_broken_connection(error)
        if not broken and not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        unknown = (
            "this process stopped, on an error of its own or because another process died, whose log then says why"
        )
        _exit(f"{broken or unknown}; {RESUMES}.", LOST)


def explain_broken_connection(error: BaseException) -> str | None:
    """Returns what an error says about the connection between processes or GPUs; None if it says nothing about it."""
    for part, meaning in _BROKEN_CONNECTIONS.items():
        line = next((line for line in str(error).splitlines() if part in line), None)
        if line is not None:
            start = max(0, line.index(part) - _BEFORE)
            return f"{meaning} ({line[start : start + _LONGEST_REPORT]})"
    return None


def _exit(sentence: str, code: int) -> NoReturn:
    """Ends this process and the processes that read its data, without telling other hosts."""
    if sentence:
        print(f"error: {sentence}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    for child in multiprocessing.active_children():
        child.terminate()
    os._exit(code)
