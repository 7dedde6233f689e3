"""Keeps other libraries' lines off the terminal, unless `--verbosity` asks for them.

Lines marked as information or warnings are dropped. Errors and unmarked lines, such as a crash's last words, pass.
JAX's stack trace where a process of the run is lost becomes one sentence.
"""

import logging
import os
import pathlib
import re
import signal
import sys
import warnings
from collections.abc import Callable

import basisnet_jax
from basisnet_jax.host import lost_peer

PACKAGE = str(pathlib.Path(basisnet_jax.__file__).parent)
_NATIVE = re.compile(  # information and warnings of C++ libraries
    rb"[IW]\d{4} [\d:.]+ "  # absl's and glog's
    rb"|WARNING: All log messages before absl::InitializeLog"
    rb"|INFO: "  # LiteRT's
    rb"|[\d-]{10} [\d:.]{8,}: [IW] "  # old TensorFlow's
    rb"|To enable the following instructions: .* rebuild TensorFlow"
    rb"|(\x1b\[[\d;]*m)?[\d-]{10} [\d:.]{8,} \[[IVW]:onnxruntime"
    # Image libraries' complaints about a file: where its pixels cannot be read, our own sentence names the file.
    rb"|libpng (error|warning): |Corrupt JPEG data: |Premature end of JPEG file|Invalid SOS parameters"
    # XLA's alarm at a compilation of minutes is marked as an error: the live line says how long compiling takes.
    rb"|E\d{4} .*slow_operation_alarm.cc|\*{32}$|\[Compiling module .*\] Very slow compile\?"
    # What process 0 says of a lost process before JAX aborts it: the sentence on the abort names that process.
    rb"|E\d{4} .*(coordination_service(_agent)?|preemption_sync_manager)\.cc:|\d+$|The tasks have crashed\. "
    rb"|=== Source Location |external/xla|Additional GRPC error information |:UNKNOWN:Error received from peer"
    rb"|$"
)
_own_stderr: int | None = None  # file descriptor of the stderr that the process was started with


def filter_native_stderr() -> None:
    """Sends what native code writes to file descriptor 2 through a process that drops information and warnings.

    The filter is a process, not a thread, so it still prints what this process wrote before a crash. `sys.stderr`
    bypasses the filter, so Python's lines keep their order. Call this function before anything starts a thread; once
    JAX is imported it does nothing, since a process with threads must not fork.
    """
    global _own_stderr
    if "jax" in sys.modules or not hasattr(os, "fork"):
        return
    reader, writer = os.pipe()
    _own_stderr = os.dup(2)
    if os.fork() == 0:
        os.close(writer)
        _forward(reader, _own_stderr)
    os.close(reader)
    os.dup2(writer, 2)
    os.close(writer)
    sys.stderr = os.fdopen(_own_stderr, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")


def show_everything() -> None:
    """Undoes `filter_native_stderr`."""
    if _own_stderr is not None:
        os.dup2(_own_stderr, 2)


def _forward(reader: int, stderr: int) -> None:
    """Copies lines that are not noise until nobody can write any more; never returns."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the filter ends after the process that it serves, not before
    devnull = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # a reader of stdout waits until the last process closes it
        os.dup2(devnull, descriptor)
    try:
        rest, last_words = b"", _LastWords()
        while piece := os.read(reader, 65536):
            *lines, rest = (rest + piece).split(b"\n")
            os.write(stderr, b"".join(line + b"\n" for line in last_words.explained(lines) if not _NATIVE.match(line)))
        os.write(stderr, b"" if _NATIVE.match(rest) else rest)
    finally:
        os._exit(0)


class _LastWords:
    """Puts a sentence in the place of all that JAX writes from the loss of another process on."""

    def __init__(self) -> None:
        self._of_jax: list[bytes] | None = None  # lines so far; None before the loss

    def explained(self, lines: list[bytes]) -> list[bytes]:
        """Returns the lines to show."""
        shown: list[bytes] = []
        for line in lines:
            if self._of_jax is None and not lost_peer.FIRST_LINE.match(line):
                shown.append(line)
                continue
            self._of_jax = [*(self._of_jax or []), line]
            if line.startswith(lost_peer.LAST_LINE):
                sentence = lost_peer.explain_abort(b"\n".join(self._of_jax).decode(errors="replace"))
                shown.append(f"error: {sentence}".encode())
        return shown


def log_own_lines(show: Callable[[str], None]) -> None:
    """Makes Python's loggers show this package's lines, JAX's warnings and everybody's errors, and no other lines."""
    root = logging.getLogger()
    root.handlers = [_Lines(show)]
    root.setLevel(logging.INFO)
    warnings.filterwarnings("ignore", module=r"(tensorflow|tf2onnx)\.")


class _Lines(logging.Handler):
    """Handler that shows a record as one of this package's lines."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__()
        self._show = show

    def filter(self, record: logging.LogRecord) -> bool:
        if record.pathname.startswith(PACKAGE):
            return True
        return record.levelno >= (logging.WARNING if record.name.split(".")[0] == "jax" else logging.ERROR)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            kind = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
            self._show(kind + record.getMessage())
        except Exception:
            self.handleError(record)
