"""Trains and evaluates the runs of a study, on one machine or many, and prints what came of them.

    python benchmarks/study.py fashion_mnist list                        # the rows and their multiply-adds
    python benchmarks/study.py fashion_mnist run static preview_n4       # what is missing, all seeds
    python benchmarks/study.py glyphs run --seeds 0 --rates 8e-3 32e-3   # learning rates, on held-out images
    python benchmarks/study.py glyphs run --part=2/4                     # every fourth run, from the second on
    python benchmarks/study.py glyphs commands static_0.5 --seeds 0      # prints the commands, and runs nothing
    python benchmarks/study.py glyphs slurm                              # prints an array job for sbatch
    python benchmarks/study.py glyphs table                              # of some ROWs, too
    python benchmarks/study.py glyphs plot                               # PNGs beside the results; of some ROWs, too

A study is a file of benchmarks/studies/, or one of your own with a `STUDY`. A finished run leaves one small JSON file
in the folder beside it, benchmarks/studies/glyphs/ROW-SEED.json: commit it. A run with such a file is done; its
workdir, runs/studies/glyphs/ROW-SEED, may be deleted. A run that was stopped goes on from its checkpoint. Each run is
locked while a process works at it, so any number of processes on machines that share the folders divide the work;
machines that share nothing take a --part each. Flags that start with --config. reach every run; only settings that a
resumed run may change are allowed, such as --config.data.dir=... and --config.data.threads=2.

Why not Optuna, whose grid sampler could hold rows, seeds and rates: its trials and its storage would be a second record
beside the JSON files; it may give two workers the same trial, and a killed worker's trial stays "running". A lock and a
test for a file are less code than its adapter.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import filelock

from basisnet_jax.errors import UserError
from basisnet_jax.host import files
from basisnet_jax.host.command_line import exit_quietly_on_broken_pipe
from benchmarks import study_results
from benchmarks.studies import Study, load, path_of

ROOT = pathlib.Path(__file__).parents[1]
MAIN = [sys.executable, "-m", "basisnet_jax.main"]


@dataclasses.dataclass(frozen=True)
class Run:
    """A row of a study at one seed, perhaps at a learning rate of a sweep.

    Attributes:
      study: the study.
      row: the row's name.
      seed: the seed.
      rate: the learning rate of a sweep, as it was typed; '' for a run that is reported.
      out: the folder of all workdirs.
      results: the folder of all results.
      flags: --config. flags of every run.
    """

    study: Study
    row: str
    seed: int
    rate: str
    out: pathlib.Path
    results: pathlib.Path
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its files: ROW-SEED, or ROW-rateRATE-SEED."""
        return f"{self.row}{f'-rate{self.rate}' if self.rate else ''}-{self.seed}"

    @property
    def workdir(self) -> pathlib.Path:
        """Its folder."""
        return self.out / self.name

    @property
    def result(self) -> pathlib.Path:
        """The file that says that the run is done."""
        return self.results / f"{self.name}.json"

    @property
    def overrides(self) -> Mapping[str, Any]:
        """The settings that differ from the row's config, as JSON values; the seed is not among them."""
        tried = {**self.study.sweep, "optimizer.learning_rate": float(self.rate)} if self.rate else {}
        overrides = {**self.study.common, **self.study.rows[self.row][2], **tried}
        return json.loads(json.dumps(overrides))  # as the result's file has it: lists for tuples

    def train(self) -> list[str]:
        """Returns the command that trains the run."""
        config = f"--config=configs/{self.study.rows[self.row][1]}.py"
        fields = {"seed": self.seed, **self.overrides}
        values = {x: tuple(y) if isinstance(y, list) else y for x, y in fields.items()}
        flags = [f"--config.{x}={y}".format(out=self.out, seed=self.seed) for x, y in values.items()]
        return [*MAIN, "--mode=train", config, *flags, *self.flags, f"--workdir={self.workdir}"]

    def evaluations(self) -> Iterator[tuple[str, list[str]]]:
        """Yields each reported split with the command that evaluates on it, the main split last; none for a rate.

        The last checkpoint is evaluated: the best one would have been chosen on the images that training looked at.
        """
        for split in () if self.rate else reversed(self.study.reported):
            flags = [f"--config.data.eval_split={split}", "--config.eval.checkpoint=newest", *self.flags]
            yield split, [*MAIN, "--mode=evaluate", f"--workdir={self.workdir}", *flags]

    def is_done(self) -> bool:
        """Returns whether the run has a result.

        Raises:
          UserError: the result is of other settings.
        """
        if not self.result.exists():
            return False
        was, now = json.loads(self.result.read_text())["overrides"], self.overrides
        if was != now:
            changed = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
            raise UserError(
                f"{self.result} is of a run with another {', '.join(changed)} than the study has; delete the file, or "
                "name another folder with --results."
            )
        return True

    def complete(self) -> None:
        """Trains and evaluates, and writes the result.

        Raises:
          subprocess.CalledProcessError: a command failed.
        """
        if not (self.workdir / "results.json").exists():
            execute(self.train())
        facts = study_results.training_facts(self.workdir)
        reported = {}
        for split, command in self.evaluations():
            execute(command)
            group_of = self.study.group_of and self.study.group_of()
            reported[split] = study_results.evaluation_facts(self.workdir / "evaluation", group_of)
        what, config, _ = self.study.rows[self.row]
        identity = {"row": self.row, "what": what, "seed": self.seed, "rate": self.rate, "config": config}
        result = {**identity, "overrides": self.overrides, **facts, "reported": reported}
        self.results.mkdir(parents=True, exist_ok=True)
        files.write(self.result, study_results.as_text(result))


