"""Cuts the power of training at random moments: what was not brought to disk is gone, and the run must still resume.

    python benchmarks/power_loss.py [--cases 5] [--seed 0] [--folder power_loss]

SIGKILL proves nothing about the disk: the kernel still writes what a killed process gave it. Here a library that is
loaded before all others (power_loss.c, compiled with `cc`) notes each fsync. After each kill every file of the run
is cut to the size that it had at its last fsync, to nothing if there was none; names and folders stay as they were, as
on a journaling file system. The same command then resumes the run, whose end must equal that of an undisturbed run bit
for bit. A case is a seed, as in kill_campaign.py, with eight cuts.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import forked_lives
import kill_campaign
from forked_lives import ForkedLife, Layout

SOURCE = pathlib.Path(__file__).with_suffix(".c")


class PoweredLife(ForkedLife):
    """A life whose kill also loses what is not on disk."""

    def __init__(
        self, layout: Layout, diary: pathlib.Path, arguments: Sequence[str], victims: Sequence[int] = (0,)
    ) -> None:
        self.log = pathlib.Path(f"{diary}.fsync")
        (workdir,) = (x.removeprefix("--workdir=") for x in arguments if x.startswith("--workdir="))
        self.workdir = pathlib.Path(workdir)
        self.there = {path.stat().st_ino: path.stat().st_size for path in files_of(self.workdir)}
        os.environ["POWER_LOSS_LOG"] = str(self.log)
        super().__init__(layout, diary, arguments, victims)

    def wait(self) -> int:
        """Waits for the end; after a kill, cuts the files."""
        code = super().wait()
        if code < 0:
            lose_unsynced(self.workdir, self.there, self.log)
        return code


class Campaign(kill_campaign.Campaign):
    """Kills that also lose what is not on disk."""

    life = PoweredLife
    kills_a_case = 8


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns all files below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def lose_unsynced(folder: pathlib.Path, there: dict[int, int], log: pathlib.Path) -> None:
    """Cuts each file to its size at its last fsync.

    Args:
      folder: whose files are cut.
      there: {inode: size} of the files that were on disk when the life began.
      log: what power_loss.c noted since.
    """
    lines = log.read_text().splitlines() if log.exists() else []
    safe = there | dict(tuple(map(int, line.split())) for line in lines)
    for path in files_of(folder):
        if path.stat().st_size > safe.get(path.stat().st_ino, 0):
            os.truncate(path, safe.get(path.stat().st_ino, 0))


def main() -> None:
    """Runs the cases that the folder does not have yet; fails if any run does not end like the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("power_loss"))
    options = parser.parse_args()
    library = options.folder.absolute() / "power_loss.so"
    if "LD_PRELOAD" not in os.environ:
        options.folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "LD_PRELOAD": str(library)})
    campaign = Campaign(options.folder)
    forked_lives.import_everything()
    for seed in range(options.seed, options.seed + options.cases):
        if seed not in {x["seed"] for x in campaign.finished()}:
            with campaign.results.open("a") as file:
                file.write(json.dumps(campaign.run("async", seed)) + "\n")
    sys.exit(kill_campaign.report(campaign.finished()))


if __name__ == "__main__":
    main()
