"""Takes one of four training processes away at random moments: the others must end soon, and all are started again.

    python benchmarks/lost_process.py [--what kill] [--kills 50] [--seed 0] [--folder lost_process]

The run is `launch/local_multiprocess.sh up`. Up to PAUSE seconds after it has saved, WHAT happens to a random process:
- kill: SIGKILL.
- stop: SIGSTOP, as if it hung.
- slow: it is stopped for nine tenths of each second, for SLOW_SECONDS; the run must go on.
- partition: it is taken off the network. Each process has a network namespace, which needs root.

FOLDER/WHAT.jsonl has a line for each: when the last of the others had ended, and with which sentences. The same command
resumes a campaign. When the kills are done the run goes to its end, and must equal an undisturbed run of four processes
bit for bit.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import re
import shlex
import signal
import subprocess
import sys
import time

import same_run
import survival
from forked_lives import FAST_TO_COMPILE
from namespaces import COORDINATOR, Namespaces

ROOT = survival.ROOT
PROCESSES, PAUSE, SLOW_SECONDS = 4, 5.0, 60.0
# 81 steps and 10 checkpoints an epoch; the network for all images, without preview, is compiled sooner
SETTINGS = "--config.model.routing=static --config.eval_every_epochs=1.5 --config.checkpoint.every_epochs=0.1"
WITHIN_SECONDS = 120.0  # in which the others must end: twice the time without a heartbeat that JAX allows


class Launched:
    """A run under the launcher.

    Args:
      folder: of the campaign; data and compiled programs are shared.
      name: of the run's workdir in it.
      epochs: of the run.
      network: holds the processes; None leaves them on the host's.
    """

    def __init__(self, folder: pathlib.Path, name: str, epochs: float, network: Namespaces | None = None) -> None:
        self.workdir, self.log = folder / name, folder / f"{name}.log"
        self.resumed_from = self.newest_step()
        settings = folder / f"{name}.sh"
        settings.write_text(
            f"NAME={name} WORKDIR={self.workdir} PROCESSES={PROCESSES} DEVICES=1 MAX_RESTARTS=1000000\n"
            f"ARGS=(--config={survival.CONFIG} --config.data.dir={folder}/data --config.epochs={epochs} {SETTINGS})\n"
        )
        environment = {
            **os.environ,
            "LAUNCH_SETTINGS": str(settings),
            "PYTHON": str(_interpreter(folder / f"{name}-python.sh", network)),
            "PORT": "8491",
        }
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

    def wait_until_it_saves(self) -> None:
        """Waits until there is a newer checkpoint than the processes began from."""
        while self.newest_step() <= self.resumed_from:
            if self.process.poll() is not None:
                raise RuntimeError(self.said()[-3000:])
            time.sleep(0.05)

    def newest_step(self) -> int:
        """Returns the step of the newest checkpoint."""
        return max((int(x.name) for x in (self.workdir / "checkpoints").glob("*") if x.name.isdigit()), default=0)


def _interpreter(path: pathlib.Path, network: Namespaces | None) -> pathlib.Path:
    """Writes a script that runs Python with fast compilation, and in the process's namespace; returns its path."""
    python = shlex.quote(sys.executable)
    path.write_text(
        "#!/usr/bin/env bash\n"
        f'export XLA_FLAGS="$XLA_FLAGS {" ".join(FAST_TO_COMPILE)}"\n'
        'for word in "$@"; do if [[ $word == --process_id=* ]]; then number=${word#*=}; fi; done\n'
        + (f'exec {network.enter()} {python} "${{@/localhost:/{COORDINATOR}:}}"' if network else f'exec {python} "$@"')
    )
    path.chmod(0o755)
    return path


def lose_one(run: Launched, rng: random.Random, what: str, network: Namespaces | None) -> dict:
    """Takes a random process away, once the run has saved; returns what the others did."""
    run.wait_until_it_saves()
    time.sleep(rng.uniform(0, PAUSE))
    pids, before = run.pids(), len(run.said())
    victim = rng.choice(sorted(pids))
    result: dict = {"what": what, "victim": victim}
    if what == "slow":
        return result | _slowed(run, pids, victim)
    began = time.monotonic()
    if network:
        network.cut(victim)
    else:
        os.kill(pids[victim], signal.SIGKILL if what == "kill" else signal.SIGSTOP)
    left = {number: pid for number, pid in pids.items() if network or number != victim}
    while any(run.pids().get(number) == pid for number, pid in left.items()):
        time.sleep(0.05)
        if time.monotonic() - began > 2 * WITHIN_SECONDS:
            break
    seconds = time.monotonic() - began
    run.resumed_from = run.newest_step()
    if network:
        network.mend(victim)
    elif what == "stop":  # the launcher waits for it
        os.kill(pids[victim], signal.SIGKILL)
    sentences = re.findall(r"^error: (.*)", run.said()[before:], re.MULTILINE)
    return result | {
        "seconds": round(seconds, 2),
        "sentences": sorted(set(sentences)),
        "well": seconds <= WITHIN_SECONDS and bool(sentences),
    }


def _slowed(run: Launched, pids: dict[int, int], victim: int) -> dict:
    """Slows a process down for a while; returns the run's pace before and in that time."""
    first, began = run.newest_step(), time.monotonic()
    time.sleep(SLOW_SECONDS / 2)
    middle, slow = run.newest_step(), time.monotonic()
    while time.monotonic() - slow < SLOW_SECONDS:
        os.kill(pids[victim], signal.SIGSTOP)
        time.sleep(0.9)
        os.kill(pids[victim], signal.SIGCONT)
        time.sleep(0.1)
    seconds = time.monotonic() - slow
    return {
        "seconds": round(seconds, 2),
        "steps_per_second": round((middle - first) / (slow - began), 2),
        "slowed_steps_per_second": round((run.newest_step() - middle) / seconds, 2),
        "well": run.pids() == pids,
    }


def main() -> None:
    """Loses processes until there are as many losses as asked for; fails if one took too long or anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("kill", "stop", "slow", "partition"), default="kill")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--epochs", type=float, default=30.0, help="of the run: it must outlast the kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("lost_process"))
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    losses = folder / f"{options.what}.jsonl"
    with contextlib.ExitStack() as held:
        network = held.enter_context(Namespaces(PROCESSES)) if options.what == "partition" else None
        run = Launched(folder, options.what, options.epochs, network)
        held.callback(run.process.terminate)
        for number in range(len(losses.read_text().splitlines()) if losses.exists() else 0, options.kills):
            result = lose_one(run, random.Random(f"{options.seed} {number}"), options.what, network)
            with losses.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(result, flush=True)
        code = run.process.wait()
    whole = Launched(folder, "whole", options.epochs)
    code = code or whole.process.wait()
    different = same_run.differences(run.workdir, whole.workdir)
    results = [json.loads(line) for line in losses.read_text().splitlines()]
    seconds = sorted(result["seconds"] for result in results)
    print(f"{len(results)} times {options.what}: {seconds[0]:.1f} to {seconds[-1]:.1f} s; exit code {code}; ", end="")
    print(f"different: {', '.join(different) or 'nothing'}")
    sys.exit(bool(code or different or not all(result["well"] for result in results)))


if __name__ == "__main__":
    main()
