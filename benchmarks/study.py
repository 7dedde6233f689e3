"""Runs the study of docs/results.md: lists its rows, prints or runs their commands, and prints the table of results.

    python benchmarks/study.py                              # the rows
    python benchmarks/study.py run static preview_n4        # trains and evaluates what is missing, seeds 0, 1, 2
    python benchmarks/study.py commands static --seeds 0    # prints the commands, for another machine to run
    python benchmarks/study.py table                        # the table of all that is finished

Flags that start with --config. are passed to every run: --config.data.dir=... --config.data.threads=2. With
--rates 4e-3 8e-3 a row becomes one run per learning rate, trained on the first 50,000 images and evaluated on the last
10,000 of the training split, to choose a rate. Runs are in runs/study/ROW-SEED; --out names another folder.
The rows of 40 classes need the data that `python benchmarks/turned.py` makes.
"""

import argparse
import csv
import dataclasses
import json
import math
import pathlib
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SHARES = (0.68, 0.60)  # of the multiply-adds, that early termination is reported at

STATIC, PREVIEW = "compare/fashion_mnist_static", "compare/fashion_mnist_preview"
STRONG = {"data.policy": "randaugment", "data.policy_magnitude": 5.0, "data.erasing": 0.25}
MIXUP = {"loss.mix": "mixup", "loss.mix_alpha": 0.2}
TEACHER = {"distill.teacher": "{out}/teacher-{seed}", "distill.weight": 0.5, "distill.temperature": 2.0}
LONG = {"epochs": 12.0, "warm_start_epochs": 3.0, "eval_every_epochs": 3.0, "schedule.warmup_epochs": 1.5}
# As many steps as four epochs of the upright images; benchmarks/turned.py has mirrored them.
TURNED = {"data.name": "fashion_mnist_turned", "data.flip": False, "epochs": 1.0, "warm_start_epochs": 0.25}
TURNED |= {"eval_every_epochs": 0.5, "checkpoint.every_epochs": 0.5, "schedule.warmup_epochs": 0.125}
TURNED_LONG = TURNED | {"epochs": 3.0, "warm_start_epochs": 0.75, "schedule.warmup_epochs": 0.375}


def both(name: str, what: str, overrides: Mapping[str, Any]) -> dict[str, tuple[str, str, Mapping[str, Any]]]:
    """Makes a row of either side under another recipe."""
    sides = {"static": STATIC, "preview_n4": PREVIEW}
    return {f"{side}_{name}": (what, config, overrides) for side, config in sides.items()}


def bases(number: int, width: float, preview_width: float, preview_resolution: int) -> Mapping[str, Any]:
    """Makes a row with N bases, and with widths that keep the multiply-adds within 2% of the static network's."""
    preview = {"model.preview.width": preview_width, "model.preview.resolution": preview_resolution}
    return {"model.num_bases": number, "model.specialist.width": width, **preview}


