"""A .tflite file in a process of its own: if LiteRT crashes, hangs or grows on a stranger's file, the caller lives.

Both processes speak in .npy bytes, which cannot run code. The process has a bound of memory, and may write no file. It
keeps the user's other rights: it holds back damaged and odd files, not a program that was built to break in.
"""

import io
import json
import os
import pathlib
import struct
import subprocess
import sys
import threading
from typing import IO, Any

import numpy as np

import basisnet_jax
from basisnet_jax.errors import UserError
from basisnet_jax.host.command_line import first_line
from basisnet_jax.serving.tflite import LiteRTStage, Shapes

SECONDS = 60.0  # for the process to load the file, or to run one call
MEMORY = 2**32  # bytes of address space of the process
_LENGTH = struct.Struct("<q")
_READ_AT_ONCE = 2**20
_IMPORTED_FROM = str(pathlib.Path(basisnet_jax.__file__).parents[1])


class IsolatedStage:
    """A stage's .tflite file as `LiteRTStage` runs it, in a process that ends with this object.

    Attributes:
      inputs: shapes of the inputs by name, the batch first.
      outputs: shapes of the outputs by name, the batch first.
    """

    def __init__(self, content: bytes, threads: int = 1, seconds: float = SECONDS) -> None:
        """Starts the process.

        Args:
          content: the file.
          threads: that LiteRT uses.
          seconds: how long loading, or a call, may take.

        Raises:
          ValueError: the process ended or took too long, LiteRT is not installed or cannot read the file.
        """
        self._seconds, self._lock = seconds, threading.Lock()
        # From where this package was imported, and not from the current folder (-P), which may be the stranger's.
        paths = os.pathsep.join(filter(None, (_IMPORTED_FROM, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
        )
        facts, _ = self._ask([content], 0)
        self.inputs, self.outputs = (_shapes(facts[kind]) for kind in ("inputs", "outputs"))

    def __call__(self, *arrays_Bx: np.ndarray) -> list[np.ndarray]:
        """Returns the logits, and for a preview the coefficients. Raises UserError if the process ends, or hangs."""
        try:
            with self._lock:
                _, answers = self._ask([_to_bytes(array_Bx) for array_Bx in arrays_Bx], len(self.outputs))
            return [np.load(io.BytesIO(answer), allow_pickle=False) for answer in answers]
        except ValueError as error:
            raise UserError(f"the export's file cannot be run: {error}; export again.") from None

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    pipe.close()
            self._process.wait()

    def _ask(self, messages: list[bytes], arrays: int) -> tuple[dict[str, Any], list[bytes]]:
        """Sends messages, and returns what the process says of them in JSON, and so many arrays.

        Raises:
          ValueError: the process says that it cannot, ends, or takes too long.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(self._seconds, self._process.kill)
        timer.start()
        try:
            _send(self._process.stdin, messages)
            facts = json.loads(_receive(self._process.stdout))
            if "error" in facts:
                raise ValueError(str(facts["error"]))
            return facts, [_receive(self._process.stdout) for _ in range(arrays)]
        except (BrokenPipeError, EOFError):
            code = self._process.wait()
            if timer.finished.is_set():
                raise ValueError(f"LiteRT's process has not answered for {self._seconds:g} seconds") from None
            raise ValueError(f"LiteRT's process ended with code {code}") from None
        finally:
            timer.cancel()


def _shapes(facts: dict[str, list[int]]) -> Shapes:
    return {str(name): tuple(map(int, shape)) for name, shape in facts.items()}


def _to_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _send(pipe: IO[bytes], messages: list[bytes]) -> None:
    for message in messages:
        pipe.write(_LENGTH.pack(len(message)))
        pipe.write(message)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    """Reads a message. Raises EOFError where the pipe ends, or ValueError if the message is too long."""
    (length,) = _LENGTH.unpack(_read(pipe, _LENGTH.size))
    if not 0 <= length <= MEMORY:
        raise ValueError(f"LiteRT's process sends a message of {length} bytes")
    return _read(pipe, length)


def _read(pipe: IO[bytes], length: int) -> bytes:
    pieces = []  # what has come, rather than what the message claims, takes memory
    while length:
        piece = pipe.read(min(length, _READ_AT_ONCE))
        if not piece:
            raise EOFError
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def _serve(threads: int) -> None:
    """Loads the file that comes first, and answers calls until the pipe ends: what the process does."""
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what LiteRT prints must not come between the messages
    _bound_memory()
    content = _receive(source)
    try:
        stage = LiteRTStage(content, threads)
        _send(sink, [json.dumps({"inputs": stage.inputs, "outputs": stage.outputs}).encode()])
        while True:
            arrays = [np.load(io.BytesIO(_receive(source)), allow_pickle=False) for _ in stage.inputs]
            outputs = stage(*arrays)
            _send(sink, [b"{}", *map(_to_bytes, outputs)])
    except EOFError:  # the caller has gone
        return
    except (UserError, ValueError, RuntimeError, TypeError, MemoryError) as error:
        _send(sink, [json.dumps({"error": first_line(error)}).encode()])


def _bound_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
