"""Figures with colours for all eyes and names in any script; the caller's matplotlib settings do not change.

A figure is 8 inches wide at 150 pixels an inch, with letters of 9 points at least: shrunk to 600 pixels, a letter is as
tall as in a newspaper. Matplotlib is imported where a figure begins, since the import takes a second.
"""

import functools
import io
import unicodedata
from typing import TYPE_CHECKING, Any

from etils import epath

from basisnet_jax.host import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.0  # inches
DOTS_PER_INCH = 150
SMALL = 9  # points, the smallest letters
FONT = "DejaVu Sans"  # comes with matplotlib

# Okabe and Ito's colours, told apart by people with any kind of colour vision; yellow is too pale for lines on white.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GRAY = "#5F5F5F"
BROWN = "#7A4B1E"  # not of that palette, for an eighth line; GRAY is for a ninth
COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, BROWN, GRAY)
MARKERS = "osD^vP*X"


def marker(index: int) -> dict[str, Any]:
    """Returns the colour and marker of point `index`: the first 56 points differ, neighbours differ in both."""
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)], "linestyle": "none"}


def new_figure(height: float) -> "Figure":
    """Makes an empty figure, `height` inches tall."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def key_below(figure: "Figure") -> None:
    """Puts one key of all panels below them, where the key hides nothing."""
    keys = [axes.get_legend_handles_labels() for axes in figure.axes]
    entries = {label: handle for handles, labels in keys for handle, label in zip(handles, labels, strict=True)}
    figure.legend(list(entries.values()), list(entries), loc="outside lower left", fontsize=SMALL)


def label_madds(axes: "Axes", average: bool) -> None:
    """Labels a panel of top-1 over multiply-adds: 300 M rather than 3.0 and a power of ten in a corner."""
    from matplotlib.ticker import EngFormatter

    axes.set(xlabel="multiply-adds per image" + ", on average" * average, ylabel="top-1")
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.grid(alpha=0.3)


def save(figure: "Figure", path: epath.Path) -> None:
    """Writes a figure as PNG, each letter in the first font that has it; see `drawable`."""
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    letters = sorted(set("".join(text.get_text() for text in texts)))
    families = list(dict.fromkeys([FONT, *(family for family in map(_family_with, letters) if family)]))
    for text in texts:
        text.set_fontfamily(families)
    for axes in figure.axes:
        axes.tick_params(labelfontfamily=families, labelsize=SMALL)
    png = io.BytesIO()
    figure.savefig(png, dpi=DOTS_PER_INCH, format="png")
    files.write(path, png.getvalue())


def drawable(name: str, longest: int = 200) -> str:
    r"""Returns a name in letters that matplotlib can draw.

    Args:
      name: any text, such as the name of a class, which is a folder's name.
      longest: letters; a longer name is cut to this length.

    Returns:
      The name, in which a dollar begins no formula. A letter that no font on this machine has, or that cannot be
      printed, is written as Python's escape: \u6c34.
    """
    shown = name if len(name) <= longest else name[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return "".join(
        letter if letter.isprintable() and _family_with(letter) else letter.encode("unicode_escape").decode()
        for letter in shown
    ).replace("$", r"\$")


@functools.cache
def _family_with(letter: str) -> str | None:
    """Returns the font family to draw a letter with: `FONT`, else another family on this machine, or None."""
    from matplotlib import font_manager

    if _has(FONT, letter):
        return FONT
    if unicodedata.category(letter) in ("Cc", "Cs"):  # control characters and halves of a letter
        return None
    regular = {
        entry.name
        for entry in font_manager.fontManager.ttflist
        # The font Last Resort has a box for every letter, with the code of the letter's script.
        if (entry.style, entry.weight) == ("normal", 400) and not entry.name.startswith("Last Resort")
    }
    by_likeness = sorted(regular, key=lambda family: ("Sans" not in family, family))
    return next((family for family in by_likeness if _has(family, letter)), None)


def _has(family: str, letter: str) -> bool:
    font = _font(family)
    return font is not None and font.get_char_index(ord(letter)) != 0


@functools.cache
def _font(family: str) -> Any:
    """Returns the font that matplotlib draws a family with; None where the font's file cannot be read."""
    from matplotlib import font_manager

    try:
        path = font_manager.findfont(
            font_manager.FontProperties(family=[family]), fallback_to_default=False, rebuild_if_missing=False
        )
        return font_manager.get_font(path)
    except (OSError, RuntimeError, ValueError):
        return None
