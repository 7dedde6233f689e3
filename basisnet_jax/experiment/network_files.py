"""The two files in which a trained network travels: model.safetensors holds its arrays, config.json all else.

An array is named by the part of the network, the layer and the leaf, as in 'specialist.block03.expand.bases'. Nothing
in the files is run, and the network is rebuilt without its data set.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from basisnet_jax.config import validate, with_defaults
from basisnet_jax.errors import UserError
from basisnet_jax.experiment.model import make_model
from basisnet_jax.host.records import typed
from basisnet_jax.models.basisnet import BasisNet, Variables
from basisnet_jax.serving.export import Export
from basisnet_jax.serving.formats import CONFIG, WEIGHTS
from basisnet_jax.settings.declare import as_json
from basisnet_jax.settings.groups import ModelSettings
from basisnet_jax.weights.conversion import take
from basisnet_jax.workdir.run_folder import without_folders

SCHEMA = 1  # of config.json; raised where a reader of the schema before would be wrong
_AGAIN = "get both files again, or run --mode=export again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """The content of config.json: the facts that make a network of the arrays.

    Attributes:
      model: the run's config.model as JSON values; the routing of a network frozen for one place is 'static'.
      classes: names of the classes, in the order of the logits.
      side: side in pixels of the images that the network was made for.
      channels: of the images, 1 or 3.
      warm_start: how much of the warm start of the coefficients is left, from 1 to 0.
      library_name: the library that reads the files.
      schema: of this content.
    """

    model: dict[str, Any]
    classes: list[str]
    side: int
    channels: int
    warm_start: float
    library_name: str = "basisnet_jax"
    schema: int = SCHEMA

    @classmethod
    def of(cls, settings: ModelSettings, **facts: Any) -> Self:
        """Returns the facts of a network with these settings, without absolute paths."""
        return cls(model=without_folders(as_json(settings)), **facts)

    def settings(self) -> ModelSettings:
        """Returns the settings that `model` holds. Raises UserError if `model` is not a config's."""
        try:
            config = with_defaults({"model": self.model})
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{CONFIG} has a model that cannot be read ({error}); {_AGAIN}.") from None
        return validate(config).model


def to_files(facts: NetworkFacts, variables: Variables) -> dict[str, bytes]:
    """Returns {name: content} of the two files.

    Args:
      facts: the network's.
      variables: {'params', 'batch_stats'}, float32 arrays.
    """
    arrays = {array_name(path): np.asarray(leaf) for path, leaf in flatten_dict(variables).items()}
    content = safetensors.numpy.save(arrays, {"format": "basisnet_jax"})
    return {WEIGHTS: content, CONFIG: (json.dumps(dataclasses.asdict(facts), indent=2) + "\n").encode()}


def open_export(folder: str) -> Export:
    """Opens an export that has both files. Raises UserError if the folder is not an export, or has no weights."""
    export = Export.open(folder)
    if WEIGHTS not in export.manifest.files:
        raise UserError(
            f"{export.folder} has no {WEIGHTS}; run --mode=export with --config.export.formats=safetensors, or name a "
            "run."
        )
    return export


def from_files(read: Callable[[str], bytes]) -> tuple[NetworkFacts, BasisNet, Variables]:
    """Returns a network's facts, its model, and its variables as float32 arrays of NumPy.

    Args:
      read: returns the content of a file by name.

    Raises:
      UserError: a file is damaged, or the two files do not fit each other. Errors of `read` pass through.
    """
    facts = _facts(read(CONFIG))
    model = make_model(facts.settings(), len(facts.classes))
    try:
        arrays = safetensors.numpy.load(read(WEIGHTS))
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{WEIGHTS} is cut off or damaged ({error}); {_AGAIN}.") from None
    return facts, model, _variables(model, facts.channels, arrays)


def array_name(path: tuple[str, ...]) -> str:
    """Returns the file's name of a leaf: ('params', 'specialist', 'stem', 'kernel') is 'specialist.stem.kernel'.

    No layer has a leaf of the same name in two collections, so the collection is left out.
    """
    return ".".join(part for part in path[1:] if part != "batch_norm")


def _facts(content: bytes) -> NetworkFacts:
    try:
        parsed = json.loads(content)
        schema = parsed["schema"]
        if schema != SCHEMA:
            raise UserError(f"{CONFIG} has schema {schema!r}, but this version reads {SCHEMA}; update basisnet_jax.")
        facts = typed(NetworkFacts, parsed)
        if not facts.classes or facts.side < 1 or facts.channels not in (1, 3) or not 0 <= facts.warm_start <= 1:
            raise ValueError("a number is out of range")
        return facts
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{CONFIG} is not what --mode=export writes ({error}); {_AGAIN}.") from None


def _variables(model: BasisNet, channels: int, arrays: dict[str, np.ndarray]) -> Variables:
    """Returns the arrays as the model's variables. Raises UserError at the first that does not fit."""
    images = jnp.zeros((1, 32, 32, channels))  # parameters do not depend on the images' size
    shapes = flatten_dict(jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False)))
    trouble = f"{WEIGHTS} does not hold the network of {CONFIG}"
    flat = {}
    for path, leaf in shapes.items():
        array = take(arrays, array_name(path), [leaf.shape], trouble)
        flat[path] = array.astype(np.float32, copy=False)
    if others := arrays.keys() - set(map(array_name, shapes)):
        raise UserError(f"{trouble}: its {min(others)!r} does not belong there; {_AGAIN}.")
    return unflatten_dict(flat)