# {row: (what it is, the config in configs/, what differs from it)}
ROWS: dict[str, tuple[str, str, Mapping[str, Any]]] = {
    "static": ("the plain network, 1,449,320 multiply-adds", STATIC, {}),
    "preview_n1": ("a preview that routes nothing, 1,449,936", PREVIEW, bases(1, 1.04, 0.5, 14)),
    "preview_n2": ("BasisNet, N = 2, 1,450,440", PREVIEW, bases(2, 1.04, 0.5, 10)),
    "preview_n4": ("BasisNet, N = 4, 1,439,312", PREVIEW, bases(4, 0.84, 0.75, 10)),
    "preview_n8": ("BasisNet, N = 8, 1,445,864", PREVIEW, bases(8, 0.84, 0.5, 10)),
    "preview_n16": ("BasisNet, N = 16, 1,420,976", PREVIEW, bases(16, 0.7, 0.5, 16)),
    "anneal": ("a warm start by temperature, from 30", PREVIEW, {"model.warm_start": "temperature"}),
    "block": ("a vector a block", PREVIEW, {"model.granularity": "block"}),
    **both("strong", "RandAugment and random erasing", STRONG),
    **both("mixup", "mixup", MIXUP),
    "teacher": ("for distillation: the plain network, twice as wide", STATIC, {"model.specialist.width": 2.0}),
    **both("distilled", "learns from the teacher", TEACHER),
    **both("strong_distilled", "strong augmentation, and the teacher", STRONG | TEACHER),
    **both("long", "three times as long", LONG),
    **both("strong_long", "strong augmentation, three times as long", STRONG | LONG),
    **both("turned", "40 classes: class times rotation", TURNED),
    "preview_n8_turned": ("40 classes, N = 8", PREVIEW, bases(8, 0.84, 0.5, 10) | TURNED),
    "preview_n16_turned": ("40 classes, N = 16", PREVIEW, bases(16, 0.7, 0.5, 16) | TURNED),
    "static_turned_long": ("40 classes, three times as long", STATIC, TURNED_LONG),
    "preview_n8_turned_long": ("the same, N = 8", PREVIEW, bases(8, 0.84, 0.5, 10) | TURNED_LONG),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A row at one seed, perhaps at a learning rate of a sweep."""

    row: str
    seed: int
    out: pathlib.Path
    extra: tuple[str, ...] = ()
    rate: str = ""

    @property
    def workdir(self) -> pathlib.Path:
        """Its folder."""
        return self.out / f"{self.row}{f'-rate{self.rate}' if self.rate else ''}-{self.seed}"

    def command(self, mode: str) -> list[str]:
        """Returns the command that trains or evaluates the run."""
        _, config, overrides = ROWS[self.row]
        fields = {"seed": self.seed, **overrides}
        if self.rate:
            kept = 200_000 if "data.name" in overrides else 50_000  # four examples an image
            fields |= {"data.train_split": f"train[:{kept}]", "data.eval_split": f"train[{kept}:]"}
            fields["optimizer.learning_rate"] = self.rate
        flags = [f"--config.{field}={value}".format(out=self.out, seed=self.seed) for field, value in fields.items()]
        start = [sys.executable, "-m", "basisnet_jax.main", f"--mode={mode}", f"--config=configs/{config}.py"]
        return [*start, *flags, *self.extra, f"--workdir={self.workdir}"]

    def missing(self) -> Iterator[list[str]]:
        """Commands that are still to be run."""
        if not (self.workdir / "results.json").exists():
            yield self.command("train")
        if not (self.workdir / "evaluation" / "results.json").exists():
            yield self.command("evaluate")


def measured(workdir: pathlib.Path) -> dict[str, float]:
    """Returns a run's figures: 'madds', 'top1', and of two stages 'preview', 'curve', 'class_share', 'lost_60%', ...

    'curve' is top-1 averaged over all exit rates, by the criterion that is best on the other half. What early
    termination loses is in top-1 on the half of the images that no threshold was chosen on.
    """
    found = json.loads((workdir / "evaluation" / "results.json").read_text())
    figures = {"madds": found["madds"]["total"], "top1": found["specialist"]["top1"]}
    if not found["early_termination"]:
        return figures
    figures |= {"preview": found["preview"]["top1"], "class_share": found["coefficients"]["class_share"]["all"]}
    best = found["early_termination"]["best"]
    (figures["curve"],) = (
        row["mean_top1"]
        for row in found["early_termination"]["criteria"]
        if all(row[name] == best[name] for name in ("criterion", "temperature"))
    )
    chosen = best["criterion"], f"{best['temperature']:.6g}"
    with (workdir / "evaluation" / "early_termination.csv").open() as table:
        # Rows are whole percents of exits on the half that is chosen on, 0 to 100.
        top1 = [float(x["top1"]) for x in csv.DictReader(table) if (x["criterion"], x["temperature"]) == chosen]
    for share in SHARES:
        saved = (1 - share) * found["madds"]["total"] / (found["madds"]["total"] - found["madds"]["preview"])
        figures[f"lost_{share:.0%}"] = top1[0] - top1[math.ceil(100 * saved - 1e-9)]
    return figures


def table(runs: Sequence[Run]) -> str:
    """Returns Markdown: a line for each row, the mean over its seeds and their sample standard deviation."""
    columns = ["top1", "preview", "curve", *(f"lost_{share:.0%}" for share in SHARES), "class_share"]
    lost = (f"lost at {share:.0%} of the MAdds" for share in SHARES)
    titles = ["top-1", "preview", "mean over exit rates", *lost, "class share"]
    rows: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        if (run.workdir / "evaluation" / "results.json").exists():
            rows.setdefault(run.workdir.name.rsplit("-", 1)[0], []).append(measured(run.workdir))
    lines = [f"| row | MAdds | seeds | {' | '.join(titles)} |", "|---" * (len(titles) + 3) + "|"]
    for name, seeds in rows.items():
        cells = [name, f"{seeds[0]['madds']:,.0f}", str(len(seeds))]
        for column in columns:
            values = [figures[column] for figures in seeds if column in figures]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{spread}" if values else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Runs the command line; returns 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", default="rows", choices=["rows", "run", "commands", "table"])
    parser.add_argument("rows", nargs="*", metavar="ROW", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", default=[""], help="a sweep of the learning rate, on held-out data")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/study"))
    options, extra = parser.parse_known_args()
    unknown = [name for name in options.rows if name not in ROWS] + [x for x in extra if not x.startswith("--config.")]
    if unknown:
        parser.error(f"{unknown[0]!r} is neither a row nor a field of the config; the rows are {', '.join(ROWS)}")
    runs = [
        Run(row, seed, options.out, tuple(extra), rate)
        for row in options.rows or ROWS
        for rate in options.rates
        for seed in options.seeds
    ]
    failed = []
    if options.action == "rows":
        print("\n".join(f"{name:28}{what}" for name, (what, *_) in ROWS.items()))
    elif options.action == "table":
        print(table(runs))
    elif options.action == "commands":
        print("\n".join(shlex.join(run.command(mode)) for run in runs for mode in ("train", "evaluate")))
    else:
        failed = [run for run in runs if any(subprocess.run(command).returncode for command in run.missing())]
        print(table(runs))
    for run in failed:
        print(f"error: {run.workdir} did not finish; its output is above.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