def execute(command: Sequence[str]) -> None:
    """Runs a command to its end. A signal to this program is passed on, so that a run can save before it ends.

    Raises:
      KeyboardInterrupt: a signal came.
      subprocess.CalledProcessError: the command failed.
    """
    # Ctrl-C in a terminal reaches all processes of a session: the command gets one of its own, and so one signal.
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    if code:
        raise subprocess.CalledProcessError(code, command)


def work(runs: Sequence[Run]) -> list[str]:
    """Completes the runs that are neither done nor locked by another process; returns a sentence for each failure."""
    failed = []
    for run in runs:
        run.out.mkdir(parents=True, exist_ok=True)
        try:
            # The system releases the lock of a process that ends, however it ends.
            with contextlib.suppress(filelock.Timeout), filelock.FileLock(f"{run.workdir}.lock", blocking=False):
                if not run.is_done():
                    run.complete()
        except (subprocess.CalledProcessError, OSError) as error:
            failed.append(f"{run.name} did not finish ({error}); its output is above.")
    return failed


def listed(study: Study, names: Sequence[str]) -> str:
    """Returns the rows with their multiply-adds, which are blank where the data set is not known here."""
    from basisnet_jax.host.command_line import align

    cells = [("row", "what", "multiply-adds", "of which preview", "parameters")]
    for name in names:
        try:
            cost = cost_of(study, name)
            counts = [f"{x:,}" for x in (cost.total, cost.madds()["preview"], cost.parameters)]
        except UserError:
            counts = [""] * 3
        cells.append((name, study.rows[name][0], *counts))
    return "\n".join(align(cells, left=(0, 1)))


def cost_of(study: Study, row: str) -> Any:
    """Counts a row's cost, without its data."""
    from basisnet_jax.data.datasets import classes_and_channels
    from basisnet_jax.experiment.model import make_model, model_cost

    settings = settings_of(Run(study, row, 0, "", ROOT, ROOT))
    data = settings.data
    classes, channels = classes_and_channels(data.name, data.dir, data.train_split, data.eval_split, data.eval_share)
    return model_cost(make_model(settings.model, len(classes)), settings.eval_resolution, channels)


def without_exits(study: Study, rows: Iterable[str]) -> dict[str, int]:
    """Counts the multiply-adds of rows without early exits.

    Rows that the study does not have, and rows whose data set is not known here, are left out.
    """
    counted = {}
    for row in study.rows.keys() & {*rows}:
        with contextlib.suppress(UserError):
            counted[row] = cost_of(study, row).without_exits().total
    return counted


