"""Draws the plots of an evaluation, as PNG. No meaning is in colour alone; `plotting.py` has colours and fonts."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from etils import epath

from basisnet_jax.evaluation.calibration import BINS, Reliability
from basisnet_jax.evaluation.early_exit import Candidate
from basisnet_jax.host.plotting import (
    BLUE,
    GRAY,
    SKY,
    SMALL,
    VERMILION,
    drawable,
    key_below,
    label_madds,
    marker,
    new_figure,
    save,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IMAGES_ACROSS = 4


class Network(NamedTuple):
    """A network as one point of top-1 over multiply-adds."""

    name: str
    madds: float
    top1: float

    def __str__(self) -> str:
        from matplotlib.ticker import EngFormatter

        return f"{drawable(self.name, 50)}: top-1 {self.top1:.4f} at {EngFormatter()(float(f'{self.madds:.3g}'))}"


class Picture(NamedTuple):
    """An image with the words above it."""

    pixels: np.ndarray  # uint8[H, W, C]
    words: str
    wrong: bool = False  # whether a stage is wrong: the picture gets a thick frame


def draw_accuracy(
    path: epath.Path,
    whole: Network,
    exits: tuple[Candidate, int] | None,
    compared: Sequence[Network],
    data_set: str,
) -> None:
    """Draws top-1 over average multiply-adds: the early-termination curve, the chosen point, and other networks.

    Args:
      path: path of the PNG.
      whole: this network without early termination.
      exits: the criterion for prediction, and the index of its chosen threshold; None without a preview.
      compared: other runs on the same images.
      data_set: name of the data set; its published points are drawn too.
    """
    published = [Network(point.name, point.madds, point.top1) for point in PUBLISHED.get(data_set, ())]
    key_rows = (4 if exits else 1) + len(compared) + len(published)
    figure = new_figure(4.5 + 0.2 * key_rows)
    axes = figure.subplots()
    if exits:
        _draw_exits(axes, whole, *exits)
    else:
        axes.plot(whole.madds, whole.top1, "s", color=BLUE, markersize=9, markeredgecolor="black", label=str(whole))
    for index, network in enumerate(compared):
        style = marker(index + 2) | {"markersize": 8, "markeredgecolor": "black"}
        axes.plot(network.madds, network.top1, label=str(network), **style)
    letters = [chr(ord("a") + index) for index in range(len(published))]
    for letter, network in zip(letters, published, strict=True):
        axes.plot(network.madds, network.top1, "x", color=GRAY, label=f"{letter}  {network}, published")
    label_madds(axes, average=True)
    axes.margins(0.08)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.03), min(high, 1.03))
    _write_beside(axes, letters, published)
    key_below(figure)
    save(figure, path)


def _draw_exits(axes: "Axes", whole: Network, candidate: Candidate, chosen: int) -> None:
    curve = candidate.reported_on
    said = f"early termination by {candidate.criterion} at temperature {candidate.temperature:.2f}"
    axes.plot(curve.madds, curve.top1, color=BLUE, linewidth=1.5, label=said)

    def mark(network: Network, shape: str, more: str = "", color: str = BLUE, size: int = 9) -> None:
        style: dict[str, Any] = {"color": color, "markersize": size, "markeredgecolor": "black", "zorder": 3}
        axes.plot(network.madds, network.top1, shape, label=f"{network}{more}", **style)

    point = Network("the chosen threshold", curve.madds[chosen], curve.top1[chosen])
    mark(point, "*", f", {curve.exit_rate[chosen]:.1%} of images exit early", VERMILION, 18)
    mark(Network("the preview alone", curve.madds[-1], curve.top1[-1]), "v")
    mark(whole._replace(name="both stages for every image"), "s")


def _write_beside(axes: "Axes", letters: Sequence[str], networks: Sequence[Network]) -> None:
    """Writes a letter beside each point, on the side farthest from all other points and letters."""
    low_high = np.array([axes.get_xlim(), axes.get_ylim()])
    inches = np.array([6.5, 3.7]) / (low_high[:, 1] - low_high[:, 0])  # about the size of the panel
    points = [inches * (network.madds, network.top1) for network in networks]
    taken = [inches * xy for line in axes.lines for xy in np.asarray(line.get_xydata())]
    sides = [np.array([math.cos(angle), math.sin(angle)]) for angle in np.arange(16) * math.pi / 8]
    for letter, network, point in zip(letters, networks, points, strict=True):
        places = [point + 0.13 * side for side in sides]
        best = int(np.argmax([np.linalg.norm(np.array(taken) - place, axis=1).min() for place in places]))
        taken.append(places[best])
        axes.annotate(
            letter,
            (network.madds, network.top1),
            xytext=tuple(0.13 * 72 * sides[best]),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=SMALL,
            zorder=4,
        )


def draw_reliability(path: epath.Path, bins: Mapping[str, Reliability]) -> None:
    """Draws accuracy over confidence, and the number of images in each bin; one column for each stage."""
    figure = new_figure(5.6)
    panels = figure.subplots(2, len(bins), squeeze=False, sharex=True, sharey="row", height_ratios=(2, 1))
    width, middle = 1 / BINS, (np.arange(BINS) + 0.5) / BINS
    for (upper, lower), (name, reliability) in zip(panels.T, bins.items(), strict=True):
        filled = reliability.count > 0
        bars: dict[str, Any] = {"width": width, "color": SKY, "edgecolor": "black", "linewidth": 0.6}
        upper.bar(
            middle[filled], reliability.accuracy[filled], **bars, label="share of the images classified correctly"
        )
        upper.plot([0, 1], [0, 1], "--", color=GRAY, label="perfect calibration")
        upper.plot(
            reliability.confidence[filled], reliability.accuracy[filled], "k.", label="mean confidence of these images"
        )
        upper.set(title=f"{name}: ECE {reliability.ece:.4f}", xlim=(0, 1), ylim=(0, 1.05))
        lower.bar(middle, reliability.count, **bars)
        lower.set(xlabel="confidence: largest probability", yscale="log")
    panels[0, 0].set(ylabel="top-1")
    most = max(reliability.count.max() for reliability in bins.values())
    panels[1, 0].set(ylabel="images (logarithmic)", ylim=(0.7, 2 * most))
    key_below(figure)
    save(figure, path)


def draw_images(path: epath.Path, groups: Mapping[str, Sequence[Picture]]) -> None:
    """Draws groups of images, each group under its title; wrong answers get a thick frame."""
    lines = [math.ceil(len(pictures) / IMAGES_ACROSS) for pictures in groups.values()]
    figure = new_figure(2.5 * sum(lines) + 0.3 * len(lines))
    parts = figure.subfigures(len(groups), 1, height_ratios=lines, squeeze=False)[:, 0]
    for part, count, (title, pictures) in zip(parts, lines, groups.items(), strict=True):
        part.suptitle(title, fontsize=SMALL + 2)
        panels = part.subplots(count, IMAGES_ACROSS, squeeze=False)
        for axes in panels.flat[len(pictures) :]:
            axes.axis("off")
        for axes, picture in zip(panels.flat, pictures, strict=False):
            axes.imshow(picture.pixels.squeeze(), cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            axes.set_title(picture.words, fontsize=SMALL, loc="left")
            color, width = (VERMILION, 4.0) if picture.wrong else (GRAY, 0.8)
            for spine in axes.spines.values():
                spine.set(color=color, linewidth=width)
    save(figure, path)


def answered(
    pixels: np.ndarray, label: int, answers: Mapping[str, int], classes: Sequence[str], letters: int = 26
) -> Picture:
    """Makes a picture with its class and each stage's result above it; a wrong stage is shown with its answer.

    Args:
      pixels: uint8[H, W, C].
      label: index of the image's class.
      answers: {stage: index of its answer}.
      classes: names of the classes.
      letters: letters that fit on one line.
    """
    lines = [drawable(classes[label], letters)]
    for stage, answer in answers.items():
        right = answer == label
        said = "\N{CHECK MARK} " + stage if right else f"\N{BALLOT X} {stage}: {classes[answer]}"
        lines.append(drawable(said, letters))
    return Picture(pixels, "\n".join(lines), wrong=any(answer != label for answer in answers.values()))


class Point(NamedTuple):
    """A published network: its multiply-adds, top-1 and source."""

    name: str
    madds: float
    top1: float
    source: str


_BASISNET = "arXiv 2105.03014, abstract and Table 1"


_TABLE = "as given in Table 1 of arXiv 2105.03014"


# Published points, drawn beside our own; each was trained with its own recipe. {data set's TFDS name: points}
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
