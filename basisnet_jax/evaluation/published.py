"""Published points of accuracy over multiply-adds, drawn beside our own; each was trained with its own recipe."""

from typing import NamedTuple


class Point(NamedTuple):
    """A published network: its multiply-adds, top-1 and source."""

    name: str
    madds: float
    top1: float
    source: str


_BASISNET = "arXiv 2105.03014, abstract and Table 1"
_TABLE = "as given in Table 1 of arXiv 2105.03014"

# {data set's TFDS name: points}
PUBLISHED: dict[str, tuple[Point, ...]] = {
    "imagenet2012": (
        Point("BasisNet-MV3", 290e6, 0.803, _BASISNET),
        Point("BasisNet-MV3, early termination", 198e6, 0.800, _BASISNET),
        Point("MobileNetV2", 300e6, 0.720, f"arXiv 1801.04381, {_TABLE}"),
        Point("CondConv-MobileNetV2", 329e6, 0.746, f"arXiv 1904.04971, {_TABLE}"),
        Point("DY-MobileNetV2", 313e6, 0.752, f"arXiv 1912.03458, {_TABLE}"),
        Point("MobileNetV3-Large", 219e6, 0.752, f"arXiv 1905.02244, {_TABLE}"),
        Point("DY-MobileNetV3-Large", 228e6, 0.771, _TABLE),
        Point("EfficientNet-B0", 390e6, 0.771, f"arXiv 1905.11946, {_TABLE}"),
        Point("CondConv-EfficientNet-B0", 413e6, 0.783, f"arXiv 1904.04971, {_TABLE}"),
        Point("MnasNet-A1", 312e6, 0.752, f"arXiv 1807.11626, {_TABLE}"),
        Point("CondConv-MnasNet-A1", 325e6, 0.762, f"arXiv 1904.04971, {_TABLE}"),
        Point("EfficientNet-B2", 1.0e9, 0.801, f"arXiv 1905.11946, {_TABLE}"),
    ),
}
