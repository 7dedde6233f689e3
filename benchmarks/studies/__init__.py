"""What a study is: the networks to train, and the images to compare them on. Each file of this folder is a study."""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from basisnet_jax.errors import UserError

FOLDER = pathlib.Path(__file__).parent
Row = tuple[str, str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Study:
    """Networks to train under one recipe, and to compare.

    Attributes:
      rows: {row: (what it is, its config in configs/, what differs from the config)}. Rows that are the same 'what',
        such as one network in several widths, are a line of the plot. '{seed}' and '{out}' in a value stand for the
        run's seed and for the folder of all workdirs.
      reported: the splits to report on, the main one first. Neither rates nor checkpoints are chosen on them.
      sweep: the settings of a run that a learning rate is chosen by: splits apart from the reported ones.
      seeds: the seeds of each row.
      common: what differs from the config in every row.
      baseline: the 'what' of the rows that the others are measured against.
      group_of: returns {class: group} for a table by groups of classes; None: no such table.
    """

    rows: Mapping[str, Row]
    reported: tuple[str, ...]
    sweep: Mapping[str, Any]
    seeds: tuple[int, ...] = (0, 1, 2)
    common: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    baseline: str = "static"
    group_of: Callable[[], Mapping[str, str]] | None = None

    def __post_init__(self):
        if self.sweep["data.eval_split"] in self.reported:
            raise UserError(
                f"the study would choose learning rates on {self.sweep['data.eval_split']!r}, which it reports on; "
                "give sweep another data.eval_split."
            )


def path_of(name: str) -> pathlib.Path:
    """Returns the file of a study: an included one by its name, or a path.

    Raises:
      UserError: there is no such file.
    """
    included = {path.stem: path for path in sorted(FOLDER.glob("[!_]*.py"))}
    path = included.get(name, pathlib.Path(name))
    if not path.is_file():
        raise UserError(f"there is no study {name!r}; give a file, or one of {', '.join(included)}.")
    return path


def load(path: pathlib.Path) -> Study:
    """Runs the file of a study, and returns its `STUDY`."""
    spec = importlib.util.spec_from_file_location(f"study_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.STUDY
