"""Checks that a long run with evaluations and checkpoints leaks no memory, threads, files or compilations.

    python benchmarks/load.py [--steps 10000] [--json load.json]

The run is `python -m basisnet_jax.main` on a network of two blocks, with an evaluation every 250 steps and a checkpoint
every 125. Another process observes the run four times a second through /proc. Ctrl-C ends the run early, and the
script judges the steps done so far.

The steps are divided into tenths, and the first tenth is warm-up. Memory is the anonymous resident memory: pages of
libraries, which the system drops and reads again as it likes, are left out. Its figure for a tenth is the median, which
a short peak in a save does not change. The figure of the rest is the smallest value, which is the value between two
saves. Files are those of the workdir outside its checkpoints, because the best checkpoint is kept beside the newest.
From the second tenth to the last, memory may grow by at most 1%, the other figures not at all; otherwise the script
fails. After the last evaluation the run closes what it opened, so it is no longer observed.
"""

import argparse
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import timing

ROOT = pathlib.Path(__file__).resolve().parent.parent
BATCH, EXAMPLES = 16, 1297
EVALUATION_STEPS = 250  # between two evaluations; a checkpoint comes twice as often
MOST_GROWTH = 0.01  # of memory
Sample = dict[str, float]


def main() -> None:
    """Prints a row for each tenth of the run; fails where something grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    samples, shown = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        for sample in watch(pathlib.Path(scratch), options.steps):
            samples.append(sample)
            if sample["step"] >= shown + options.steps // 100:
                shown = sample["step"]
                print(sample, file=sys.stderr, flush=True)
    if not samples:
        sys.exit("the run ended before its first evaluation")
    rows = rows_of(samples)
    print(f"{samples[-1]['step']:.0f} of {options.steps} steps; {timing.machine()}")
    print("".join(f"{name:>16}" for name in rows[0]))
    for row in rows:
        print("".join(f"{value:16.1f}" for value in row.values()))
    growth = growth_of(rows)
    print("growth after the first tenth:", ", ".join(f"{name} {value:+.2%}" for name, value in growth.items()))
    timing.write_json(options.json, {"machine": timing.machine(), "rows": rows, "growth": growth, "samples": samples})
    sys.exit(grows(growth))


def rows_of(samples: Sequence[Sample]) -> list[Sample]:
    """Returns a row for each tenth of the steps: its first step, the median memory, the smallest value of the rest."""
    end = samples[-1]["step"] + 1
    rows = []
    for tenth in range(10):
        part = [sample for sample in samples if 10 * sample["step"] // end == tenth]
        smallest = {name: min(sample[name] for sample in part) for name in samples[0]}
        rows.append({**smallest, "memory_mb": statistics.median(sample["memory_mb"] for sample in part)})
    return rows


def growth_of(rows: Sequence[Sample]) -> dict[str, float]:
    """Returns each figure's relative growth from the second tenth to the last."""
    return {name: rows[-1][name] / rows[1][name] - 1 for name in rows[0] if name != "step"}


def grows(growth: dict[str, float]) -> bool:
    """Returns whether a figure grows by more than it may."""
    return any(value > (MOST_GROWTH if name == "memory_mb" else 0) for name, value in growth.items())


def watch(scratch: pathlib.Path, steps: int) -> Iterator[Sample]:
    """Runs the training, and yields what is observed of it after its first evaluation."""
    epochs, every = BATCH / EXAMPLES, min(EVALUATION_STEPS, steps // 40)
    settings = {
        "epochs": steps * epochs,
        "eval_every_epochs": every * epochs,
        "log_every_steps": 100,
        "checkpoint.every_epochs": every // 2 * epochs,
        "data.dir": scratch / "data",
    }
    arguments = [sys.executable, "-m", "basisnet_jax.main", f"--config={ROOT / 'tests' / 'configs' / 'tiny.py'}"]
    arguments += [f"--workdir={scratch / 'run'}", *(f"--config.{name}={value}" for name, value in settings.items())]
    log, environment = scratch / "log", {**os.environ, "JAX_LOG_COMPILES": "1"}
    with log.open("w") as output, subprocess.Popen(arguments, stderr=output, env=environment, cwd=ROOT) as run:
        try:
            while run.poll() is None:
                time.sleep(0.25)
                text = log.read_text()
                evaluated = re.findall(r"step ([\d,]+), epoch", text)
                step = int(evaluated[-1].replace(",", "")) if evaluated else 0
                if 0 < step < steps and (seen := look(run.pid, scratch / "run")):
                    yield {"step": step, **seen, "compilations": text.count("Finished XLA compilation")}
        except KeyboardInterrupt:
            run.terminate()
            return
    if run.returncode:
        raise RuntimeError(log.read_text()[-3000:])


def look(pid: int, workdir: pathlib.Path) -> Sample | None:
    """Returns a process's memory, threads, open files and its workdir's files; None where it has just ended."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        memory, threads = (int(re.findall(rf"{name}:\s+(\d+)", status)[0]) for name in ("RssAnon", "Threads"))
        opened = len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, IndexError):
        return None
    files = sum(path.is_file() for place in (workdir, workdir / "events") for path in place.iterdir())
    return {"memory_mb": memory / 1024, "threads": threads, "open_files": opened, "files": files}


if __name__ == "__main__":
    main()
