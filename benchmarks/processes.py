"""Compares a run of four processes with a run of one: how much losses differ, and how soon a lost process is noticed.

    python benchmarks/processes.py [--json processes.json]

Everything is `python -m basisnet_jax.main` on a network of two blocks, 16 steps, on forced CPU devices of this machine.
The last column evaluates the four processes' checkpoint in one process on one device, so with the same parameters.
"""

import argparse
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import timing

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYOUTS = ((4, 1, 1), (4, 2, 2))  # processes, devices of each, fsdp

COLLECTIVES = """
import sys
import numpy as np
from jax.experimental import multihost_utils
from basisnet_jax.host import distributed
distributed.initialize(f"localhost:{sys.argv[1]}", 4, int(sys.argv[2]), 200)
with distributed.exit_when_a_peer_dies():
    multihost_utils.process_allgather(np.zeros(1))
    print("ready", flush=True)
    while True:
        multihost_utils.process_allgather(np.zeros(1))
"""


class Runs:
    """Starts runs that share their data and their compiled programs."""

    def __init__(self, scratch: pathlib.Path) -> None:
        self.scratch = scratch

    def start(self, workdir: pathlib.Path, processes: int, devices: int, *settings: str) -> list[subprocess.Popen]:
        """Starts the processes of one run; process i writes to workdir.i."""
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        environment["JAX_COMPILATION_CACHE_DIR"] = str(self.scratch / "cache")
        arguments = [sys.executable, "-m", "basisnet_jax.main", f"--config={ROOT / 'tests' / 'configs' / 'tiny.py'}"]
        arguments += [
            f"--workdir={workdir}",
            f"--config.data.dir={self.scratch / 'data'}",
            "--config.log_every_steps=1",
        ]
        started = []
        for number in range(processes):
            shared = (f"--coordinator=localhost:{port}", f"--num_processes={processes}", f"--process_id={number}")
            with workdir.with_suffix(f".{number}").open("w") as log:
                command = [*arguments, *settings, *(shared if processes > 1 else ())]
                started.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log))
        return started

    def finish(self, name: str, processes: int, devices: int, *settings: str) -> pathlib.Path:
        """Runs one run to its end, and returns its workdir."""
        workdir = self.scratch / name
        for number, process in enumerate(self.start(workdir, processes, devices, *settings)):
            if process.wait():
                raise RuntimeError(workdir.with_suffix(f".{number}").read_text()[-3000:])
        return workdir


def main() -> None:
    """Prints a row a layout, and what the others said when a process was killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = Runs(pathlib.Path(scratch))
        one = runs.finish("one", 1, 1)
        rows = [compared(runs, one, *layout) for layout in LAYOUTS]
        lost = lose_one()
    names = (
        "train, of 1 device",
        "train, of as many",
        "eval, of 1 device",
        "eval, of as many",
        "eval, same parameters",
    )
    print("largest relative difference of a loss")
    print(f"{'processes x devices':22}" + "".join(f"{name:>23}" for name in names))
    for (processes, devices, fsdp), row in zip(LAYOUTS, rows, strict=True):
        print(f"{f'{processes} x {devices}, fsdp {fsdp}':22}" + "".join(f"{value:23.1e}" for value in row))
    print("\none of four killed with SIGKILL; the others:")
    for seconds, code, sentence in lost:
        print(f"{seconds:6.2f} s, exit code {code}: {sentence}")
    timing.write_json(options.json, {"layouts": LAYOUTS, "names": names, "rows": rows, "lost": lost})


def compared(runs: Runs, one: pathlib.Path, processes: int, devices: int, fsdp: int) -> list[float]:
    """Returns the relative differences of a layout, as named above."""
    settings = (f"--config.mesh.fsdp={fsdp}",)
    many = runs.finish(f"many{processes}{devices}{fsdp}", processes, devices, *settings)
    alone = runs.finish(f"alone{processes}{devices}{fsdp}", 1, processes * devices, *settings)
    found = [difference(many, other, "train/loss") for other in (one, alone)]
    found += [difference(many, other, "eval/loss") for other in (one, alone)]
    own = json.loads((many / "results.json").read_text())["eval"]["loss"]
    copy = pathlib.Path(shutil.copytree(many, many.with_name(f"{many.name}-again")))
    again = json.loads((runs.finish(copy.name, 1, 1) / "results.json").read_text())["eval"]["loss"]
    return [*found, abs(again / own - 1)]


def difference(ours: pathlib.Path, theirs: pathlib.Path, name: str) -> float:
    """Returns largest relative difference of two runs' curves."""
    from basisnet_jax.workdir.events import read_events

    curves = [read_events(run / "events")[name] for run in (ours, theirs)]
    if curves[0].keys() != curves[1].keys():
        raise RuntimeError(f"{name} is at steps {sorted(curves[0])} and {sorted(curves[1])}")
    return max(abs(curves[0][step] / curves[1][step] - 1) for step in curves[0])


def lose_one() -> list[tuple[float, int, str]]:
    """Kills one of four that do nothing but collectives: (seconds until it ended, exit code, words) of the others."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([sys.executable, "-c", COLLECTIVES, str(port), str(n)], **pipes) for n in range(4)]
    for process in started:
        while "ready" not in process.stdout.readline():
            if process.poll() is not None:
                raise RuntimeError(process.stderr.read()[-3000:])
    *others, last = started
    last.kill()
    killed, ended = time.monotonic(), {}
    while len(ended) < 3:
        time.sleep(0.01)
        ended.update({n: time.monotonic() for n, x in enumerate(others) if n not in ended and x.poll() is not None})
    last.wait()
    return [(ended[n] - killed, x.returncode, said(x.stderr.read())) for n, x in enumerate(others)]


def said(log: str) -> str:
    """Returns the sentence that a process ended with: ours, or JAX's."""
    lines = [x for x in log.splitlines() if x.startswith("error: ") or "another task died" in x]
    return lines[-1][:160] if lines else "nothing"


if __name__ == "__main__":
    main()
