"""Kills one of four training processes at random moments: the others must end soon, and the launcher starts all again.

    python benchmarks/lost_process.py [--kills 50] [--seed 0] [--folder lost_process] [--stop]

The run is `launch/local_multiprocess.sh up`. Once it trains, a random one of its processes is killed after up to
PAUSE seconds; with --stop the process is stopped (SIGSTOP) instead, as one that hangs. FOLDER/losses.jsonl has a line
for each: when the last of the others had ended, and with which sentence. The same command resumes a campaign. When the
kills are done the run goes to its end, and must equal an undisturbed run of four processes bit for bit.
"""

import argparse
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import same_run
import survival

ROOT = survival.ROOT
PROCESSES, PAUSE = 4, 5.0
# 2,432 steps, 20 evaluations, 150 checkpoints
SETTINGS = "--config.epochs=30.0 --config.eval_every_epochs=1.5 --config.checkpoint.every_epochs=0.2"
WITHIN_SECONDS = {"SIGKILL": 60.0, "SIGSTOP": 150.0}  # in which the others must end


class Launched:
    """A run under the launcher.

    Args:
      folder: of the campaign; data and compiled programs are shared.
      name: of the run's workdir in it.
    """

    def __init__(self, folder: pathlib.Path, name: str) -> None:
        self.workdir, self.log = folder / name, folder / f"{name}.log"
        settings = folder / f"{name}.sh"
        settings.write_text(
            f"NAME={name} WORKDIR={self.workdir} PROCESSES={PROCESSES} DEVICES=1 MAX_RESTARTS=1000000\n"
            f"ARGS=(--config={survival.CONFIG} --config.data.dir={folder}/data {SETTINGS})\n"
        )
        environment = {**os.environ, "LAUNCH_SETTINGS": str(settings), "PYTHON": sys.executable, "PORT": "8491"}
        environment["XDG_CACHE_HOME"] = str(folder / "cache")
        with self.log.open("a") as log:
            command = ["bash", ROOT / "launch" / "local_multiprocess.sh", "up"]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT)

    def pids(self) -> dict[int, int]:
        """Returns {process_id: pid} of the run's processes that live; a process's own forks have later pids."""
        found: dict[int, int] = {}
        for path in sorted(pathlib.Path("/proc").glob("[0-9]*/cmdline"), key=lambda path: int(path.parent.name)):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if f"--workdir={self.workdir}" in words:
                numbers = [x.removeprefix("--process_id=") for x in words if x.startswith("--process_id=")]
                for number in numbers:
                    found.setdefault(int(number), int(path.parent.name))
        return found

    def said(self) -> str:
        """Returns what the log has so far."""
        return self.log.read_text()

    def wait_until_it_trains(self, before: int) -> None:
        """Waits until the log, from `before` on, tells of a step."""
        while not re.search(r"epoch \d+/\d+: ", self.said()[before:]):
            if self.process.poll() is not None:
                raise RuntimeError(self.said()[-3000:])
            time.sleep(0.2)


def lose_one(run: Launched, rng: random.Random, what: str) -> dict:
    """Kills or stops a random process of a run that trains; returns what the others did."""
    before = len(run.said())
    run.wait_until_it_trains(before if run.pids() else 0)
    time.sleep(rng.uniform(0, PAUSE))
    pids, before = run.pids(), len(run.said())
    victim = rng.choice(sorted(pids))
    os.kill(pids[victim], getattr(signal, what))
    began = time.monotonic()
    others = {number: pid for number, pid in pids.items() if number != victim}
    while any(run.pids().get(number) == pid for number, pid in others.items()):
        time.sleep(0.05)
        if time.monotonic() - began > 2 * WITHIN_SECONDS[what]:
            break
    seconds = time.monotonic() - began
    if what == "SIGSTOP":  # the launcher waits for it
        os.kill(pids[victim], signal.SIGKILL)
    sentences = re.findall(r"error: (.{0,160})|(The following tasks are unhealthy.{0,120})", run.said()[before:])
    return {
        "signal": what,
        "victim": victim,
        "seconds": round(seconds, 2),
        "sentences": sorted({"".join(x)[:160] for x in sentences}),
        "in_time": seconds <= WITHIN_SECONDS[what],
    }


def main() -> None:
    """Loses processes until there are as many losses as asked for; fails if one took too long or anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("lost_process"))
    parser.add_argument("--stop", action="store_true", help="stop the process instead of killing it")
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    losses, what = folder / "losses.jsonl", "SIGSTOP" if options.stop else "SIGKILL"
    done = len(losses.read_text().splitlines()) if losses.exists() else 0
    run = Launched(folder, "killed")
    for number in range(done, options.kills):
        result = lose_one(run, random.Random(f"{options.seed} {number}"), what)
        with losses.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(result, flush=True)
    code = run.process.wait()
    whole = Launched(folder, "whole")
    code = code or whole.process.wait()
    different = same_run.differences(run.workdir, whole.workdir)
    results = [json.loads(line) for line in losses.read_text().splitlines()]
    seconds = sorted(result["seconds"] for result in results)
    print(
        f"{len(results)} losses; the others ended after {seconds[0]:.1f} to {seconds[-1]:.1f} s; exit code {code}; ",
        end="",
    )
    print(f"different: {', '.join(different) or 'nothing'}")
    sys.exit(bool(code or different or not all(result["in_time"] for result in results)))


if __name__ == "__main__":
    main()
