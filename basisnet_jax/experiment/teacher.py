"""The teacher of a run, and the identity that tells its cached logits from another teacher's."""

import dataclasses
from typing import Any

from basisnet_jax.data import datasets
from basisnet_jax.errors import UserError
from basisnet_jax.experiment import trained
from basisnet_jax.models import routing
from basisnet_jax.settings.groups import Settings


def load_teacher(config: Settings, data: datasets.Dataset) -> trained.Trained | None:
    """Loads the teacher, or returns None. Raises UserError if it is missing or does not fit the data or the step."""
    source = config.distill.teacher
    if not source:
        return None
    teacher = trained.load_trained(source, config.model.dtype)
    if (teacher.num_classes, teacher.channels) != (data.num_classes, data.channels):
        raise UserError(
            f"config.distill.teacher = {source!r} has {teacher.num_classes} classes and images with "
            f"{teacher.channels} channels, but {data.name!r} has {data.num_classes} and {data.channels}; "
            "name another teacher."
        )
    if isinstance(teacher.model.routing, routing.Task):
        raise UserError(f"config.distill.teacher = {source!r} needs the task of each image; name another teacher.")
    # The teacher sees images turned as the student's are, whatever its own run did.
    crop = dataclasses.replace(teacher.crop, exif_orientation=config.data.exif_orientation)
    return dataclasses.replace(teacher, crop=crop)


def teacher_identity(teacher: trained.Trained, data: datasets.Dataset) -> dict[str, Any]:
    """Returns the facts that must be the same for cached logits and the run that uses them."""
    padding = teacher.crop.padding
    crop = "none" if padding is None else f"central, {padding} pixels of padding"
    return {
        "teacher": teacher.fingerprint(),
        "data": data.identity,
        "preprocessing": {
            "crop": crop,
            "exif_orientation": teacher.crop.exif_orientation,
            "resolution": teacher.resolution,
        },
    }
