"""The models that come along: exports in `basisnet_jax/zoo/`, each in a folder of its name. No JAX."""

import pathlib

from basisnet_jax.errors import UserError
from basisnet_jax.serving.export import Export
from basisnet_jax.serving.manifest import NAME

FOLDER = pathlib.Path(__file__).parents[1] / "zoo"
MAX_BYTES = 5_000_000  # of all models together: they are in every wheel


def names() -> list[str]:
    """Returns the models' names."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{NAME}"))


def folder_of(name: str) -> str:
    """Returns the folder of a model.

    Raises:
      UserError: there is no such model.
    """
    if name not in names():
        raise UserError(f"there is no model {name!r}; the models that come along are {', '.join(names())}.")
    return str(FOLDER / name)


def described(name: str) -> str:
    """Returns a line on a model: what it classifies; accuracy and cost of the files that predict runs; its size."""
    export = Export.open(folder_of(name))
    manifest, image = export.manifest, export.manifest.input
    reached = manifest.accuracy.top1[export.stages()["specialist"].partition(".")[2]]
    stages = ""
    if both := reached.two_stages:
        stages = f"; with early exits {both.top1:.4f} for {both.madds:,.0f} on average"
    size = sum(facts.bytes for facts in manifest.files.values())
    return (
        f"{manifest.data.name}, {image.side} x {image.side} {image.color}: top-1 {reached.specialist:.4f} on "
        f"{manifest.accuracy.images}, {manifest.madds['total']:,} multiply-adds{stages}; {size / 1e6:.1f} MB"
    )
