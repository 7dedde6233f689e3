"""Checks that a run that is killed 20 times ends bit for bit like a run that was never killed.

    python benchmarks/survival.py [--kills 20] [--seed 0] [--json survival.json]

The run is `python -m basisnet_jax.main` on a network of two blocks, and writes each phase that begins to a diary file.
Each SIGKILL is aimed at a phase by the diary, and hits a random moment of that phase. Then the same command runs again.
The diary also holds a digest of every batch, which shows an example in a wrong place. A run that is to be killed while
the step compiles starts without compiled programs on disk; the next start finds those that the killed run left.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import random
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from benchmarks.same_run import differences, digest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = ROOT / "tests" / "configs" / "tiny.py"
PHASES = ("start-up", "compile", "step", "evaluation", "save")
SETTINGS = ("--config.epochs=2.5", "--config.log_every_steps=1")  # 203 steps, 25 evaluations, 50 checkpoints


@dataclasses.dataclass(frozen=True)
class Kill:
    """Where a life ends: so many seconds into the n-th time that it does something."""

    phase: str
    times: int = 1
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Death:
    """What a kill met: of the life's last diary entry, and what it cost."""

    aimed_at: str
    met: str
    writing: bool  # it left half a checkpoint
    began_at: int | None  # step that this life went on from, if it came so far
    died_at: int | None  # step that it was at
    lost: int  # steps that were to be done again


