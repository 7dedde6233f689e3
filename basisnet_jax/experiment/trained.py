"""Trained networks by name, and stages that start from them."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from basisnet_jax.config import validate, with_defaults
from basisnet_jax.errors import UserError
from basisnet_jax.experiment import network_files
from basisnet_jax.experiment.model import architecture_of, eval_crop, make_model
from basisnet_jax.host import files
from basisnet_jax.host.records import read_object
from basisnet_jax.images.crop import EvalCrop
from basisnet_jax.models.architectures import ARCHITECTURES, scaled
from basisnet_jax.models.basisnet import BasisNet, Variables
from basisnet_jax.models.layers import Backbone
from basisnet_jax.settings.groups import BackboneSettings, ModelSettings
from basisnet_jax.weights import conversion, pretrained, readers, start
from basisnet_jax.workdir.checkpoint import Checkpoints
from basisnet_jax.workdir.run_folder import is_export


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
      model: the network; a published network is the specialist of a static network.
      variables: {'params', 'batch_stats'}, float32 arrays of NumPy.
      resolution: side in pixels of the images that the network was made for.
      crop: the part of an image that the network is evaluated on.
      channels: of the network's images.
      backbones: the name of each stage's table and its width.
    """

    model: BasisNet
    variables: Variables
    resolution: int
    crop: EvalCrop
    channels: int
    backbones: Mapping[str, tuple[str, float]]

    @property
    def num_classes(self) -> int:
        """Number of the network's classes."""
        return self.model.specialist.num_classes

    def fingerprint(self) -> str:
        """Computes the SHA-256 of the weights, their names, shapes and dtypes."""
        digest = hashlib.sha256()
        for name, array in sorted(flatten_dict(self.variables, sep="/").items()):
            digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def load_trained(source: str, dtype: str = "float32") -> Trained:
    """Loads a trained network by name.

    Args:
      source: a name in `pretrained.PUBLISHED`; an export with the format 'safetensors'; or a run's workdir: then the
        moving averages of the best checkpoint are loaded, or of the newest where none was evaluated.
      dtype: dtype that the network's layers compute in.

    Raises:
      UserError: `source` is none of these, or the weights cannot be read.
    """
    if source in pretrained.PUBLISHED:
        published = pretrained.load_published(source)
        specialist = Backbone(published.architecture, conversion.NUM_CLASSES, dtype=jnp.dtype(dtype))
        variables = {name: {"specialist": tree} for name, tree in published.variables.items()}
        crop, backbones = EvalCrop(pretrained.EVAL_PADDING), {"specialist": (source, 1.0)}
        return _trained(BasisNet(specialist), variables, published.resolution, crop, backbones)
    folder = files.absolute(source)
    if is_export(source):
        return _load_export(os.fspath(folder), dtype)
    try:
        saved = with_defaults(read_object(folder / "config.json"))
    except (OSError, ValueError, TypeError, AttributeError):  # missing, not JSON, or not a config
        raise UserError(
            f"{source!r} is neither a network with published weights ({', '.join(pretrained.PUBLISHED)}) nor the "
            "workdir of a run with a readable config.json, nor an export; name one of these."
        ) from None
    saved.model.dtype = dtype
    config = validate(saved)
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        best = checkpoints.best_step()
        step = checkpoints.newest_sound_step() if best is None else best
        if step is None:
            raise UserError(
                f"the run in {source!r} has no usable checkpoint; train it until it saves one, or name another run."
            )
        averages = checkpoints.restore_variables(step, ema=True)
    return _of_settings(config.model, averages, config.model.specialist.resolution, eval_crop(config.data))


def _load_export(folder: str, dtype: str) -> Trained:
    """Loads the weights of an export. Raises UserError if it has none, or they are damaged."""
    export = network_files.open_export(folder)
    facts, _, variables = network_files.from_files(export.read)
    settings = dataclasses.replace(facts.settings(), dtype=dtype)
    crop = eval_crop(validate(with_defaults(export.manifest.config)).data)
    return _of_settings(settings, variables, facts.side, crop)


def _of_settings(settings: ModelSettings, variables: Variables, resolution: int, crop: EvalCrop) -> Trained:
    num_classes = variables["params"]["specialist"]["classifier"]["bias"].size
    model = make_model(settings, num_classes)
    stages = {"specialist": settings.specialist, **({"preview": settings.preview} if model.preview else {})}
    backbones = {name: (stage.backbone, stage.width) for name, stage in stages.items()}
    return _trained(model, variables, resolution, crop, backbones)


def _trained(
    model: BasisNet,
    variables: Variables,
    resolution: int,
    crop: EvalCrop,
    backbones: Mapping[str, tuple[str, float]],
) -> Trained:
    channels = variables["params"]["specialist"]["stem"]["kernel"].shape[2]
    return Trained(model, variables, resolution, crop, channels, backbones)


def starting_weights(stage: str, settings: BackboneSettings) -> list[Variables]:
    """Loads the variables of each network that a stage's `start_from` names, in the form that `start_from` takes.

    Args:
      stage: 'specialist' or 'preview'.
      settings: the stage's part of the config; a weights file must hold a network of the backbone named there.

    Raises:
      UserError: a source cannot be read, a network has another width, or a weights file has another architecture or
        other conventions.
    """

    def load(source: str) -> Variables:
        if not readers.is_weights_file(source):
            trained = load_trained(source)
            backbone, width = trained.backbones.get(stage, trained.backbones["specialist"])
            table = ARCHITECTURES[settings.backbone]
            if backbone == settings.backbone and scaled(table, width) != scaled(table, settings.width):
                raise UserError(
                    f"config.model.{stage}.start_from = {source!r} has the weights of {backbone} {width:g} wide, but "
                    f"the {stage} is {settings.width:g} wide; take --config.model.{stage}.width={width:g}, or other "
                    "weights."
                )
            return trained.variables
        name = f"{settings.backbone} of width {settings.width:g}"
        variables = pretrained.load_file(
            files.absolute(source), architecture_of(settings), name, stage, settings.conventions != ""
        )
        return {collection: {"specialist": tree} for collection, tree in variables.items()}

    return [load(source.strip()) for source in settings.start_from.split(",")]


def start_from(
    variables: Variables, sources: Mapping[str, Sequence[Variables]], *, noise: float, seed: int
) -> Variables:
    """Returns a `BasisNet`'s variables with stages started from trained networks, see `start.start_stage`.

    Args:
      variables: as initialised.
      sources: {stage: variables of trained networks}; each network gives its stage of that name, or its specialist if
        it has none. A preview's coefficient head is taken, too, where it fits.
      noise: of bases that start from one kernel.
      seed: of the noise.

    Raises:
      UserError: a source has another architecture.
    """
    for number, (stage, networks) in enumerate(sorted(sources.items())):
        stages = [{name: tree.get(stage, tree["specialist"]) for name, tree in x.items()} for x in networks]
        key = jax.random.fold_in(jax.random.key(seed), number)
        variables = start.start_stage(variables, stage, stages, noise=noise, key=key)
        head, own = networks[0]["params"].get("coefficients"), variables["params"].get("coefficients")
        if stage == "preview" and head and jax.tree.map(jnp.shape, head) == jax.tree.map(jnp.shape, own):
            variables = {**variables, "params": {**variables["params"], "coefficients": head}}
    return variables
