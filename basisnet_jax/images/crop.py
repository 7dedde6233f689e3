"""The part of an image that evaluation and prediction see. No imports: a manifest's reader needs no decoder."""

import dataclasses

# (top, left, height, width) in pixels of the whole image
Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class EvalCrop:
    """The part of an image that evaluation and prediction see: all, or Inception's central square."""

    # In pixels at the model's resolution: the square has side / (side + padding) of the image's shorter side. None:
    # all of the image is seen, not a square.
    padding: int | None = None
    exif_orientation: bool = True  # turn the image upright first

    def box(self, height: int, width: int, side: int) -> Box:
        """Returns the box of an image of height x width that a model of resolution `side` sees."""
        if self.padding is None:
            return 0, 0, height, width
        size = max(1, round(min(height, width) * side / (side + self.padding)))
        return (height - size) // 2, (width - size) // 2, size, size


WHOLE_IMAGE = EvalCrop()
EVAL_CROPS = ("none", "central")


def eval_crop(name: str, padding: int, exif_orientation: bool) -> EvalCrop:
    """Returns the crop of config.data.eval_crop, one of EVAL_CROPS; `padding` is read by 'central' alone."""
    return EvalCrop(padding if name == "central" else None, exif_orientation)
