"""The report: its data are those of the other files, its size is bounded, and a real browser shows it."""

import base64
import csv
import html.parser
import json
import pathlib
import shutil

import cv2
import numpy as np
import pytest

from basisnet_jax.evaluation import early_exit, report, report_data
from basisnet_jax.evaluation.confusion import mended_pairs
from basisnet_jax.evaluation.of_run import evaluate_run
from basisnet_jax.evaluation.report_data import Answers, Stops
from basisnet_jax.evaluation.results import Criterion, ExitPoint
from basisnet_jax.serving import exit_curve
from basisnet_jax.serving.exit_rule import ExitRule
from tests.browser import Watched, chromium
from tests.evaluation.test_early_exit import COST

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "<b>&amp;\u2028",
    "\u202eright to left",
    "\udcff",
    "$name${data}",
    "a-name-without-a-space-" * 8,
]


class Scripts(html.parser.HTMLParser):
    """The script elements of a page, and the text of its title."""

    def __init__(self, text):
        super().__init__()
        self.found, self.title, self.inside = [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        if tag == "script":
            self.found.append([dict(attributes), ""])

    def handle_data(self, data):
        if self.inside == "script":
            self.found[-1][1] += data
        elif self.inside == "title":
            self.title += data

    def handle_endtag(self, tag):
        self.inside = None


def data_of(text):
    (block,) = (content for attributes, content in Scripts(text).found if attributes.get("id") == "data")
    return json.loads(block)


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """The `evaluation/` folder of a trained run."""
    pytest.importorskip("plotly")
    workdir = shutil.copytree(trained, tmp_path_factory.mktemp("evaluated"), dirs_exist_ok=True)
    evaluate_run(None, str(workdir))
    return workdir / "evaluation"


@pytest.fixture(scope="module")
def data(evaluated):
    return data_of((evaluated / "report.html").read_text())


@pytest.fixture(scope="module")
def images():
    """(labels, preview logits, {stage: answers}, candidates) of 300 images and five classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 300)
    preview, logits = (scale * np.eye(5)[labels] + rng.normal(size=(300, 5)) for scale in (2, 3))
    answers = {
        stage: Answers(x.argmax(-1), (x.argmax(-1) == labels) * 1.0)
        for stage, x in (("preview", preview), ("specialist", logits))
    }
    right = [answers[stage].right_N for stage in ("preview", "specialist")]
    return labels, preview, answers, early_exit.candidates(preview, labels, *right, COST)


def stops_of(candidate):
    points = {"max_accuracy_drop": ExitPoint(**candidate.reported_on.point(7))}
    return Stops.of(candidate, Criterion(candidate.criterion, candidate.temperature, 0.0, 0.0, points))


def rows_of(folder):
    """{(criterion, temperature): rows of `early_termination.csv`}."""
    found = {}
    for row in csv.DictReader((folder / "early_termination.csv").open()):
        rows = found.setdefault((row["criterion"], float(row["temperature"])), [])
        rows.append({name: float(row[name]) for name in ("threshold", "exit_rate", "top1", "madds")})
    return found


def test_the_slider_stops_at_the_rows_of_the_table_and_at_the_chosen_points(evaluated, data):
    results = json.loads((evaluated / "results.json").read_text())
    assert {**data["results"], "config": None} == {**results, "config": None}
    assert "/" not in data["results"]["config"]["data"]["dir"], "a folder of this machine"
    for stops, (key, rows), found in zip(
        data["exits"], rows_of(evaluated).items(), results["early_termination"]["criteria"], strict=True
    ):
        assert (stops["criterion"], stops["temperature"]) == (key[0], pytest.approx(key[1], rel=1e-5))
        at = [{name: stops[name][i] for name in rows[0]} for i in range(len(stops["threshold"]))]
        points = [at[stop] for stop in stops["chosen"].values()]
        assert points == list(found["points"].values())
        for row in rows:
            assert any(row == pytest.approx(stop, rel=1e-6) for stop in at)
        for stop in at:
            assert stop in points or any(row == pytest.approx(stop, rel=1e-6) for row in rows)
    rule = results["early_termination"]["rule"]
    in_use = data["exits"][data["in_use"]]
    assert rule["threshold"] == in_use["threshold"][list(in_use["chosen"].values())[-1]]


def test_what_exits_change_is_what_the_rule_does(images):
    labels, preview, answers, candidates = images
    half = exit_curve.reported_half(len(labels))
    for candidate in candidates:
        stops = stops_of(candidate)
        shown = stops.to_json(answers)
        exits_at = stops.exits_at()
        for number, threshold in enumerate(shown["threshold"]):
            exits = ExitRule(candidate.criterion, candidate.temperature, threshold).exits(preview)
            better, worse = (
                sum(
                    bool(exits[i] and half[i] and answers[a].right_N[i] > answers[b].right_N[i])
                    for i in range(len(labels))
                )
                for a, b in (("preview", "specialist"), ("specialist", "preview"))
            )
            assert (shown["gained"][number], shown["lost"][number]) == (better, worse)
            assert shown["exit_rate"][number] == pytest.approx(exits[half].mean())
            net = (shown["top1"][number] - shown["top1"][0]) * half.sum()
            assert net == pytest.approx(better - worse, abs=1e-6)
            assert (exits_at <= number).tolist() == exits.tolist()


def test_pictures_are_chosen_by_confidence_and_by_who_is_right(images, monkeypatch):
    monkeypatch.setattr(report_data, "PICTURES", 4)
    labels, _, answers, candidates = images
    confidence = candidates[0].confidence_N
    groups = report_data.choose_pictures(confidence, answers)
    ordered = sorted(range(len(labels)), key=lambda i: -confidence[i])
    assert groups["first"].tolist() == ordered[:4]
    assert groups["last"].tolist() == ordered[-4:][::-1]
    half = exit_curve.reported_half(len(labels))
    for stage, other, most in (("specialist", "preview", 8), ("preview", "specialist", 4)):
        alone = [i for i in ordered if half[i] and answers[stage].right_N[i] > answers[other].right_N[i]]
        assert len(groups[stage]) == min(most, len(alone))
        places = [alone.index(i) for i in groups[stage]]
        assert places == sorted(set(places))
        assert (places[0], places[-1]) == (0, len(alone) - 1), "spread over all of them"


def test_mended_pairs_are_counted_as_a_loop_does(images):
    labels, _, answers, _ = images
    counts = {}
    for stage in ("preview", "specialist"):
        for label, answer in zip(labels, answers[stage].answer_N, strict=True):
            if label != answer:
                pair = counts.setdefault((min(label, answer), max(label, answer)), {"preview": 0, "specialist": 0})
                pair[stage] += 1
    found = mended_pairs(labels, answers["preview"].answer_N, answers["specialist"].answer_N)
    assert {pair[:2]: pair[2:] for pair in found} == {
        pair: tuple(count.values()) for pair, count in counts.items() if count["specialist"] < count["preview"]
    }
    gains = [pair.preview - pair.specialist for pair in found]
    assert gains == sorted(gains, reverse=True)
    assert mended_pairs(labels, labels, labels) == []


def test_a_small_picture_is_kept_and_a_large_one_is_shrunk():
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        small = rng.integers(0, 256, (24, 24, channels), np.uint8)
        kind, content = report_data.data_uri(small).split(",")
        assert kind == "data:image/png;base64"
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(decoded.reshape(small.shape)[..., ::-1], small)  # OpenCV has blue first
        uri = report_data.data_uri(rng.integers(0, 256, (600, 300, channels), np.uint8))
        assert uri.startswith("data:image/jpeg;base64,")
        assert len(uri) < 12_000, "noise is the worst case"
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8), cv2.IMREAD_UNCHANGED)
        assert decoded.shape[:2] == (96, 48)


def test_what_grows_with_the_data_is_bounded(monkeypatch):
    assert [len(name) for name in report_data.names(["x" * 300, "short"])] == [80, 5]
    thinned = report_data._thinned({step: float("nan") if step == 0 else 1.0 / step for step in range(12_345)})
    assert 250 < len(thinned["steps"]) <= report_data.POINTS
    assert thinned["values"][0] is None
    assert thinned["values"][1] == 1 / thinned["steps"][1]
    rng = np.random.default_rng(0)
    by_class = rng.dirichlet(np.ones(4), (100, 3))
    monkeypatch.setattr(report_data, "COEFFICIENTS", 100 * 3 * 4 // 3)
    shown = report_data.coefficients({"by_class": by_class}, ["v"] * 3, rng.permutation(100), np.arange(100))
    parts = np.frombuffer(base64.b64decode(shown["bytes"]), np.uint8)
    assert shown["step"] == 4, "a third of the classes fits, but for one"
    assert parts.size <= report_data.COEFFICIENTS
    assert shown["images"] == shown["classes"]
    values = shown["largest"] * (parts.reshape(-1, 3, 4) / 255) ** 2
    np.testing.assert_allclose(values, by_class[shown["classes"]], atol=0.004)


def test_names_from_outside_stay_text():
    pytest.importorskip("plotly")
    page = report.page({"name": HOSTILE[0], "classes": HOSTILE})
    scripts = Scripts(page)
    assert [attributes for attributes, _ in scripts.found] == [
        {"id": "data", "type": "application/json"},
        {"id": "plotly", "type": "text/plain"},
        {},
    ]
    assert data_of(page)["classes"] == HOSTILE
    assert scripts.title == f"{HOSTILE[0]}: evaluation"
    assert page.isascii() or "\u2028" not in page


def test_without_plotly_one_sentence_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(report.installed, "find_installed", lambda name: None)
    report.write(tmp_path / "report.html", {"name": "run"})
    assert not list(tmp_path.iterdir())
    assert caplog.messages == [
        f"{tmp_path}/report.html needs Plotly and is not written; run pip install plotly, then evaluate again"
    ]


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


def shown(browser, path, **options):
    """Opens a report and waits until it is drawn."""
    watched = Watched(browser, pathlib.Path(path).as_uri(), **options)
    watched.page.wait_for_selector("html[data-shown]", state="attached")
    return watched


def figures(page):
    """The figures that the page shows, as a row of the table."""
    ids = ["threshold", "exit-rate", "top1", "madds"]
    threshold, rate, top1, madds = page.evaluate("(ids) => ids.map((id) => find(`at-${id}`).textContent)", ids)
    return {
        "threshold": 2.0 if threshold == "none exits" else float(threshold),
        "exit_rate": float(rate.removesuffix("%")) / 100,
        "top1": float(top1),
        "madds": float(madds.replace(",", "")),
    }


def is_shown(row, found):
    """Whether figures on the page are a row's, rounded."""
    digits = {"threshold": 1e-5 * row["threshold"] + 1e-9, "exit_rate": 5.1e-4, "top1": 5.1e-5, "madds": 0.51}
    return all(abs(row[name] - found[name]) <= most for name, most in digits.items())


def test_the_slider_shows_the_table_of_every_criterion(evaluated, data, browser):
    watched = shown(browser, evaluated / "report.html")
    page, rows = watched.page, list(rows_of(evaluated).values())
    criteria = json.loads((evaluated / "results.json").read_text())["early_termination"]["criteria"]
    for number in {data["in_use"], 5}:
        page.select_option("#criterion", str(number))
        for setting, point in criteria[number]["points"].items():
            page.click(f"#chosen button:has-text('{setting}')")
            assert is_shown(point, figures(page)), setting
        page.focus("#threshold")
        page.keyboard.press("Home")
        assert is_shown(rows[number][0], figures(page))
        stops = [figures(page)]
        for _ in range(len(data["exits"][number]["threshold"]) - 1):
            page.keyboard.press("ArrowRight")
            stops.append(figures(page))
        assert is_shown(rows[number][-1], stops[-1])
        assert stops[-1]["exit_rate"] == 1
        for row in rows[number]:
            assert any(is_shown(row, stop) for stop in stops)
        marked = page.evaluate("(() => { const { x, y } = find('accuracy-chart').data[1]; return [x[0], y[0]]; })()")
        assert marked == [rows[number][-1]["madds"], pytest.approx(rows[number][-1]["top1"])]
        assert page.locator("#first .preview.answers").count() == page.locator("#first figure").count()
        alone = data["groups"]["specialist"] + data["groups"]["preview"]
        assert page.locator("#changed figure").count() == len(alone), "all have exited"
        page.keyboard.press("Home")
        assert page.locator("#changed figure").count() == page.locator("#first .preview.answers").count() == 0
    words = page.get_attribute("#threshold", "aria-valuetext")
    assert words.startswith("threshold none exits: 0.0% exit, top-1 ")

    page.select_option("#vector", "1")
    page.select_option("#sort", "2")
    coefficients = data["coefficients"]
    parts = np.frombuffer(base64.b64decode(coefficients["bytes"]), np.uint8)
    third = parts.reshape(len(coefficients["classes"]), len(coefficients["vectors"]), -1)[:, 1, 2]
    order = page.locator("#heat tbody th").all_text_contents()
    by_name = dict(zip((data["classes"][k] for k in coefficients["classes"]), third.tolist(), strict=True))
    assert [by_name[name] for name in order] == sorted(third.tolist(), reverse=True)
    page.fill("#find", order[0])
    assert page.locator("#heat tbody tr:visible").count() == sum(order[0] in name for name in order)
    assert watched.complaints == []
    assert watched.requests == [page.url]


@pytest.mark.parametrize("stages", [1, 2])
def test_any_names_fit_on_a_phone_in_the_dark(evaluated, data, browser, tmp_path, stages):
    """With names that break pages; without a preview, too."""
    data = json.loads(json.dumps(data))
    data["name"] = HOSTILE[0]
    data["classes"] = (HOSTILE * 2)[: len(data["classes"])]
    data["networks"]["compared"] = [{"name": name, "madds": 1e4, "top1": 0.5} for name in HOSTILE]
    if stages == 1:
        for name in ("in_use", "exits", "groups", "pictures", "mended", "coefficients"):
            del data[name]
    path = tmp_path / "report.html"
    path.write_text(report.page(data))
    watched = shown(browser, path, viewport={"width": 400, "height": 800}, color_scheme="dark")
    page = watched.page
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    background, letters = page.evaluate(
        "(({ backgroundColor, color }) => [backgroundColor, color])(getComputedStyle(document.body))"
    )
    assert (background, letters) == ("rgb(21, 24, 27)", "rgb(233, 235, 237)")
    sizes = """[...document.querySelectorAll("body *")].filter((x) => x.checkVisibility() && x.innerText?.trim())
        .map((x) => parseFloat(getComputedStyle(x).fontSize))"""
    assert min(page.evaluate(sizes)) >= 11, "letters can be read"
    assert page.locator("#exits").is_visible() == page.locator("#heat").is_visible() == (stages == 2)
    assert page.locator("#accuracy-chart .main-svg").count() > 0
    assert watched.complaints == []
    assert watched.requests == [page.url]
