"""What is kept of a study's runs: a small JSON file for each, and the table and the plot that are made of them."""

import csv
import datetime
import itertools
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from basisnet_jax.host import plotting
from benchmarks.studies import Study

SHARES = (0.68, 0.60)  # of the multiply-adds, that early termination is reported at
PERCENT = np.arange(101)  # rows of early_termination.csv: exits on the half of the images that is chosen on
Result = dict[str, Any]  # the content of a run's JSON file


def training_facts(workdir: pathlib.Path) -> Result:
    """Returns what a trained run's folder says of its training; 'held_out' is its own evaluation at the end."""
    results = json.loads((workdir / "results.json").read_text())
    series = {}
    if (workdir / "events").exists():
        from basisnet_jax.workdir.events import read_events  # imports TensorBoard, which takes seconds

        series = read_events(workdir / "events", ("train/",))

    def last_tenth(name: str) -> float | None:
        values = [value for step, value in series.get(name, {}).items() if step > 0.9 * results["step"]]
        return round(statistics.mean(values), 5) if values else None

    return {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "machine": {"cores": len(os.sched_getaffinity(0)), "cpu": _cpu()},
        "versions": {name: results["versions"][name] for name in ("python", "jax")},
        "learning_rate": results["config"]["optimizer"]["learning_rate"],
        "step": results["step"],
        "train_seconds": round(results["train_seconds"]),
        "images_per_second": results["images_per_second"] and round(results["images_per_second"]),
        "parameters": results["parameters"],
        "madds": results["madds"],
        # Of the last tenth of the steps; the loss is that of both stages.
        "train": {name: last_tenth(f"train/{name}") for name in ("loss", "top1", "preview_top1")},
        "held_out": _rounded(results["eval"]),
    }


def evaluation_facts(evaluation: pathlib.Path, group_of: Mapping[str, str] | None) -> Result:
    """Returns what a run's evaluation/ says of one split."""
    results = json.loads((evaluation / "results.json").read_text())
    facts = {
        "count": results["count"],
        "specialist": _rounded(results["specialist"]),
        "preview": results["preview"] and _rounded(results["preview"]),
        "reported_half": _rounded(results["reported_half"]),
    }
    if results["early_termination"]:
        facts["class_share"] = round(results["coefficients"]["class_share"]["all"], 4)
        facts["early_exit"] = _exit_curve(evaluation, results)
    if group_of:
        facts["groups"] = _groups(evaluation / "classes.csv", group_of)
    return facts


def _exit_curve(evaluation: pathlib.Path, results: Result) -> Result:
    """Returns top-1 and average multiply-adds at each whole percent of exits, by the criterion that is best."""
    best = results["early_termination"]["best"]
    chosen = best["criterion"], f"{best['temperature']:.6g}"
    with (evaluation / "early_termination.csv").open() as table:
        rows = [row for row in csv.DictReader(table) if (row["criterion"], row["temperature"]) == chosen]
    return {
        "criterion": best["criterion"],
        "temperature": round(best["temperature"], 4),
        "top1": [round(float(row["top1"]), 5) for row in rows],
        "madds": [round(float(row["madds"])) for row in rows],
    }


def _groups(path: pathlib.Path, group_of: Mapping[str, str]) -> dict[str, Result]:
    """Returns each group's number of images, and both stages' top-1 on them."""
    groups: dict[str, dict[str, float]] = {}
    with path.open(newline="") as table:
        for row in csv.DictReader(table):
            sums = groups.setdefault(group_of[row["class"]], {"count": 0})
            count = int(row["count"])
            sums["count"] += count
            for name in ("specialist", "preview"):
                if row.get(name) and count:
                    sums[name] = sums.get(name, 0.0) + count * float(row[name])
    return {
        group: {name: value if name == "count" else round(value / sums["count"], 5) for name, value in sums.items()}
        for group, sums in groups.items()
        if sums["count"]
    }


def _rounded(values: Mapping[str, Any]) -> Result:
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in values.items()}


def _commit() -> str:
    """Returns the commit that is checked out, with '+' if files of the package have changed since."""
    here = pathlib.Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../basisnet_jax", "../configs")
    return git("rev-parse", "--short=10", "HEAD") + "+" * bool(changed)


