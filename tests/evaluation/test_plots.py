"""The pictures: what they show, in any script, at any size, and without a warning or a change of matplotlib."""

import io
import itertools
import pathlib
import warnings

import matplotlib
import numpy as np
import pytest
from clu import metric_writers
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import colors, font_manager
from matplotlib.text import Text
from PIL import Image

import basisnet_jax
from basisnet_jax import compare
from basisnet_jax.evaluation import calibration, coefficient_plot, early_exit, plots
from basisnet_jax.evaluation.plots import Network, Picture
from basisnet_jax.host import plotting
from basisnet_jax.workdir import curves
from tests.evaluation.test_early_exit import COST

pytestmark = pytest.mark.filterwarnings("error::UserWarning")
NAMES = [r"$\foo$", "100 $", "$a$ and $b$", "水 $x^", "\N{CAT FACE}", "a_{b", "line\nbreak", "\udcff", "x" * 300, ""]


@pytest.fixture
def saved(monkeypatch):
    """Every figure that is saved, as it was drawn."""
    found, save = [], plotting.save

    def keep(figure, path):
        found.append(figure)
        save(figure, path)

    for module in (plotting, plots, coefficient_plot, curves):
        monkeypatch.setattr(module, "save", keep)
    return found


@pytest.fixture(scope="module")
def candidates():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 400)
    preview, logits = (generator.normal(size=(400, 4)) + s * np.eye(4)[labels] for s in (1.0, 2.0))
    right = [(x.argmax(-1) == labels).astype(np.float64) for x in (preview, logits)]
    return early_exit.candidates(preview, labels, *right, COST)


