"""A .tflite file as a function of arrays, run by LiteRT. NumPy and LiteRT alone."""

import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from basisnet_jax.errors import UserError
from basisnet_jax.host.command_line import first_line

Shapes = dict[str, tuple[int, ...]]  # by the names of inputs or outputs, the batch first

SIGNATURE = "serving_default"  # of a .tflite file; the signature names the inputs and outputs


class LiteRTStage:
    """A stage's .tflite file as a function of arrays_Bx for any B; calls from several threads wait for each other.

    Attributes:
      inputs: shapes of the inputs by name, the batch first.
      outputs: shapes of the outputs by name, the batch first.
    """

    def __init__(self, content: bytes, threads: int = 1) -> None:
        """Loads the file.

        Raises:
          UserError: LiteRT is not installed.
          ValueError, RuntimeError, TypeError: LiteRT cannot read the file.
        """
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise UserError("LiteRT is not installed; run pip install 'basisnet_jax[runtime]'.") from None

        self._runner = Interpreter(model_content=content, num_threads=threads).get_signature_runner(SIGNATURE)
        self.inputs, self.outputs = (
            {name: tuple(map(int, detail["shape"])) for name, detail in details.items()}
            for details in (self._runner.get_input_details(), self._runner.get_output_details())
        )
        self._call = in_pieces(self._run, self.inputs)
        self._lock = threading.Lock()  # LiteRT's interpreter keeps its inputs and outputs in one place

    def _run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        outputs = self._runner(**feed)
        return [outputs[name] for name in ("logits", "coefficients") if name in outputs]

    def __call__(self, *arrays_Bx: np.ndarray) -> list[np.ndarray]:
        """Returns the logits, and for a preview the coefficients. Raises UserError if LiteRT cannot run the file."""
        try:
            with self._lock:
                return self._call(*arrays_Bx)
        except RuntimeError as error:  # LiteRT prepares some operators in the first call only
            raise UserError(f"LiteRT cannot run the export's file ({first_line(error)}); export again.") from None


def in_pieces(
    run: Callable[[dict[str, np.ndarray]], list[np.ndarray]], shapes: Mapping[str, Sequence[int]]
) -> Callable[..., list[np.ndarray]]:
    """Makes a function of arrays_Bx for any B from `run`, which takes float32 arrays by name, of a static batch.

    Args:
      run: returns the outputs of one batch.
      shapes: of the inputs, 'image' and perhaps 'coefficients'; the last batch is padded with zeros.
    """
    names = [name for name in ("image", "coefficients") if name in shapes]
    size = int(shapes["image"][0])

    def function(*arrays_Bx: np.ndarray) -> list[np.ndarray]:
        count = len(arrays_Bx[0])
        pieces = []
        for start in range(0, max(count, 1), size):
            feed = {name: np.zeros(shapes[name], np.float32) for name in names}
            for name, array_Bx in zip(names, arrays_Bx, strict=True):
                piece = array_Bx[start : start + size]
                feed[name][: len(piece)] = piece
            pieces.append(run(feed))
        return [np.concatenate(piece)[:count] for piece in zip(*pieces, strict=True)]

    return function