def _cpu() -> str:
    """Returns the processor's name."""
    facts = pathlib.Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def as_text(result: Result) -> str:
    """Returns a result as JSON, a line for each field: a curve of 101 numbers takes one line, not 101."""
    lines = (f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in result.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read(folder: pathlib.Path) -> list[Result]:
    """Reads the results of all finished runs of a study."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


# Figures of several runs.


def madds_of_same_top1(curve: Sequence[tuple[float, float]], top1: float) -> float | None:
    """Returns the multiply-adds at which a curve reaches a top-1.

    Between two networks, top-1 is linear in the logarithm of the multiply-adds.

    Args:
      curve: (multiply-adds, top-1) of networks.
      top1: the top-1 to reach.

    Returns:
      The fewest multiply-adds; None if no network, or already the smallest one, has that top-1.
    """
    points = sorted(curve)
    for (small, low), (large, high) in itertools.pairwise(points):
        if low <= top1 <= high and low < high:
            return small * (large / small) ** ((top1 - low) / (high - low))
    return None


class Network:
    """A row's finished runs, one for each seed, on one split."""

    def __init__(self, results: Sequence[Result], split: str):
        self.row, self.what = results[0]["row"], results[0]["what"]
        self.total = results[0]["madds"]["total"]
        self.preview_madds = results[0]["madds"]["preview"]
        self.found = [result["reported"][split] for result in results]
        self.train = [result["train"] for result in results]

    def values(self, *path: str) -> list[float]:
        """Returns a figure of each seed; [] for one that the network does not have."""
        values: Iterable[Any] = self.found
        for name in path:
            values = [value.get(name) for value in values if value]
        return [value for value in values if value is not None]

    @property
    def top1(self) -> float:
        """Mean top-1 with both stages."""
        return statistics.mean(self.values("specialist", "top1"))

    @property
    def half_top1(self) -> float:
        """Mean top-1 with both stages, on the half of the images that early exits are reported on."""
        return statistics.mean(self.values("reported_half", "top1"))

    def exits(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns (multiply-adds, top-1) at each whole percent of exits, means over the seeds, on that half."""
        curves = [(curve["madds"], curve["top1"]) for curve in self.values("early_exit")]
        return tuple(np.mean(curves, axis=0)) if curves else None

    def percent_at(self, share: float) -> int:
        """Returns the fewest whole percents of exits that bring the multiply-adds to a share."""
        return math.ceil(100 * (1 - share) * self.total / (self.total - self.preview_madds) - 1e-9)


def networks(study: Study, results: Sequence[Result], split: str) -> list[Network]:
    """Returns the rows with finished runs, in the study's order."""
    by_row: dict[str, list[Result]] = {}
    for result in results:
        if not result["rate"] and split in result["reported"]:
            by_row.setdefault(result["row"], []).append(result)
    return [Network(by_row[row], split) for row in study.rows if row in by_row]


def tables(study: Study, results: Sequence[Result], rows: Sequence[str], without_exits: Mapping[str, int]) -> str:
    """Returns Markdown: the rates that were tried, and for each reported split its networks, exits and groups.

    Args:
      study: the study.
      results: of its finished runs.
      rows: to show. Ratios are to all static networks, shown or not.
      without_exits: {row: multiply-adds without early exits}, see `models.cost.Cost.without_exits`.
    """
    parts = [_rates(study, [result for result in results if result["row"] in rows])]
    for split in study.reported:
        finished = networks(study, results, split)
        static = [network for network in finished if network.what == study.baseline]
        shown = [network for network in finished if network.row in rows]
        if shown:
            accuracy = _accuracy(study.baseline, static, shown, without_exits)
            parts += [f"Top-1 on `{split}`:", accuracy, _exits(static, shown), _by_group(shown)]
    return "\n\n".join(part for part in parts if part) or "No run is finished."


def _markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rows = list(rows)
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) if rows else ""


def _mean(values: Sequence[float], decimals: int = 4) -> str:
    """Returns the mean and the sample standard deviation."""
    spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{decimals}f}{spread}" if values else ""


def _ratio(madds: float, same: float | None) -> str:
    return f"{madds / same:.2f}" if madds and same else ""


def _accuracy(
    baseline: str, static: Sequence[Network], shown: Sequence[Network], without_exits: Mapping[str, int]
) -> str:
    """Returns the table of both stages, with the multiply-adds of a static network of the same top-1.

    The last ratio is without early exits, and so without the preview's classifier.
    """
    curve = [(network.total, network.top1) for network in static]
    same = f"{baseline} of that top-1"
    titles = ["row", "what", "MAdds", "seeds", "top-1", "cross entropy", "preview's top-1", "training top-1"]
    rows = []
    for network in shown:
        equal = None if network.what == baseline else madds_of_same_top1(curve, network.top1)
        rows.append(
            [
                network.row,
                network.what,
                f"{network.total:,}",
                str(len(network.found)),
                _mean(network.values("specialist", "top1")),
                _mean(network.values("specialist", "loss"), 3),
                _mean(network.values("preview", "top1")),
                _mean([train["top1"] for train in network.train if train["top1"] is not None]),
                f"{equal:,.0f}" if equal else "",
                _ratio(network.total, equal),
                _ratio(without_exits.get(network.row, 0), equal) if network.preview_madds else "",
            ]
        )
    return _markdown([*titles, same, "ratio", "ratio without exits"], rows)