def words(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def check_size(path, figure):
    """As wide as every picture, no letter under 9 points, and none cut off."""
    with Image.open(path) as image:
        assert image.width == 1200
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= plotting.SMALL
    figure.draw_without_rendering()
    drawn = figure.get_tightbbox()
    assert drawn.x0 >= -0.02, "cut off at the left"
    assert drawn.x1 <= figure.get_figwidth() + 0.02, "cut off at the right"
    assert drawn.y0 >= -0.02, "cut off at the bottom"
    assert drawn.y1 <= figure.get_figheight() + 0.02, "cut off at the top"


def test_one_curve_its_ends_the_chosen_point_and_others(tmp_path, saved, candidates):
    candidate, chosen = candidates[1], 30
    curve = candidate.reported_on
    others = [Network("static", 60.0, 0.6), Network("condconv", 70.0, 0.61)]
    whole = Network("this network", COST.total, curve.top1[0])
    plots.draw_accuracy(tmp_path / "a.png", whole, (candidate, chosen), others, "imagenet2012")
    (figure,) = saved
    axes = figure.axes[0]
    drawn, star, preview, both, *rest = axes.lines
    np.testing.assert_array_equal(drawn.get_xydata(), np.stack([curve.madds, curve.top1], axis=-1))
    for marked, point in (
        (star, (curve.madds[chosen], curve.top1[chosen])),
        (preview, (COST.preview, curve.top1[-1])),
        (both, (COST.total, curve.top1[0])),
        (rest[0], others[0][1:]),
        (rest[1], others[1][1:]),
    ):
        np.testing.assert_allclose(marked.get_xydata(), [point])
    key = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(key) == len(set(key)) == 6 + len(plots.PUBLISHED["imagenet2012"])
    assert key[0] == f"early termination by {candidate.criterion} at temperature {candidate.temperature:.2f}"
    assert key[1].endswith(f"{curve.exit_rate[chosen]:.1%} of images exit early")
    shapes = [line.get_marker() for line in axes.lines[1:6]]
    assert len(set(shapes)) == 5, "points differ by their shape, not by colour alone"
    letters = [text for text in axes.texts if len(text.get_text()) == 1]
    assert [text.get_text() for text in letters] == list("abcdefghijkl")
    check_size(tmp_path / "a.png", figure)
    boxes = [text.get_window_extent() for text in letters]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_network_without_a_preview_is_one_point(tmp_path, saved):
    plots.draw_accuracy(tmp_path / "a.png", Network("this network", 100.0, 0.9), None, [], "digits")
    (line,) = saved[0].axes[0].lines
    np.testing.assert_allclose(line.get_xydata(), [[100.0, 0.9]])
    assert "this network: top-1 0.9000 at 100" in words(saved[0])


def test_reliability_has_the_counts_of_each_stage(tmp_path, saved):
    generator = np.random.default_rng(0)
    bins = {
        name: calibration.reliability(generator.normal(size=(count, 3)), generator.integers(0, 2, count) * 1.0)
        for name, count in (("specialist", 300), ("preview", 500))
    }
    plots.draw_reliability(tmp_path / "r.png", bins)
    (figure,) = saved
    accuracy, counts = figure.axes[:2], figure.axes[2:]
    for upper, lower, (name, reliability) in zip(accuracy, counts, bins.items(), strict=True):
        assert upper.get_title() == f"{name}: ECE {reliability.ece:.4f}"
        assert [bar.get_height() for bar in lower.patches] == reliability.count.tolist()
        assert lower.get_ylim()[1] > max(other.count.max() for other in bins.values())
    check_size(tmp_path / "r.png", figure)


@pytest.mark.parametrize(("classes", "vectors", "bases"), [(3, 2, 4), (1000, 46, 16), (30, 150, 1)])
def test_coefficients_can_be_read_at_any_size(tmp_path, saved, classes, vectors, bases):
    generator = np.random.default_rng(0)
    kinds = generator.integers(0, 3, classes)
    by_class = generator.dirichlet(np.ones(bases), (3, vectors))[kinds] * np.ones((classes, 1, 1))
    by_class[1] = 0  # a class without images
    means = {"by_class": by_class, "entropy": np.full(vectors, 0.5), "wins": by_class[0]}
    vector_names = [f"block{i:02d}/depthwise" for i in range(vectors)]
    names = [f"a rather long name of a class, number {k}" for k in range(classes)]
    similar = coefficient_plot.similar_classes(by_class)
    coefficient_plot.draw_coefficients(tmp_path / "c.png", vector_names, names, means, similar)
    (figure,) = saved
    check_size(tmp_path / "c.png", figure)
    assert figure.get_figheight() < 20
    heats = [axes for axes in figure.axes if axes.images]
    assert sum(axes.images[0].get_array().shape[1] for axes in heats) == vectors * bases
    for axes in heats:
        rows = axes.images[0].get_array()
        assert rows.shape[0] == classes - 1
        assert rows.shape[1] <= coefficient_plot.ACROSS
        if classes == 1000:  # similar classes stand together: each of the three kinds is one band
            assert np.count_nonzero(np.any(np.diff(rows, axis=0) != 0, axis=1)) <= 2
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = [label.get_window_extent() for label in labels]
            assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
    colour_bars = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    assert len(colour_bars) == len(heats)


def test_wrong_answers_are_marked_by_words_and_frame(tmp_path, saved):
    image = np.zeros((8, 8, 1), np.uint8)
    right = plots.answered(image, 0, {"preview": 0, "specialist": 0}, ["cat", "dog"])
    wrong = plots.answered(image, 0, {"preview": 1, "specialist": 0}, ["cat", "dog"])
    assert right == Picture(image, "cat\n✓ preview\n✓ specialist", False)
    assert wrong == Picture(image, "cat\n✗ preview: dog\n✓ specialist", True)
    plots.draw_images(tmp_path / "i.png", {"first": [right, wrong], "last": [wrong] * 5})
    (figure,) = saved
    shown = [axes for axes in figure.axes if axes.images]
    widths = [axes.spines["left"].get_linewidth() for axes in shown]
    assert widths[0] < min(widths[1:])
    assert len(shown) == 7
    check_size(tmp_path / "i.png", figure)


@pytest.mark.parametrize("steps", [1, 50])
def test_curves_hold_losses_apart(tmp_path, saved, steps):
    names = ("train/loss", "train/top1", "train/learning_rate", "eval/loss", "eval/top1", "eval/preview_top1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer = metric_writers.SummaryWriter(str(tmp_path))
        for step in range(1, steps + 1):
            writer.write_scalars(step, {name: 1.0 / step + number for number, name in enumerate(names)})
        writer.close()
        curves.plot_curves(tmp_path, tmp_path / "curves.png")
    (figure,) = saved
    titles = {axes.get_title(): len(axes.lines) for axes in figure.axes}
    assert titles == {
        "training: joint loss of both stages": 1,
        "evaluation: cross entropy of the specialist": 1,
        "top-1": 3,
        "learning rate": 1,
    }
    for line in (line for axes in figure.axes for line in axes.lines):
        assert len(line.get_xdata()) == steps
        assert steps > 1 or line.get_marker(), "one step is a point, since a line needs two"
    styles = {(line.get_marker(), line.get_linestyle()) for line in figure.axes[2].lines}
    assert len(styles) >= 2
    check_size(tmp_path / "curves.png", figure)


def test_points_of_many_networks_differ_in_shape_and_colour():
    styles = [plotting.marker(index) for index in range(56)]
    assert len({(style["color"], style["marker"]) for style in styles}) == 56
    # Brightness tells the colours of neighbours apart where their hue does not.
    assert all(a["marker"] != b["marker"] for a, b in itertools.pairwise(styles))


def test_any_name_is_drawn_without_a_warning(tmp_path, saved):
    """Folders name classes: formulas, scripts that no font has, halves of letters."""
    image = np.zeros((8, 8, 3), np.uint8)
    pictures = [plots.answered(image, k, {"preview": 0}, NAMES) for k in range(len(NAMES))]
    plots.draw_images(tmp_path / "i.png", {"all": pictures})
    by_class = np.full((len(NAMES), 3, 4), 0.25)
    means = {"by_class": by_class, "entropy": np.ones(3), "wins": by_class[0]}
    coefficient_plot.draw_coefficients(tmp_path / "c.png", NAMES[:3], NAMES, means, np.arange(len(NAMES)))
    plots.draw_accuracy(tmp_path / "a.png", Network(NAMES[0], 1.0, 0.5), None, [Network(NAMES[4], 2.0, 0.5)], "x")
    rows = [compare.Row(name, "static", (0,), 0.5, None, 1, 1, 1.0, "") for name in NAMES if name.isascii()]
    compare.write(rows, tmp_path)
    assert plotting.drawable("line\nbreak\udcff") == r"line\nbreak\udcff"
    assert plotting.drawable("né ñ ж ✓") == "né ñ ж ✓"
    assert plotting.drawable("x" * 300, 10) == "x" * 9 + "…"


def test_a_letter_is_drawn_in_a_font_that_has_it(tmp_path, saved, monkeypatch):
    letter = "\N{CJK UNIFIED IDEOGRAPH-6C34}"
    known = font_manager.fontManager.ttflist
    own = [entry for entry in known if entry.name.startswith(("DejaVu", "Last Resort"))]  # that come with matplotlib
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    plotting._family_with.cache_clear()
    assert plotting.drawable(letter) == r"\u6c34"
    pen = TTGlyphPen(None)
    for point, move in (((0, 0), pen.moveTo), ((0, 700), pen.lineTo), ((700, 0), pen.lineTo)):
        move(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "water"])
    builder.setupCharacterMap({ord(letter): "water"})
    builder.setupGlyf({".notdef": pen.glyph(), "water": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (800, 0), "water": (800, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Water Sans", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "water.ttf")
    font_manager.fontManager.addfont(tmp_path / "water.ttf")
    plotting._family_with.cache_clear()
    try:
        assert plotting.drawable(f"{letter}!") == f"{letter}!"
        plots.draw_images(tmp_path / "i.png", {"water": [Picture(np.zeros((8, 8, 3), np.uint8), letter)]})
        assert all(text.get_fontfamily() == [plotting.FONT, "Water Sans"] for text in saved[0].findobj(Text))
    finally:
        plotting._family_with.cache_clear()


def test_matplotlib_stays_as_the_caller_had_it(tmp_path, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "backend", "template")  # as a notebook has its own
    before = dict(matplotlib.rcParams)
    plots.draw_accuracy(tmp_path / "a.png", Network("this network", 100.0, 0.9), None, [], "digits")
    assert dict(matplotlib.rcParams) == before
    for path in pathlib.Path(basisnet_jax.__file__).parent.rglob("*.py"):
        assert "pyplot" not in path.read_text(), f"{path} draws with global state; use plotting.new_figure"


def test_the_colours_are_those_that_colour_blind_people_tell_apart():
    """Machado et al. 2009, full deuteranopia and protanopia, on linear RGB: no two colours become one."""
    deuteranopia = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    protanopia = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    linear = np.array([colors.to_rgb(color) for color in plotting.COLORS]) ** 2.2
    for matrix in (deuteranopia, protanopia):
        seen = np.clip(linear @ np.transpose(matrix), 0, 1) ** (1 / 2.2)
        gaps = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[~np.eye(len(seen), dtype=bool)]
        assert gaps.min() > 0.15


def test_a_picture_is_the_same_twice(tmp_path, candidates):
    png = []
    for name in ("one", "two"):
        plots.draw_accuracy(tmp_path / name, Network("net", COST.total, 0.5), (candidates[0], 3), [], "digits")
        png.append(np.asarray(Image.open(io.BytesIO((tmp_path / name).read_bytes()))))
    np.testing.assert_array_equal(*png)
