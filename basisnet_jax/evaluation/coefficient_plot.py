"""Plots a network's coefficients: 1,000 classes and 46 vectors of 16 bases take the same width as ten and four."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from etils import epath
from scipy.cluster import hierarchy

from basisnet_jax.host.plotting import BLUE, SMALL, drawable, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACROSS = 256  # coefficients side by side: each is almost two pixels wide in a picture of 600 pixels
NAMED_ACROSS = 48  # most vector names side by side: letters of 9 points need that much room
LONGEST_NAME = 22  # letters drawn of a class's or vector's name
ROW = 0.17  # inches, the height of a class with its name
HIGHEST = 4.4  # inches, the height of all classes; halved where the vectors take several lines


def draw_coefficients(
    path: epath.Path,
    vectors: Sequence[str],
    classes: Sequence[str],
    means: Mapping[str, np.ndarray],
    similar: np.ndarray,
) -> None:
    """Draws each vector's entropy, how often each basis is the strongest, and mean coefficients by class.

    Many vectors take several lines of panels, so the picture is never wider. Many classes are sorted so that those
    with similar coefficients stand together, and only some are named.

    Args:
      path: path of the PNG.
      vectors: names of the L coefficient vectors.
      classes: names of the K classes; a class without images is left out.
      means: the result of `CoefficientSums.means`.
      similar: the result of `similar_classes`.
    """
    from matplotlib.colors import PowerNorm

    wins_LxN, by_class_KxLxN = means["wins"], means["by_class"]
    count, bases = wins_LxN.shape
    lines = math.ceil(count * bases / ACROSS)
    across = math.ceil(count / lines)
    step = math.ceil(len(similar) * ROW / (HIGHEST if lines == 1 else HIGHEST / 2))
    shown = similar if step > 1 else np.sort(similar)
    heat_height = max(len(shown[::step]) * ROW, 1.0)
    names_height = 0.3 + 0.08 * min(max(map(len, vectors)), LONGEST_NAME)

    figure = new_figure(1.3 + names_height + lines * (1.6 + heat_height + names_height))
    ratios = [0.9, *[0.9, heat_height] * lines]
    entropy, *panels = figure.subplots(1 + 2 * lines, 1, squeeze=False, height_ratios=ratios)[:, 0]
    entropy.bar(np.arange(count), means["entropy"], color=BLUE, width=0.7)
    entropy.set(ylim=(0, 1), xlim=(-0.5, count - 0.5))
    entropy.set_title("entropy of each vector: 1 is uniform, 0 is one basis alone", fontsize=SMALL + 1, loc="left")
    _name_vectors(entropy, vectors, 1)
    named = f": {len(shown):,}, similar ones together, one in {step} named" if step > 1 else ""
    largest = max(by_class_KxLxN.max(), 2 / bases)
    scale = PowerNorm(0.5, vmin=0, vmax=largest)  # the square root: small differences show
    for line, (wins, heat) in enumerate(zip(panels[::2], panels[1::2], strict=True)):
        some = slice(line * across, (line + 1) * across)
        _draw_wins(wins, wins_LxN[some])
        wins.set_ylim(0, 1.05 * wins_LxN.max())
        image = heat.imshow(
            by_class_KxLxN[shown, some].reshape(len(shown), -1),
            aspect="auto",
            cmap="cividis",
            norm=scale,
        )
        heat.set_title(f"mean coefficient of each basis, by class{named}", fontsize=SMALL + 1, loc="left")
        heat.set_yticks(np.arange(len(shown))[::step], [drawable(classes[k], LONGEST_NAME) for k in shown[::step]])
        _name_vectors(heat, vectors[some], bases)
        figure.colorbar(image, ax=heat, pad=0.01)
        for axes, color in ((wins, "black"), (heat, "white")):
            axes.set_xlim(-0.5, across * bases - 0.5)
            for edge in range(1, len(vectors[some])):
                axes.axvline(edge * bases - 0.5, color=color, linewidth=0.8)
    save(figure, path)


def similar_classes(by_class_KxLxN: np.ndarray) -> np.ndarray:
    """Returns the classes with images, those with similar mean coefficients beside each other.

    They are the leaves of a tree that joins the most similar coefficients first (Ward's method).
    """
    with_images = np.flatnonzero(by_class_KxLxN.sum(axis=(1, 2)) > 0)
    if len(with_images) < 2:
        return with_images
    tree = hierarchy.linkage(by_class_KxLxN[with_images].reshape(len(with_images), -1), "ward")
    return with_images[hierarchy.leaves_list(tree)]


def _draw_wins(axes: "Axes", wins_LxN: np.ndarray) -> None:
    bases = wins_LxN.shape[1]
    axes.bar(np.arange(wins_LxN.size), wins_LxN.reshape(-1), width=1, color=BLUE)
    axes.axhline(1 / bases, color="black", linestyle=":", linewidth=1)
    axes.set_xticks([])
    title = f"share of images for which each of a vector's {bases} bases is the strongest; dotted: 1/{bases}"
    axes.set_title(title, fontsize=SMALL + 1, loc="left")


def _name_vectors(axes: "Axes", vectors: Sequence[str], bases: int) -> None:
    """Writes the names of vectors of `bases` bars each; above `NAMED_ACROSS` vectors, of every second or third."""
    step = math.ceil(len(vectors) / NAMED_ACROSS)
    middle = np.arange(len(vectors)) * bases + (bases - 1) / 2
    axes.set_xticks(middle[::step], [drawable(name, LONGEST_NAME) for name in vectors[::step]], rotation=90)
