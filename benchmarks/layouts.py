"""Trains 200 steps on several devices and processes, with accumulation and fsdp, and compares each with one device.

    python benchmarks/layouts.py [--steps 200] [--optimizer adamw] [--only "4 devices"] [--json layouts.json]

Every layout is a run of the tests' network of two blocks, on forced CPU devices of this machine, compiled without
LLVM's optimizations; its processes are forks of this one. A row has the largest relative difference of a training
loss from that of 1 device, over the first 20 steps and over all; the differences of the last evaluation's loss and
top-1; and how far that loss is from the loss that 1 device finds for the same checkpoint. --only names the layouts to
compare.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import tempfile

import forked_lives
import survival
import timing
from forked_lives import Layout
from load import BATCH, EXAMPLES

LAYOUTS = {
    "1 device": Layout(),
    "2 devices": Layout(devices=2),
    "4 devices": Layout(devices=4),
    "8 devices": Layout(devices=8),
    "4 devices, fsdp 2": Layout(devices=4, fsdp=2),
    "8 devices, fsdp 4": Layout(devices=8, fsdp=4),
    "2 processes": Layout(processes=2),
    "4 processes": Layout(processes=4),
    "4 processes of 2 devices, fsdp 2": Layout(processes=4, devices=2, fsdp=2),
    "1 device, accumulate 2": Layout(accumulate=2),
    "1 device, accumulate 4": Layout(accumulate=4),
    "4 devices, accumulate 4": Layout(devices=4, accumulate=4),
    "2 processes, accumulate 2": Layout(processes=2, accumulate=2),
}
REFERENCE, EARLY = "1 device", 20
RATES = {"adamw": 0.001, "sgd": 0.05}
COLUMNS = (f"loss, {EARLY} steps", "loss, all", "eval loss", "eval top-1", "same checkpoint")


def train(workdir: pathlib.Path, layout: Layout, steps: int, optimizer: str) -> None:
    """Runs a layout to its end in `workdir`. Raises RuntimeError if the run fails."""
    epochs = steps * BATCH / EXAMPLES
    settings = {
        "data.dir": workdir.parent / "data",
        "epochs": epochs,
        "eval_every_epochs": epochs,
        "checkpoint.every_epochs": epochs,
        "log_every_steps": 1,
        "optimizer.name": optimizer,
        "optimizer.learning_rate": RATES[optimizer],
    }
    words = [f"--config={survival.CONFIG}", f"--workdir={workdir}"]
    words += [f"--config.{name}={value}" for name, value in settings.items()]
    diary = workdir.with_suffix(".diary")
    if forked_lives.ForkedLife(layout, diary, words, victims=()).wait():
        raise RuntimeError(pathlib.Path(f"{diary}.log").read_text()[-3000:])


def compare(workdirs: dict[str, pathlib.Path], report: pathlib.Path) -> int:
    """Writes a row for each run: its differences from the first one, as in COLUMNS."""
    forked_lives.use_cpu_devices(1)
    from basisnet_jax.workdir.events import read_events

    rows: dict[str, list[float]] = {}
    for name, workdir in workdirs.items():
        curves, metrics = read_events(workdir / "events"), json.loads((workdir / "results.json").read_text())["eval"]
        losses = [value for _, value in sorted(curves["train/loss"].items())]
        if not rows:
            expected, expected_metrics = losses, metrics
        differences = [abs(x / y - 1) for x, y in zip(losses, expected, strict=True)]
        rows[name] = [
            max(differences[:EARLY]),
            max(differences),
            abs(metrics["loss"] / expected_metrics["loss"] - 1),
            metrics["top1"] - expected_metrics["top1"],
            abs(evaluated_here(workdir) / metrics["loss"] - 1),
        ]
    report.write_text(json.dumps(rows))
    return 0


def evaluated_here(workdir: pathlib.Path) -> float:
    """Returns the loss that one device of this process finds for a run's last checkpoint."""
    import jax

    from basisnet_jax.evaluation.whole_split import evaluate
    from basisnet_jax.experiment.run import make_experiment
    from basisnet_jax.workdir.checkpoint import Checkpoints
    from basisnet_jax.workdir.run_folder import open_run
    from tests.configs import tiny  # noqa: F401  # its network, by name

    folder, config = open_run(str(workdir))
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=1))
    experiment = make_experiment(config, jax.devices()[:1])
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        state, _ = checkpoints.restore(experiment.plan.total_steps, experiment.abstract_state)
    return evaluate(experiment, experiment.eval_step(), state)["loss"]


def main() -> None:
    """Prints a row for each layout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--optimizer", default="adamw", choices=RATES)
    parser.add_argument("--only", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), metavar="LAYOUT")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    forked_lives.import_everything()
    with tempfile.TemporaryDirectory() as scratch:
        workdirs = {}
        for name in dict.fromkeys([REFERENCE, *options.only]):
            print(f"{name} ...", file=sys.stderr, flush=True)
            workdirs[name] = pathlib.Path(scratch, name.replace(" ", "-").replace(",", ""))
            train(workdirs[name], LAYOUTS[name], options.steps, options.optimizer)
        report = pathlib.Path(scratch, "report.json")
        if forked_lives.run_in_fork(compare, workdirs, report):
            sys.exit("the comparison failed")
        rows = json.loads(report.read_text())
    print(f"{options.steps} steps, {options.optimizer}; differences from {REFERENCE}")
    print(f"{'':34}" + "".join(f"{column:>17}" for column in COLUMNS))
    for name, row in rows.items():
        early, all_steps, loss, top1, same = row
        print(f"{name:34}{early:17.1e}{all_steps:17.1e}{loss:17.1e}{top1:17.4f}{same:17.1e}")
    timing.write_json(options.json, {"optimizer": options.optimizer, "steps": options.steps, "rows": rows})


if __name__ == "__main__":
    main()
