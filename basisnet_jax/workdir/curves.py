"""The picture of a run's training: losses, top-1 and learning rate over steps."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from etils import epath

from basisnet_jax.host.plotting import BLUE, GREEN, SMALL, VERMILION, new_figure, save
from basisnet_jax.workdir.events import Series, read_events

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Style(NamedTuple):
    """How a series is drawn, and what it is called."""

    color: str
    marker: str
    line: str
    label: str


_TRAINING, _EVALUATION = Style(BLUE, "", "-", "training"), Style(VERMILION, "o", "-", "evaluation")
# {name in the event files: style}
STYLES = {
    "train/loss": _TRAINING,
    "train/top1": _TRAINING,
    "train/learning_rate": _TRAINING,
    "eval/loss": _EVALUATION,
    "eval/top1": _EVALUATION,
    "eval/preview_top1": Style(GREEN, "^", "--", "evaluation, the preview alone"),
}


def panels(series: Mapping[str, Series]) -> dict[str, tuple[str, ...]]:
    """Returns {a panel's title: names of the series that it shows}."""
    two_stages = "eval/preview_top1" in series
    return {
        "training: joint loss of both stages" if two_stages else "training: loss": ("train/loss",),
        "evaluation: cross entropy" + " of the specialist" * two_stages: ("eval/loss",),
        "top-1": ("train/top1", "eval/top1", "eval/preview_top1"),
        "learning rate": ("train/learning_rate",),
    }


def plot_curves(event_dir: epath.Path, path: epath.Path) -> None:
    """Draws losses, top-1 and learning rate over steps from a workdir's event files, and saves a PNG."""
    from matplotlib.ticker import MaxNLocator

    series = read_events(event_dir)
    figure = new_figure(6.0)
    for axes, (title, names) in zip(figure.subplots(2, 2, sharex=True).flat, panels(series).items(), strict=True):
        for name in names:
            _draw(axes, name, series.get(name, {}))
        axes.set_title(title, fontsize=SMALL + 2)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend(fontsize=SMALL)
    save(figure, path)


def _draw(axes: "Axes", name: str, series: Series) -> None:
    """Draws a line through the values, with points where there are fewer than 3 values."""
    if not series:
        return
    steps, values = zip(*sorted(series.items()), strict=True)
    color, marker, line, label = STYLES[name]
    few = "." if len(steps) < 3 else ""
    axes.plot(steps, values, color=color, marker=marker or few, markersize=6, linestyle=line, label=label)
