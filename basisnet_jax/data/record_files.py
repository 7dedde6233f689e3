"""Record files of prepared data: damaged, missing or half prepared ones are answered with a sentence."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf import json_format

from basisnet_jax.data.pipeline import Source
from basisnet_jax.errors import UserError
from basisnet_jax.host.command_line import first_line

_LONGEST = 300  # characters shown of what a library says


@dataclasses.dataclass(frozen=True)
class RecordFiles:
    """A source of examples in record files.

    Attributes:
      source: reads the files, and raises RuntimeError where one of them is damaged or missing.
      folder: of the files, for messages.
      way_out: what to do about damaged files, as the end of a sentence.
    """

    source: Source
    folder: str
    way_out: str

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]:
        try:
            return self.source.__getitems__(indices)
        except RuntimeError as error:
            raise UserError(f"the data in {self.folder} is damaged ({reason(error)}); {self.way_out}.") from error


@contextlib.contextmanager
def reading_description(folder: object, way_out: str) -> Iterator[None]:
    """Raises UserError where TFDS cannot parse the JSON files that describe a prepared data set."""
    try:
        yield
    except json_format.ParseError as error:
        raise UserError(f"the description of the data in {folder} is damaged ({reason(error)}); {way_out}.") from error


def reason(error: Exception) -> str:
    """Returns the first line of what a library says, cut to a readable length."""
    line = first_line(error)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
