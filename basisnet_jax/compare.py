"""Makes one table and one plot of finished runs: `python -m basisnet_jax.compare runs/fashion_mnist_*`.

Runs whose configs differ only in the seed share one row, with their mean and spread.
"""

import argparse
import csv
import dataclasses
import io
import json
import os
import re
import statistics
import sys
from collections.abc import Sequence

from etils import epath

from basisnet_jax.data.folder import data_name
from basisnet_jax.errors import UserError
from basisnet_jax.host import files, plotting
from basisnet_jax.host.command_line import exit_quietly_on_broken_pipe, on_one_line
from basisnet_jax.host.records import read_object
from basisnet_jax.workdir.results import RunResults


@dataclasses.dataclass(frozen=True)
class Row:
    """A network: the finished runs of its seeds, summarized."""

    name: str  # folder name of the first run, without the seed at its end
    routing: str
    seeds: tuple[int, ...]
    top1: float  # mean over the seeds
    spread: float | None  # sample standard deviation of the top-1; None for one seed
    madds: int
    parameters: int
    train_seconds: float  # mean over the seeds
    workdir: str  # the first run's


def read(folders: Sequence[str | os.PathLike]) -> tuple[list[Row], list[str]]:
    """Reads finished runs into one row for each network.

    Returns:
      The rows, from the fewest multiply-adds to the most; a sentence for each folder that is left out.

    Raises:
      UserError: none of the runs is finished, or two of the runs cannot be compared.
    """
    runs, left_out = _finished(folders)
    if not runs:
        raise UserError(f"there is no finished run to compare: {'; '.join(left_out)}.")
    networks: dict[str, dict[str, RunResults]] = {}
    for folder, results in runs.items():
        networks.setdefault(json.dumps({**results.config, "seed": None}, sort_keys=True), {})[folder] = results
    _check_same_images(runs)
    return sorted((_row(runs) for runs in networks.values()), key=lambda row: row.madds), left_out


def _check_same_images(runs: dict[str, RunResults]) -> None:
    """Raises UserError if the runs, {workdir: results}, were evaluated on different images or have other classes."""
    images: dict[str, str] = {}
    classes: dict[tuple[str, ...], str] = {}
    for folder, results in runs.items():
        images.setdefault(_images(results), folder)
        if names := _class_names(folder):
            classes.setdefault(names, folder)
    if len(images) > 1:
        said = "; ".join(f"{where} on {what}" for what, where in images.items())
        raise UserError(f"the runs were evaluated on different images ({said}); compare runs of one data set.")
    if len(classes) > 1:
        said = "; ".join(f"{where} has {len(names)}: {', '.join(names)[:60]}" for names, where in classes.items())
        raise UserError(f"the runs have different classes ({said}); compare runs of one data set.")


def _images(results: RunResults) -> str:
    """Returns words that say which images a run was evaluated on."""
    data = results.config["data"]
    return f"{results.eval.count} images of {data_name(data)} {data['eval_split']}"


