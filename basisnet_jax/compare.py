"""One table and one plot of finished runs: `python -m basisnet_jax.compare runs/fashion_mnist_*`.

Runs whose configs differ in nothing but the seed are one row: the mean over them, and their spread.
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
from typing import Any

from etils import epath

from basisnet_jax import figures, files
from basisnet_jax.errors import UserError
from basisnet_jax.output import ending_with_its_reader


@dataclasses.dataclass(frozen=True)
class Row:
    """A network, by the finished runs of its seeds."""

    name: str  # of the first run's workdir, without the seed at its end
    routing: str
    seeds: tuple[int, ...]
    top1: float  # the mean
    spread: float | None  # sample standard deviation of the top-1; None of one seed
    madds: int
    parameters: int
    train_seconds: float  # the mean
    workdir: str  # of the first run


def read(folders: Sequence[str | os.PathLike]) -> list[Row]:
    """The rows of runs' workdirs, from the fewest multiply-adds to the most.

    Raises:
      UserError: a run is not finished, given twice, or of another data set than the others.
    """
    runs = {str(folder): _results(epath.Path(folder).expanduser()) for folder in folders}
    networks: dict[str, dict[str, dict[str, Any]]] = {}
    evaluated: dict[tuple[str, str, int], str] = {}
    for folder, results in runs.items():
        config, data = results["config"], results["config"]["data"]
        evaluated.setdefault((data["name"], data["eval_split"], results["eval"]["count"]), folder)
        networks.setdefault(json.dumps({**config, "seed": None}, sort_keys=True), {})[folder] = results
    if len(evaluated) > 1:
        said = "; ".join(
            f"{where} on {count} images of {name} {split}" for (name, split, count), where in evaluated.items()
        )
        raise UserError(f"the runs were evaluated on different images ({said}); compare runs of one data set.")
    return sorted((_row(runs) for runs in networks.values()), key=lambda row: row.madds)


def _results(folder: epath.Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "results.json").read_text())
    except (OSError, json.JSONDecodeError):
        raise UserError(
            f"{folder} has no results.json that can be read: let its run finish, or leave it out."
        ) from None


def _row(runs: dict[str, dict[str, Any]]) -> Row:
    """Of the runs of one network, {workdir: results}."""
    seeds = [results["config"]["seed"] for results in runs.values()]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{' and '.join(runs)} have a seed in common; a run counts once: leave the others out.")
    top1 = [results["eval"]["top1"] for results in runs.values()]
    folder, first = next(iter(runs.items()))
    return Row(
        name=re.sub(f"[-_]{seeds[0]}$", "", os.path.basename(os.path.normpath(folder))),
        routing=first["config"]["model"]["routing"],
        seeds=tuple(sorted(seeds)),
        top1=statistics.mean(top1),
        spread=statistics.stdev(top1) if len(top1) > 1 else None,
        madds=first["madds"]["total"],
        parameters=first["parameters"],
        train_seconds=statistics.mean(results["train_seconds"] for results in runs.values()),
        workdir=folder,
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table; the spread is the sample standard deviation over the seeds."""
    lines = [
        "| network | routing | top-1 | seeds | multiply-adds | parameters | training |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        top1 = f"{row.top1:.4f}" + ("" if row.spread is None else f" ± {row.spread:.4f}")
        seeds = ", ".join(map(str, row.seeds))
        lines.append(
            f"| {row.name} | {row.routing} | {top1} | {seeds} | {row.madds:,} | {row.parameters:,} | "
            f"{row.train_seconds:.0f} s |"
        )
    return "\n".join(lines)


def write(rows: Sequence[Row], folder: str | os.PathLike) -> None:
    """`comparison.csv`, and `comparison.png` with top-1 over multiply-adds, into a folder."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(Row))
    for row in rows:
        writer.writerow({**dataclasses.asdict(row), "seeds": " ".join(map(str, row.seeds))}.values())
    figure, axis = figures.new_figure(figsize=(7, 5))
    for row in rows:
        axis.errorbar(row.madds / 1e6, row.top1, yerr=row.spread, marker="o", capsize=3, label=row.name)
    axis.set(xlabel="multiply-adds an image, millions", ylabel="top-1")
    axis.grid(alpha=0.3)
    axis.legend()
    place = epath.Path(folder).expanduser()
    try:
        place.mkdir(parents=True, exist_ok=True)
        files.write(place / "comparison.csv", table.getvalue())
        figures.save(figure, place / "comparison.png")
    except OSError as error:
        raise UserError(f"cannot write to {place} ({error.strerror}); give another place with --out.") from None


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m basisnet_jax.compare", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="workdirs of finished runs")
    parser.add_argument("--out", default="runs", help="folder for comparison.csv and comparison.png (default: runs)")
    arguments = parser.parse_args()
    try:
        rows = read(arguments.runs)
        write(rows, arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(markdown(rows))


if __name__ == "__main__":
    with ending_with_its_reader():
        main()
