"""Caches a teacher's logits of every training example on disk, and reads them with the examples.

A cache is a folder: `identity.json` names the teacher, the data and the preprocessing, and
`logits-NNNNN-of-NNNNN.array_record` have a record an example, its float16 logits, in the order of the split. A file is
complete or does not exist.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from basisnet_jax.data.pipeline import Source
from basisnet_jax.data.record_files import RecordFiles
from basisnet_jax.errors import UserError
from basisnet_jax.host.records import read_object

EXAMPLES_A_FILE = 8192  # also the most that is lost if the making of a cache is stopped


def file_names(examples: int) -> list[str]:
    """Returns the names of a complete cache's files, in order."""
    count = -(-examples // EXAMPLES_A_FILE)
    return [f"logits-{number:05d}-of-{count:05d}.array_record" for number in range(count)]


def write_file(path: epath.Path, logits_NxK: np.ndarray) -> None:
    """Writes a file of logits completely, or not at all."""
    unfinished = f"{path}.unfinished"
    writer = ArrayRecordWriter(unfinished, "group_size:1,uncompressed")
    for logits_K in logits_NxK.astype(np.float16):
        writer.write(logits_K.tobytes())
    writer.close()
    os.replace(unfinished, path)


def check_identity(folder: epath.Path, identity: dict[str, Any]) -> bool:
    """Returns whether a cache has been begun in a folder. Raises UserError if its identity is another."""
    try:
        cached = read_object(folder / "identity.json")
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}/identity.json cannot be read ({error}); name another config.distill.cache."
        ) from None
    differing = [
        f"{key} {cached.get(key)!r}, not {value!r}" for key, value in identity.items() if cached.get(key) != value
    ]
    if differing:
        raise UserError(
            f"the teacher logits in {folder} have {'; '.join(differing)}; name another config.distill.cache, and "
            "fill it with --mode=teacher."
        )
    return True


@dataclasses.dataclass(frozen=True)
class WithLogits:
    """A source whose examples also have the 'teacher_logits', float16[K], of a cache."""

    source: Source
    logits: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]:
        records = self.logits.__getitems__(indices)
        return [
            {**example, "teacher_logits": np.frombuffer(record, np.float16)}
            for example, record in zip(self.source.__getitems__(indices), records, strict=True)
        ]


def with_logits(source: Source, folder: epath.Path, identity: dict[str, Any]) -> WithLogits:
    """Adds the logits of a cache to the examples of a source.

    Args:
      source: the training split.
      folder: folder of the cache.
      identity: teacher, data and preprocessing of the logits.

    Raises:
      UserError: there is no cache, or the cache is incomplete or has another identity.
    """
    files = [folder / name for name in file_names(len(source))]
    missing = [path.name for path in files if not path.exists()]
    if not check_identity(folder, identity) or missing:
        raise UserError(
            f"config.distill.cache = {str(folder)!r} holds {len(files) - len(missing)} of {len(files)} files of "
            "teacher logits; make the others with the same command and --mode=teacher."
        )
    records = ArrayRecordDataSource([str(path) for path in files])
    return WithLogits(source, RecordFiles(records, str(folder), "remove the folder and fill it with --mode=teacher"))
