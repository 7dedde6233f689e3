"""Checks that ten thousand steps with evaluations and checkpoints leak no memory, files, threads or compilations.

    python benchmarks/load.py [--steps 10000] [--json load.json]

The run is `python -m basisnet_jax.main` on a network of two blocks. Another process observes the run four times a
second through /proc. The first tenth of the steps is warm-up. Afterwards memory may grow by at most 3%, the other
figures not at all; otherwise the script fails.
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import timing

ROOT = pathlib.Path(__file__).resolve().parent.parent
BATCH, EXAMPLES = 16, 1297
MOST_GROWTH = 0.03  # of resident memory


def main() -> None:
    """Prints a row a tenth of the run; fails where something grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        samples = watch(pathlib.Path(scratch), options.steps)
    rows = [row_of([x for x in samples if 10 * x["step"] // options.steps == tenth]) for tenth in range(10)]
    print(
        f"{options.steps} steps; {timing.machine()}; per tenth of the run: the median of memory, the minimum of others"
    )
    print("".join(f"{name:>16}" for name in rows[0]))
    for row in rows:
        print("".join(f"{value:16.0f}" for value in row.values()))
    first, last = rows[1], rows[-1]
    growth = {name: last[name] / first[name] - 1 for name in first if name != "step"}
    print("growth after the first tenth:", ", ".join(f"{name} {value:+.1%}" for name, value in growth.items()))
    timing.write_json(options.json, {"machine": timing.machine(), "rows": rows, "growth": growth, "samples": samples})
    sys.exit(any(value > (MOST_GROWTH if name == "memory_mb" else 0) for name, value in growth.items()))


def row_of(samples: list[dict[str, float]]) -> dict[str, float]:
    """Returns a row for a part of the run: first step, median memory, the fewest of the rest between two saves."""
    fewest = {name: min(x[name] for x in samples) for name in samples[0]}
    return {**fewest, "memory_mb": statistics.median(x["memory_mb"] for x in samples)}


def watch(scratch: pathlib.Path, steps: int) -> list[dict[str, float]]:
    """Runs it, and returns what was seen of it, from the first step on."""
    epochs = BATCH / EXAMPLES
    settings = {
        "epochs": steps * epochs,
        "eval_every_epochs": 250 * epochs,
        "log_every_steps": 100,
        "checkpoint.every_epochs": 125 * epochs,
        "data.dir": scratch / "data",
    }
    arguments = [sys.executable, "-m", "basisnet_jax.main", f"--config={ROOT / 'tests' / 'configs' / 'tiny.py'}"]
    arguments += [f"--workdir={scratch / 'run'}", *(f"--config.{name}={value}" for name, value in settings.items())]
    log, samples = scratch / "log", []
    environment = {**os.environ, "JAX_LOG_COMPILES": "1"}
    with log.open("w") as output, subprocess.Popen(arguments, stderr=output, env=environment, cwd=ROOT) as run:
        while run.poll() is None:
            time.sleep(0.25)
            text = log.read_text()
            told = re.findall(r"\] \[(\d+)\] ", text)
            if told and (seen := look(run.pid, scratch / "run")):
                compiled = text.count("Finished XLA compilation")
                samples.append({"step": int(told[-1]), **seen, "compilations": compiled})
    if run.returncode:
        raise RuntimeError(log.read_text()[-3000:])
    return samples


def look(pid: int, workdir: pathlib.Path) -> dict[str, float] | None:
    """Returns a process's memory, threads, open files and workdir's files; None where it has just ended."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        memory, threads = (int(re.findall(rf"{name}:\s+(\d+)", status)[0]) for name in ("VmRSS", "Threads"))
        opened = len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, IndexError):
        return None
    files = sum(len(names) for _, _, names in os.walk(workdir))
    return {"memory_mb": memory / 1024, "threads": threads, "open_files": opened, "files": files}


if __name__ == "__main__":
    main()
