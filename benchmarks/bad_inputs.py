"""Gives a hundred thousand bad inputs to every reader of outside data: always a sentence, in bounded time and memory.

    python benchmarks/bad_inputs.py [--cases 100000] [--folder bad_inputs] [--targets image npy]

A case is a target and a number, from which its input is drawn; `--only npy:17` runs one case again. Cases run in a
child process, so that a crash in C++ names its case and the campaign goes on. The same command resumes a campaign:
FOLDER/TARGET.json says how far it is. A fault is an exception that is not one sentence, a crash, more than SECONDS of
CPU for a case, or more than MOST_MB of memory beyond what the process had before.
"""

import argparse
import collections
import faulthandler
import json
import math
import mmap
import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback

SECONDS = 20  # of CPU, for a case
WALL_SECONDS = 15 * SECONDS  # for one that waits, on a machine that is busy
MOST_MB = 1200  # an image of 2^26 pixels, decoded and copied once, and its reader
CHUNK = 500  # cases of one child
# Targets whose cases take a tenth of a second: they get a tenth of the others' number.
SLOW = ("config_json", "network", "results", "checkpoint", "stranger_checkpoint", "command_line")


def main() -> None:
    """Runs the targets' cases in turns; fails if there is a fault."""
    from bad_input_targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000, help="of all targets together")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("bad_inputs"))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--only", metavar="TARGET:NUMBER", help="run this case again")
    options = parser.parse_args()
    if options.only:
        target, _, number = options.only.partition(":")
        with tempfile.TemporaryDirectory() as scratch:
            print(run_case(target, int(number), pathlib.Path(scratch)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    shares = {target: 0.1 if target in SLOW else 1.0 for target in options.targets}
    counts = {target: math.ceil(options.cases * share / sum(shares.values())) for target, share in shares.items()}
    faults = [fault for target, cases in counts.items() for fault in run_target(target, cases, options.folder)]
    print(f"{sum(counts.values()):,} cases; {len(faults)} faults")
    for fault in faults:
        print(fault)
    sys.exit(bool(faults))


def run_case(target: str, number: int, scratch: pathlib.Path) -> str:
    """Runs one case and returns its outcome; raises where a promise was broken."""
    from bad_input_targets import TARGETS

    return TARGETS[target](random.Random(f"{target} {number}"), scratch)


def run_target(target: str, cases: int, folder: pathlib.Path) -> list[str]:
    """Runs a target's cases up to number `cases`, and returns what was wrong."""
    file = folder / f"{target}.json"
    state = json.loads(file.read_text()) if file.exists() else {"next": 0, "outcomes": {}, "faults": []}
    while state["next"] < cases:
        first = state["next"]
        done, outcomes, faults = run_chunk(target, first, min(cases, first + CHUNK))
        total = collections.Counter(state["outcomes"]) + collections.Counter(outcomes)
        state = {"next": done, "outcomes": dict(total), "faults": state["faults"] + faults}
        file.write_text(json.dumps(state, indent=1) + "\n")
    print(f"{target:16} {state['next']:7,} cases: {state['outcomes']}, {len(state['faults'])} faults", flush=True)
    return [f"{target}:{number} {what}" for number, what in state["faults"]]


def run_chunk(target: str, first: int, stop: int) -> tuple[int, dict[str, int], list]:
    """Runs cases in a fork. Returns (the next case, {outcome: count}, [[case, fault], ...])."""
    shared = mmap.mmap(-1, 8)  # the case that runs
    with tempfile.TemporaryFile("w+") as report:
        pid = os.fork()
        if not pid:
            try:
                _child(target, first, stop, shared, report)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        report.seek(0)
        lines = [json.loads(line) for line in report.read().splitlines()]
    outcomes = collections.Counter(what for _, kind, what in lines if kind == "outcome")
    faults = [[number, what] for number, kind, what in lines if kind == "fault"]
    (running,) = struct.unpack("q", shared[:])
    if code == 0:
        return stop, outcomes, faults
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    slow = code in (-signal.SIGALRM, -signal.SIGPROF)
    what = f"took more than {SECONDS} s" if slow else f"the process died with {name}"
    return running + 1, outcomes, [*faults, [running, what]]


def _child(target: str, first: int, stop: int, shared: mmap.mmap, report) -> None:
    """Runs the cases of a chunk; never returns."""
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    scratch = pathlib.Path(tempfile.mkdtemp())
    for number in range(first, stop):
        shared[:] = struct.pack("q", number)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(WALL_SECONDS)
        try:
            kind, what = "outcome", run_case(target, number, scratch)
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind, what = (
                "fault",
                f"{type(error).__name__}: {error} ({pathlib.Path(where.filename).name}:{where.lineno})",
            )
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        if grown > MOST_MB:
            kind, what = "fault", f"took {grown:,.0f} MB"
        report.write(json.dumps([number, kind, what[:500]]) + "\n")
        report.flush()
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    main()
