"""Starts training in forks of a process that has imported everything: a kill then costs a second, not ten.

The process that is forked has no other thread, so no fork finds a lock that another thread held. JAX, gRPC, TensorFlow
and tensorstore start theirs in the forks, where they are first used.
"""

import dataclasses
import faulthandler
import os
import pathlib
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence

import survival

FAST_TO_COMPILE = ("--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true")  # as in the tests
MOST_SECONDS = 300.0  # after which a process that lost its peer hangs


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a run is spread: processes, devices of each, fsdp, pieces of a batch, waits for saves; and its routing."""

    processes: int = 1
    devices: int = 1
    fsdp: int = 1
    accumulate: int = 1
    waits: bool = False
    routing: str = "preview"


class ForkedLife:
    """One start of a run: a fork for each of its processes.

    Attributes:
      victims: numbers of the processes that `kill` kills.
      orphaned: seconds until the other processes had ended by themselves; None before, or where none was left.
    """

    def __init__(
        self, layout: Layout, diary: pathlib.Path, arguments: Sequence[str], victims: Sequence[int] = (0,)
    ) -> None:
        self.victims, self.orphaned = victims, None
        self._codes: dict[int, int] = {}
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        settings = {
            "mesh.fsdp": layout.fsdp,
            "accumulate_steps": layout.accumulate,
            "model.routing": layout.routing,
        }
        words = [*arguments, *(f"--config.{name}={value}" for name, value in settings.items())]
        together = (f"--coordinator=localhost:{port}", f"--num_processes={layout.processes}")
        self.pids = []
        for number in range(layout.processes):
            own = diary.with_name(f"{diary.name}.{number}") if number else diary
            own_words = (*together, f"--process_id={number}") if layout.processes > 1 else ()
            self.pids.append(_fork(layout, own, [*words, *own_words]))

    def poll(self) -> int | None:
        """Returns the exit code once every process has ended; None before."""
        for number, pid in enumerate(self.pids):
            if number not in self._codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self._codes[number] = os.waitstatus_to_exitcode(status)
        if len(self._codes) < len(self.pids):
            return None
        codes = sorted(self._codes.values())
        return codes[0] or codes[-1]  # a kill's code is negative

    def kill(self) -> None:
        """Kills the victims."""
        for number in self.victims:
            if number not in self._codes:
                os.kill(self.pids[number], signal.SIGKILL)

    def wait(self) -> int:
        """Waits for all processes. Raises RuntimeError if one hangs after another was killed."""
        killed = time.monotonic() if self.victims else None
        while (code := self.poll()) is None:
            time.sleep(0.005)
            if killed and time.monotonic() - killed > MOST_SECONDS:
                for number in set(range(len(self.pids))) - self._codes.keys():
                    os.kill(self.pids[number], signal.SIGKILL)
                raise RuntimeError(f"{MOST_SECONDS} s after a kill only these processes had ended: {self._codes}")
        if killed and code == -signal.SIGKILL and len(self.victims) < len(self.pids):
            self.orphaned = time.monotonic() - killed
        return code


def import_everything() -> None:
    """Imports what a run imports; starts no device and no thread."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy and SciPy start theirs as they are imported
    from clu import metric_writers  # noqa: F401
    from tensorboard.backend.event_processing import event_accumulator  # noqa: F401

    import basisnet_jax.loop.train
    import basisnet_jax.modes.parsing  # noqa: F401


def use_cpu_devices(count: int) -> None:
    """Has this process start so many CPU devices, whose programs are compiled fast."""
    flags = [f"--xla_force_host_platform_device_count={count}", *FAST_TO_COMPILE]
    os.environ.update(XLA_FLAGS=" ".join([os.environ.get("XLA_FLAGS", ""), *flags]), JAX_PLATFORMS="cpu")


def run_in_fork(function, *arguments) -> int:
    """Runs a function in a fork, whose exit code is what the function returns; returns it."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = function(*arguments)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _fork(layout: Layout, diary: pathlib.Path, arguments: Sequence[str]) -> int:
    """Starts a process of a run, and returns its number; DIARY.log has what it prints."""
    threads = [pathlib.Path(task, "comm").read_text().strip() for task in pathlib.Path("/proc/self/task").iterdir()]
    if len(threads) > 1:
        raise RuntimeError(f"a process with threads must not fork; these run: {threads}")
    pid = os.fork()
    if pid:
        return pid
    faulthandler.enable(all_threads=False)
    log = os.open(f"{diary}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        code = _train(layout, diary, arguments)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _train(layout: Layout, diary: pathlib.Path, arguments: Sequence[str]) -> int:
    use_cpu_devices(layout.devices)
    from absl import app

    from basisnet_jax import main
    from basisnet_jax.modes import parsing
    from basisnet_jax.workdir import checkpoint

    survival.note_phases(diary)
    if layout.processes > 1:
        _keep_programs_of_all_processes()
    if layout.waits:
        save = checkpoint.Checkpoints.save

        def save_and_wait(self, *given) -> None:
            save(self, *given)
            self.wait()

        checkpoint.Checkpoints.save = save_and_wait  # type: ignore[method-assign]
    sys.argv = ["main.py", *arguments]
    app.run(main.main, flags_parser=parsing.parse_flags)
    return 0


def _keep_programs_of_all_processes() -> None:
    """Has processes other than 0 keep their compiled programs, too.

    JAX lets process 0 alone write, so that hosts do not contend for a file. Its keys differ between processes on CPU,
    so the others would compile in every life, and most kills would meet that.
    """
    import types

    from jax._src import compiler, distributed

    class Writer:
        """The distributed state, as the code that writes programs sees it."""

        @property
        def global_state(self) -> types.SimpleNamespace:
            return types.SimpleNamespace(client=distributed.global_state.client, process_id=0)

    compiler.distributed = Writer()
