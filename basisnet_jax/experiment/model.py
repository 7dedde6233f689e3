"""The model that a config describes, its evaluation crop, and its cost."""

import jax.numpy as jnp

from basisnet_jax.errors import UserError
from basisnet_jax.images import crop
from basisnet_jax.images.crop import EvalCrop
from basisnet_jax.models import cost, routing
from basisnet_jax.models.architectures import ARCHITECTURES, Architecture, published_by, scaled
from basisnet_jax.models.basisnet import BasisNet
from basisnet_jax.models.layers import Backbone
from basisnet_jax.settings.groups import BackboneSettings, DataSettings, ModelSettings


def make_model(config: ModelSettings, num_classes: int) -> BasisNet:
    """Makes the model that `config.model` describes. Raises UserError if no layer would be synthesized."""
    dtype = jnp.dtype(config.dtype)

    def backbone(settings: BackboneSettings) -> Backbone:
        return Backbone(architecture_of(settings), num_classes, settings.dropout, dtype, config.pallas_kernels)

    specialist = backbone(config.specialist)
    if config.routing == "static":
        return BasisNet(specialist)
    table = specialist.architecture
    synthesized = routing.layers_to_synthesize(
        table.block_layers(), table.head_layers(), config.synthesize, config.synthesize_from_block
    )
    if not synthesized:
        raise UserError(
            f"config.model.synthesize = {tuple(config.synthesize)} from block {config.synthesize_from_block} on "
            f"matches no layer of {config.specialist.backbone}; name another kind or an earlier block."
        )
    if config.routing == "preview":
        return BasisNet(
            specialist,
            backbone(config.preview),
            preview_resolution=config.preview.resolution,
            coefficients_from=config.coefficients_from,
            num_bases=config.num_bases,
            synthesized=synthesized,
            granularity=config.granularity,
            channel_groups=config.channel_groups,
            temperature=config.temperature,
            start_temperature=config.start_temperature if config.warm_start == "temperature" else None,
        )
    route = routing.ROUTINGS[config.routing](
        num_bases=config.num_bases,
        synthesized=synthesized,
        temperature=config.temperature,
        start_temperature=config.start_temperature,
        num_tasks=config.num_tasks,
        channel_groups=config.channel_groups,
    )
    return BasisNet(specialist, routing=route)


def architecture_of(settings: BackboneSettings) -> Architecture:
    """Returns the table of a backbone at its width and with its publisher's conventions."""
    table = scaled(ARCHITECTURES[settings.backbone], settings.width)
    return published_by(table, settings.conventions) if settings.conventions else table


def eval_crop(data: DataSettings) -> EvalCrop:
    """Returns the crop of an image for evaluation."""
    return crop.eval_crop(data.eval_crop, data.eval_padding, data.exif_orientation)


def model_cost(model: BasisNet, resolution: int, channels: int) -> cost.Cost:
    """Counts a model's multiply-adds and parameters on resolution x resolution images with `channels` channels."""
    specialist = model.specialist
    if model.routing is not None:
        return cost.routed_cost(model.routing, specialist.architecture, resolution, specialist.num_classes, channels)
    if model.preview is None:
        return cost.static_cost(specialist.architecture, resolution, specialist.num_classes, channels)
    return cost.basisnet_cost(
        model.preview.architecture,
        model.preview_resolution,
        specialist.architecture,
        resolution,
        specialist.num_classes,
        num_bases=model.num_bases,
        synthesized=model.synthesized,
        coefficients_from=model.coefficients_from,
        granularity=model.granularity,
        channel_groups=model.channel_groups,
        channels=channels,
    )
