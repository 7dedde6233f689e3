"""Plots of an evaluation, as PNG."""

import io
from collections.abc import Sequence

import numpy as np
from etils import epath

from basisnet_jax import files
from basisnet_jax.calibration import BINS, Reliability
from basisnet_jax.published import PUBLISHED
from basisnet_jax.termination import Candidate


def new_figure(*args, **kwargs):
    """`plt.subplots` without a display, and its figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(*args, layout="constrained", **kwargs)


def save(figure, path: epath.Path) -> None:
    """Writes and closes a figure."""
    from matplotlib import pyplot as plt

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100, format="png")
    plt.close(figure)
    files.write(path, drawn.getvalue())


def draw_accuracy(
    path: epath.Path,
    candidates: Sequence[Candidate],
    whole: tuple[float, float],
    compared: Sequence[tuple[str, float, float]],
    data_set: str,
) -> None:
    """Top-1 over average multiply-adds.

    Args:
      path: of the PNG.
      candidates: a line each; none for a static network.
      whole: (multiply-adds, top-1) without early termination.
      compared: (name, multiply-adds, top-1) of other runs on the same images.
      data_set: whose published points are drawn too.
    """
    figure, axis = new_figure(figsize=(8, 6))
    for candidate in candidates:
        curve = candidate.reported_on
        label = f"{candidate.criterion}, temperature {candidate.temperature:.2f}"
        axis.plot(curve.madds, curve.top1, label=label, linewidth=1)
    axis.plot(*whole, "k*", markersize=12, label="without early termination" if candidates else "this network")
    for name, madds, top1 in compared:
        axis.plot(madds, top1, "s", label=name)
    for point in PUBLISHED.get(data_set, ()):
        axis.plot(point.madds, point.top1, "x", color="gray")
        axis.annotate(point.name, (point.madds, point.top1), fontsize=7, color="gray")
    axis.set(xlabel="multiply-adds an image, on average", ylabel="top-1")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save(figure, path)


def draw_reliability(path: epath.Path, bins: dict[str, Reliability]) -> None:
    """Accuracy over confidence, a panel a stage; the bars' width says nothing, the line is perfect calibration."""
    figure, axes = new_figure(1, len(bins), figsize=(5 * len(bins), 5), squeeze=False)
    for axis, (name, reliability) in zip(axes[0], bins.items(), strict=True):
        filled = reliability.count > 0
        axis.plot([0, 1], [0, 1], color="gray", linewidth=1)
        axis.bar((np.arange(BINS) + 0.5)[filled] / BINS, reliability.accuracy[filled], 0.9 / BINS, label="accuracy")
        axis.plot(reliability.confidence[filled], reliability.accuracy[filled], "k.", label="mean confidence")
        axis.set(title=f"{name}: ECE {reliability.ece:.4f}", xlabel="largest probability", ylabel="share that is right")
        axis.legend()
    save(figure, path)


def draw_coefficients(
    path: epath.Path, vectors: Sequence[str], classes: Sequence[str], means: dict[str, np.ndarray]
) -> None:
    """Mean coefficients by class and vector, entropy by vector, and how often each basis is the strongest.

    Args:
      path: of the PNG.
      vectors: names of the L coefficient vectors.
      classes: names of the K classes.
      means: as `evaluate.CoefficientSums.means` gives them.
    """
    count, bases = means["wins"].shape
    figure, (heat, entropy, wins) = new_figure(3, 1, figsize=(max(8, 0.1 * count * bases), 14), height_ratios=(3, 1, 1))
    shown = heat.imshow(means["by_class"].reshape(len(classes), -1), aspect="auto", interpolation="nearest")
    figure.colorbar(shown, ax=heat)
    heat.set(title="mean coefficient of each basis, by class and vector")
    heat.set_xticks(np.arange(count) * bases + (bases - 1) / 2, vectors, rotation=90, fontsize=7)
    if len(classes) <= 100:
        heat.set_yticks(np.arange(len(classes)), classes, fontsize=7)
    for edge in range(1, count):
        heat.axvline(edge * bases - 0.5, color="white", linewidth=0.5)
    entropy.bar(np.arange(count), means["entropy"])
    entropy.set(title="entropy over log N: 1 is uniform, 0 is one basis alone", ylim=(0, 1))
    bottom = np.zeros(count)
    for basis in range(bases):
        wins.bar(np.arange(count), means["wins"][:, basis], bottom=bottom)
        bottom += means["wins"][:, basis]
    wins.set(title="share of images for which each basis is the strongest")
    for axis in (entropy, wins):
        axis.set_xticks(np.arange(count), vectors, rotation=90, fontsize=7)
    save(figure, path)


def draw_images(path: epath.Path, rows: dict[str, Sequence[tuple[np.ndarray, str]]]) -> None:
    """A row of images under each title, (uint8[H, W, C], what is written above it) each."""
    columns = max(map(len, rows.values()))
    figure, axes = new_figure(len(rows), columns, figsize=(2 * columns, 3 * len(rows)), squeeze=False)
    for line, (title, images) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.axis("off")
        for axis, (image, words) in zip(line, images, strict=False):
            axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
            axis.set_title(words, fontsize=7)
        line[0].text(-0.1, 0.5, title, rotation=90, ha="right", va="center", transform=line[0].transAxes)
    save(figure, path)