def _class_names(folder: str) -> tuple[str, ...]:
    """Returns the names of a run's classes; () if its data.json cannot be read."""
    try:
        return tuple(map(str, read_object(epath.Path(folder).expanduser() / "data.json")["classes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _finished(folders: Sequence[str | os.PathLike]) -> tuple[dict[str, RunResults], list[str]]:
    """Returns {workdir: results} of the finished runs, and a sentence for each other folder."""
    runs: dict[str, RunResults] = {}
    left_out: list[str] = []
    places: dict[str, str] = {}
    for name in map(str, folders):
        folder = epath.Path(name).expanduser()
        place = os.path.realpath(folder)
        if place in places:
            left_out.append(f"{name} is the same folder as {places[place]}, and counts once")
            continue
        places[place] = name
        if not folder.is_dir():
            left_out.append(f"{name} is not a folder")
            continue
        try:
            results = RunResults.load(folder)
            _row({name: results})  # has all that a row needs
            _images(results)
            runs[name] = results
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            left_out.append(f"{name} has no results.json of a finished run")
    return runs, left_out


def _row(runs: dict[str, RunResults]) -> Row:
    """Returns the row of one network, whose runs are {workdir: results}."""
    seeds = [results.config["seed"] for results in runs.values()]
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"{' and '.join(runs)} have a seed in common, but each seed counts once; leave out all but one of them."
        )
    top1 = [results.eval.top1 for results in runs.values()]
    folder, first = next(iter(runs.items()))
    return Row(
        name=re.sub(f"[-_]{seeds[0]}$", "", os.path.basename(os.path.normpath(folder))),
        routing=first.config["model"]["routing"],
        seeds=tuple(sorted(seeds)),
        top1=statistics.mean(top1),
        spread=statistics.stdev(top1) if len(top1) > 1 else None,
        madds=first.madds["total"],
        parameters=first.parameters,
        train_seconds=statistics.mean(results.train_seconds for results in runs.values()),
        workdir=folder,
    )


def markdown(rows: Sequence[Row]) -> str:
    """Returns the rows as a Markdown table; the spread is the sample standard deviation over the seeds."""
    lines = [
        "| network | routing | top-1 | seeds | multiply-adds | parameters | training |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seeds = ", ".join(map(str, row.seeds))
        lines.append(
            f"| {row.name} | {row.routing} | {_top1(row)} | {seeds} | {row.madds:,} | {row.parameters:,} | "
            f"{row.train_seconds:.0f} s |"
        )
    return "\n".join(lines)


def write(rows: Sequence[Row], folder: str | os.PathLike) -> list[str]:
    """Writes `comparison.csv`, and `comparison.png` with top-1 over multiply-adds; returns both paths."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(Row))
    for row in rows:
        writer.writerow({**dataclasses.asdict(row), "seeds": " ".join(map(str, row.seeds))}.values())
    place = epath.Path(folder).expanduser()
    try:
        place.mkdir(parents=True, exist_ok=True)
        files.write(place / "comparison.csv", table.getvalue())
        _draw(rows, place / "comparison.png")
    except OSError as error:
        raise UserError(f"cannot write to {place} ({error.strerror}); give another place with --out.") from None
    return [os.fspath(place / "comparison.csv"), os.fspath(place / "comparison.png")]


def _draw(rows: Sequence[Row], path: epath.Path) -> None:
    figure = plotting.new_figure(4.5 + 0.2 * len(rows))
    axes = figure.subplots()
    for index, row in enumerate(rows):
        seeds = f"{len(row.seeds)} seed{'s' if len(row.seeds) > 1 else ''}"
        label = f"{plotting.drawable(row.name, 50)}: {_top1(row)}, {seeds}, {row.madds:,} multiply-adds"
        style = plotting.marker(index) | {"markersize": 8, "markeredgecolor": "black", "capsize": 4}
        axes.errorbar(row.madds, row.top1, yerr=row.spread, label=label, **style)
    plotting.label_madds(axes, average=False)
    axes.margins(0.08)
    plotting.key_below(figure)
    plotting.save(figure, path)


def _top1(row: Row) -> str:
    return f"{row.top1:.4f}" + ("" if row.spread is None else f" ± {row.spread:.4f}")


def main() -> None:
    """Reads the command line, compares its runs, and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m basisnet_jax.compare", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="workdirs of finished runs")
    parser.add_argument("--out", default="runs", help="folder for comparison.csv and comparison.png (default: runs)")
    arguments = parser.parse_args()
    try:
        rows, left_out = read(arguments.runs)
        for sentence in left_out:
            print(f"left out: {on_one_line(sentence)}", file=sys.stderr)
        written = write(rows, arguments.out)
    except UserError as error:
        print(f"error: {on_one_line(str(error))}", file=sys.stderr)
        sys.exit(2)
    print(markdown(rows))
    print(f"written: {', '.join(written)}", file=sys.stderr)


if __name__ == "__main__":
    with exit_quietly_on_broken_pipe():
        main()