def main() -> None:
    """Prints a row a kill, then what differs between the two runs; fails if anything does."""
    if sys.argv[1:2] == ["--diary"]:
        return live(pathlib.Path(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        whole, killed, cache = (pathlib.Path(scratch, name) for name in ("whole", "killed", "cache"))
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        arguments = [f"--config={CONFIG}", f"--config.data.dir={scratch}/data", *SETTINGS]
        start = functools.partial(start_process, environment=environment)
        lives = functools.partial(survive, arguments, start=start, cache=cache)
        lives(whole, [])
        phases = (PHASES * options.kills)[: options.kills - 1]
        kills = draw(random.Random(options.seed), phases, durations(whole))
        deaths = lives(killed, kills)
        found = differences(killed, whole)
        found += [f"batch {step}" for step, _ in sorted(set(batches_of(killed)) ^ set(batches_of(whole)))]
    print(f"{'aimed at':12}{'met':12}{'half a checkpoint':>18}{'from step':>11}{'killed at':>11}{'steps lost':>11}")
    for death in deaths:
        aimed_at, met, writing, *steps = dataclasses.astuple(death)
        print(
            f"{aimed_at:12}{met:12}{'yes' if writing else '':>18}"
            + "".join(f"{'' if step is None else step:>11}" for step in steps)
        )
    print(
        f"{len(deaths)} kills, {sum(death.writing for death in deaths)} of them while a checkpoint was written; ",
        end="",
    )
    print(f"{sum(death.lost for death in deaths)} steps done again; different: {', '.join(found) or 'nothing'}")
    if options.json:
        content = {"kills": list(map(dataclasses.asdict, deaths)), "different": found}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    sys.exit(bool(found))


def draw(rng: random.Random, phases: Sequence[str], seconds: dict[str, float]) -> list[Kill]:
    """Returns kills in these phases, each at a random moment, and one while results are written."""
    kills = [
        Kill(phase, rng.randint(1, 9 if phase == "step" else 2), rng.uniform(0, seconds[phase])) for phase in phases
    ]
    once = ("start-up", "compile")
    kills = [dataclasses.replace(kill, times=1) if kill.phase in once else kill for kill in kills]
    return [*kills, Kill("finish", 1, rng.uniform(0, seconds["finish"]))]


class Life(Protocol):
    """One start of the command: a process, or several that train together."""

    def poll(self) -> int | None:
        """Returns the exit code; None while the life lasts."""

    def kill(self) -> None:
        """Sends SIGKILL."""

    def wait(self) -> int:
        """Waits for the end, and returns the exit code: -9 after a kill."""


def start_process(diary: pathlib.Path, arguments: Sequence[str], environment: dict[str, str] | None = None) -> Life:
    """Starts the command in a new interpreter, which notes its phases in the diary; DIARY.log has what it prints."""
    command = [sys.executable, __file__, "--diary", str(diary), *arguments]
    with diary.with_suffix(".log").open("w") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def survive(
    arguments: Sequence[str],
    workdir: pathlib.Path,
    kills: Sequence[Kill],
    start: Callable[[pathlib.Path, Sequence[str]], Life] = start_process,
    cache: pathlib.Path | None = None,
) -> list[Death]:
    """Runs a command to its end, killed at each of `kills`; each life's diary is workdir.diary/NUMBER."""
    diaries = workdir.with_suffix(".diary")
    diaries.mkdir(parents=True)
    deaths: list[Death] = []
    at_work: int | None = None  # the newest death of a life that had got as far as a step
    for number, kill in enumerate([*kills, None]):
        if kill and kill.phase == "compile" and cache:
            shutil.rmtree(cache, ignore_errors=True)
        diary = diaries / f"{number:02}"
        began = time.time()
        life = start(diary, [*arguments, f"--workdir={workdir}"])
        while kill and life.poll() is None and sum(e[1] == kill.phase for e in entries(diary)) < kill.times:
            time.sleep(0.002)
        if kill and life.poll() is None:
            time.sleep(kill.seconds)
            life.kill()
        code = life.wait()
        steps = [int(detail.split()[0]) for _, phase, detail in entries(diary) if phase in ("from", "batch")]
        if steps and at_work is not None:
            deaths[at_work] = dataclasses.replace(
                deaths[at_work], lost=max(0, (deaths[at_work].died_at or 0) - steps[0])
            )
        if code == -signal.SIGKILL and kill:
            at_work = len(deaths) if steps else at_work
            met = [phase for _, phase, _ in entries(diary) if phase in (*PHASES, "finish")][-1:] or ["start-up"]
            half = [path for path in (workdir / "checkpoints").glob("*tmp*") if path.stat().st_ctime > began]
            deaths.append(Death(kill.phase, met[0], bool(half), *(steps[0], steps[-1]) if steps else (None, None), 0))
        elif code:
            raise RuntimeError(f"exit code {code}:\n{diary.with_suffix('.log').read_text()[-3000:]}")
    return deaths


def entries(diary: pathlib.Path) -> list[tuple[float, str, str]]:
    """Returns (time, what began, more on it) of a diary; a last line that is not whole is left out."""
    lines = diary.read_text().split("\n")[:-1] if diary.exists() else []
    return [(float(when), phase, detail) for when, phase, detail in (line.split(" ", 2) for line in lines)]


def durations(workdir: pathlib.Path) -> dict[str, float]:
    """Returns median seconds of each phase of a run's first life."""
    noted = [x for x in entries(workdir.with_suffix(".diary") / "00") if x[1] not in ("batch", "from")]
    pairs = list(itertools.pairwise([*noted, (noted[-1][0] + 1.0, "end", "")]))
    return {phase: statistics.median(b[0] - a[0] for a, b in pairs if a[1] == phase) for phase in (*PHASES, "finish")}


def batches_of(workdir: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Returns (step, digest) of every batch that any life of a run took."""
    for diary in workdir.with_suffix(".diary").glob("[0-9][0-9]"):
        for _, phase, detail in entries(diary):
            if phase == "batch":
                step, digest = detail.split()
                yield int(step), digest


def live(diary: pathlib.Path, arguments: Sequence[str]) -> None:
    """Runs `python -m basisnet_jax.main` with these arguments, and notes its phases."""
    note_phases(diary)
    sys.argv = ["main.py", *arguments]
    runpy.run_module("basisnet_jax.main", run_name="__main__", alter_sys=True)


def note_phases(diary: pathlib.Path) -> None:
    """Has training in this process write each phase that begins, and each batch's digest, to a file."""
    file = os.open(diary, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(phase: str, detail: object = "") -> None:
        os.write(file, f"{time.monotonic():.4f} {phase} {detail}\n".encode())

    def noting(phase: str, function: Any, after: str) -> Any:
        @functools.wraps(function)
        def noted(*given: Any, **named: Any) -> Any:
            note(phase)
            returned = function(*given, **named)
            note(after)
            return returned

        return noted

    note("start-up")
    from basisnet_jax.experiment import run
    from basisnet_jax.loop import train, training_loop
    from basisnet_jax.workdir import checkpoint

    batches = run.Experiment.train_batches

    def noted_batches(self: run.Experiment, start_step: int) -> Iterator[Any]:
        note("from", start_step)
        for step, batch in enumerate(batches(self, start_step), start=start_step):
            note("batch", f"{step} {digest(batch)}")
            note("compile" if step == start_step else "step")
            yield batch

    run.Experiment.train_batches = noted_batches  # type: ignore[method-assign]
    checkpoint.Checkpoints.save = noting("save", checkpoint.Checkpoints.save, "step")  # type: ignore[method-assign]
    training_loop.evaluate = noting("evaluation", training_loop.evaluate, "step")
    train._results = noting("finish", train._results, "finish")


if __name__ == "__main__":
    main()