def settings_of(run: Run) -> Any:
    """Returns the settings of a run, checked."""
    from basisnet_jax.config import validate
    from basisnet_jax.modes import config_files

    config = config_files.load(str(ROOT / "configs" / f"{run.study.rows[run.row][1]}.py"))
    config.update_from_flattened_dict({"seed": run.seed, **run.overrides})
    return validate(config)


def array_job(name: str, runs: Sequence[Run], arguments: Sequence[str]) -> str:
    """Returns a SLURM array job with a task for each run that is not done."""
    missing = ",".join(str(number) for number, run in enumerate(runs, 1) if not run.is_done())
    command = shlex.join([sys.executable, "benchmarks/study.py", name, "run", *arguments])
    return f"""#!/usr/bin/env bash
#SBATCH --job-name=study
#SBATCH --array={missing}
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --output=study-%A_%a.log
cd {shlex.quote(str(ROOT))} && exec {command} --part="$SLURM_ARRAY_TASK_ID/{len(runs)}"
"""


def part_of(text: str) -> tuple[int, int]:
    """Reads '2/4' as (2, 4)."""
    part, parts = map(int, text.split("/"))
    if not 1 <= part <= parts:
        raise ValueError(text)
    return part, parts


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="fashion_mnist, glyphs, ..., or a file")
    parser.add_argument("action", choices=["list", "run", "commands", "slurm", "table", "plot"])
    parser.add_argument("rows", nargs="*", metavar="ROW", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: the study's")
    parser.add_argument("--rates", nargs="+", default=[""], help="learning rates to try, on held-out images")
    parser.add_argument("--part", type=part_of, default=(1, 1), help="2/4: every fourth run, from the second on")
    parser.add_argument("--out", type=pathlib.Path, help="folder of the workdirs; default: runs/studies/STUDY")
    parser.add_argument("--results", type=pathlib.Path, help="folder of the results; default: beside the study's file")
    return parser


def main() -> int:
    """Runs the command line; returns 1 if a run failed."""
    options, flags = parser().parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        return act(options, flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on.", file=sys.stderr)
        return 130


def act(options: argparse.Namespace, flags: Sequence[str]) -> int:
    """Does what the command line asks; returns 1 if a run failed."""
    path = path_of(options.study)
    study = load(path)
    for name in options.rows:
        if name not in study.rows:
            raise UserError(f"there is no row {name!r}; the rows are {', '.join(study.rows)}.")
    if flags:
        from basisnet_jax.config import MAY_CHANGE_ON_RESUME  # this import takes seconds
    for flag in flags:
        if flag.split("=")[0].removeprefix("--config.") not in MAY_CHANGE_ON_RESUME:
            raise UserError(f"{flag!r} is no setting that a resumed run may change; change the study's file instead.")
    names = options.rows or list(study.rows)
    out = options.out or pathlib.Path("runs/studies", path.stem)
    results = options.results or path.with_suffix("")
    runs = [
        Run(study, row, seed, rate, out.absolute(), results.absolute(), tuple(flags))
        for seed in options.seeds or study.seeds
        for rate in options.rates
        for row in names
    ]
    part, parts = options.part
    failed: list[str] = []
    if options.action == "list":
        print(listed(study, names))
    elif options.action == "commands":
        for run in runs[part - 1 :: parts]:
            print("\n".join(shlex.join(command) for command in (run.train(), *(x for _, x in run.evaluations()))))
    elif options.action == "slurm":
        chosen = [*options.rows, "--seeds", *map(str, options.seeds or study.seeds)]
        chosen += ["--rates", *options.rates] if any(options.rates) else []
        print(array_job(options.study, runs, [*chosen, f"--out={out}", f"--results={results}", *flags]), end="")
    elif options.action == "plot":
        shown = [result for result in study_results.read(results) if result["row"] in names]
        for split in study.reported:
            study_results.plot(study, shown, split, results / f"{split}.png")
            print(results / f"{split}.png")
    else:
        failed = work(runs[part - 1 :: parts]) if options.action == "run" else []
        found = study_results.read(results)
        finished = {result["row"] for result in found if result["row"] in names}
        print(study_results.tables(study, found, names, without_exits(study, finished)))
    for sentence in failed:
        print(f"error: {sentence}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    with exit_quietly_on_broken_pipe():
        sys.exit(main())