def _exits(static: Sequence[Network], shown: Sequence[Network]) -> str:
    """Returns the table of early exits: points of top-1 lost, and multiply-adds over those of an equal static network.

    Figures are of the half of the images that no threshold was chosen on. The lowest ratio is the lowest of all
    thresholds on these same images, so it is a little too good.
    """
    curve = [(network.total, network.half_top1) for network in static]
    rows = []
    for network in shown:
        exits = network.exits()
        if exits is None:
            continue
        same = [madds_of_same_top1(curve, top1) for top1 in exits[1]]
        row = [network.row, _mean([statistics.mean(curve["top1"]) for curve in network.values("early_exit")])]
        for share in SHARES:
            percent = network.percent_at(share)
            lost = [100 * (seed["top1"][0] - seed["top1"][percent]) for seed in network.values("early_exit")]
            row += [_mean(lost, 2), _ratio(exits[0][percent], same[percent])]
        ratios = {percent: exits[0][percent] / equal for percent, equal in enumerate(same) if equal}
        best = min(ratios, key=ratios.__getitem__, default=None)
        at_best = f" ({best}% exit, top-1 {exits[1][best]:.4f})" if best is not None else ""
        row.append(f"{ratios[best]:.2f}{at_best}" if best is not None else "")
        rows.append([*row, _mean(network.values("class_share"), 2)])
    titles = ["row", "mean top-1 over exit rates"]
    titles += [title for share in SHARES for title in (f"points lost at {share:.0%} of the MAdds", "ratio there")]
    return _markdown([*titles, "lowest ratio", "class share"], rows)


def _by_group(shown: Sequence[Network]) -> str:
    """Returns each group's top-1, a column for each row of the study."""
    shown = [network for network in shown if network.values("groups")]
    if not shown:
        return ""
    rows = []
    for group, facts in shown[0].values("groups")[0].items():
        cells = [_mean(network.values("groups", group, "specialist")) for network in shown]
        rows.append([group, str(facts["count"]), *cells])
    return _markdown(["group", "images", *(network.row for network in shown)], rows)


def _rates(study: Study, results: Sequence[Result]) -> str:
    """Returns top-1 on the held-out images by learning rate: of all runs that trained and looked as a sweep's do."""
    by_row: dict[str, dict[float, list[float]]] = {}
    for result in results:
        if study.sweep.items() <= result["overrides"].items():
            tried = by_row.setdefault(result["row"], {})
            tried.setdefault(result["learning_rate"], []).append(result["held_out"]["top1"])
    rates = sorted({rate for tried in by_row.values() for rate in tried})
    rows = ([row, *(_mean(by_row[row].get(rate, [])) for rate in rates)] for row in study.rows if row in by_row)
    table = _markdown([f"top-1 on `{study.sweep['data.eval_split']}`", *(f"{rate:g}" for rate in rates)], rows)
    return f"Learning rates:\n\n{table}" if table else ""


def plot(study: Study, results: Sequence[Result], split: str, path: pathlib.Path) -> None:
    """Draws top-1 over multiply-adds: a line for each 'what', dashed where images exit early, bars over the seeds."""
    from matplotlib.ticker import LogLocator, NullFormatter

    shown = networks(study, results, split)
    figure = plotting.new_figure(6.5)
    axes = figure.subplots()
    for index, what in enumerate(dict.fromkeys(network.what for network in shown)):
        line = sorted((network for network in shown if network.what == what), key=lambda network: network.total)
        top1 = [network.values("specialist", "top1") for network in line]
        style = plotting.marker(index) | {"linestyle": "-", "capsize": 3, "markersize": 6}
        axes.errorbar(
            [network.total for network in line],
            [network.top1 for network in line],
            yerr=[statistics.stdev(seeds) if len(seeds) > 1 else 0.0 for seeds in top1],
            label=what,
            **style,
        )
        for network in line:
            exits = network.exits()
            if exits is not None:
                # On half of the images, so moved to begin at the network's point.
                axes.plot(exits[0], exits[1] - exits[1][0] + network.top1, "--", color=style["color"], linewidth=0.7)
    if shown:
        lowest, highest = (f(network.top1 for network in shown) for f in (min, max))
        axes.set_ylim(lowest - 0.15 * (highest - lowest) - 0.005, highest + 0.05 * (highest - lowest) + 0.005)
    axes.set_xscale("log")
    plotting.label_madds(axes, average=True)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"top-1 on {split}; dashed: with early exits", fontsize=plotting.SMALL + 2)
    plotting.key_below(figure)
    plotting.save(figure, path)
