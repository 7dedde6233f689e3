"""Kills training a thousand times at random moments; every run must end bit for bit like an undisturbed run.

    python benchmarks/kill_campaign.py [--kills 1000] [--seed 0] [--folder kills] [--variants async fsdp]

A case is a variant and a seed: one run, killed KILLS_A_CASE times in phases and at moments that the seed draws, then
compared as in survival.py. The same command resumes a campaign: FOLDER/results.jsonl has a line for each finished case.
With `--only fsdp:17` that case alone runs again. The interpreter's JAX is part of a case's name. With two processes,
the seed also draws which one is killed, and the line says how long the other one lived on.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import random
import shutil
import sys
import time

import forked_lives
import same_run
import survival
from forked_lives import Layout

SETTINGS = ("--config.epochs=1.0", "--config.log_every_steps=1")  # 81 steps, 10 evaluations, 20 checkpoints
PHASES = {"start-up": 3, "compile": 1, "step": 4, "evaluation": 4, "save": 4}  # how often each is aimed at
VARIANTS = {
    "async": Layout(),
    "waits": Layout(waits=True),
    "fsdp": Layout(devices=4, fsdp=2),
    "processes": Layout(processes=2, fsdp=2, routing="static"),  # without preview, traced in half the time
}


class Campaign:
    """The cases of one folder with one JAX.

    Args:
      folder: holds the results, the undisturbed runs and the compiled programs.

    Attributes:
      life: starts the run once, and kills it.
      kills_a_case: kills in one run.
    """

    life: type[forked_lives.ForkedLife] = forked_lives.ForkedLife
    kills_a_case = 20

    def __init__(self, folder: pathlib.Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.jax = folder.absolute(), importlib.metadata.version("jax")
        self.results = self.folder / "results.jsonl"
        self.cache = self.folder / f"cache-{self.jax}"
        self.programs = self.folder / f"programs-{self.jax}"  # compiled by the undisturbed runs
        os.environ.update(XDG_CACHE_HOME=str(self.cache), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

    def finished(self) -> list[dict]:
        """Returns the results of all finished cases, of any JAX."""
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        return [json.loads(line) for line in lines]

    def undisturbed(self, variant: str) -> pathlib.Path:
        """Returns the workdir of the variant's run that nobody killed; runs it once."""
        whole = self.folder / f"whole-{variant}-{self.jax}" / "run"
        if not (whole / "results.json").exists():
            shutil.rmtree(whole.parent, ignore_errors=True)
            whole.parent.mkdir()
            self._survive(variant, whole, [], random.Random(0))
            shutil.copytree(self.cache, self.programs, dirs_exist_ok=True)
        return whole

    def run(self, variant: str, seed: int) -> dict:
        """Runs one case, and returns its result as JSON values."""
        whole = self.undisturbed(variant)
        rng = random.Random(f"{variant} {seed}")
        phases = rng.choices(list(PHASES), list(PHASES.values()), k=self.kills_a_case - 1)
        kills = survival.draw(rng, phases, survival.durations(whole))
        workdir = self.folder / f"case-{os.getpid()}" / "run"
        shutil.rmtree(workdir.parent, ignore_errors=True)
        workdir.parent.mkdir()
        began = time.monotonic()
        result = {"variant": variant, "seed": seed, "jax": self.jax, "kills": [], "different": []}
        try:
            result["kills"], result["orphaned"] = self._survive(variant, workdir, kills, rng)
            result["different"] = self.differences(workdir, whole)
        except RuntimeError as error:
            result["different"] = [f"a life failed: {error}"]
        result["seconds"] = round(time.monotonic() - began, 1)
        if not result["different"]:
            shutil.rmtree(workdir.parent)
        else:
            workdir.parent.rename(self.folder / f"failed-{variant}-{seed}-{self.jax}-{time.time_ns()}")
        return result

    def _survive(self, variant: str, workdir: pathlib.Path, kills: list, rng: random.Random) -> tuple[list, list]:
        layout, lives = VARIANTS[variant], []
        arguments = [f"--config={survival.CONFIG}", f"--config.data.dir={self.folder}/data", *SETTINGS]

        def start(diary: pathlib.Path, words: list[str]) -> forked_lives.ForkedLife:
            kill = kills[len(lives)] if len(lives) < len(kills) else None
            if self.programs.exists() and not (kill and kill.phase == "compile"):
                shutil.copytree(self.programs, self.cache, dirs_exist_ok=True, copy_function=_copy_if_missing)
            victims = rng.choice([(0,), (1,), (0, 1)]) if layout.processes > 1 else (0,)
            lives.append(self.life(layout, diary, words, victims if kill else ()))
            return lives[-1]

        deaths = survival.survive(arguments, workdir, kills, start, self.cache)
        return [dataclasses.asdict(death) for death in deaths], [x.orphaned for x in lives if x.orphaned is not None]

    def differences(self, killed: pathlib.Path, whole: pathlib.Path) -> list[str]:
        """Compares in a fork: this process must not start a device."""
        report = killed.with_name("differences.json")

        def compare() -> int:
            found = same_run.differences(killed, whole)
            batches = set(survival.batches_of(killed)) ^ set(survival.batches_of(whole))
            report.write_text(json.dumps(found + [f"batch {step}" for step, _ in sorted(batches)]))
            return 0

        if forked_lives.run_in_fork(compare):
            return ["the comparison failed"]
        return json.loads(report.read_text())


def _copy_if_missing(source: str, target: str) -> str:
    return target if os.path.exists(target) else shutil.copy2(source, target)


def main() -> None:
    """Runs the cases that the folder does not have yet; fails if any case differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="over all variants and JAX versions of the folder")
    parser.add_argument("--seed", type=int, default=0, help="of the first case of each variant")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("kills"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--kills_a_case", type=int, default=Campaign.kills_a_case)
    parser.add_argument("--only", metavar="VARIANT:SEED", help="run this case again, and print its line")
    options = parser.parse_args()
    campaign = Campaign(options.folder)
    campaign.kills_a_case = options.kills_a_case
    forked_lives.import_everything()
    if options.only:
        variant, _, seed = options.only.partition(":")
        result = campaign.run(variant, int(seed))
        print(json.dumps(result))
        sys.exit(bool(result["different"]))
    seed = options.seed
    while sum(len(x["kills"]) for x in campaign.finished()) < options.kills:
        for variant in options.variants:
            done = {(x["variant"], x["seed"]) for x in campaign.finished() if x["jax"] == campaign.jax}
            if (variant, seed) not in done:
                with campaign.results.open("a") as file:
                    file.write(json.dumps(campaign.run(variant, seed)) + "\n")
        seed += 1
    sys.exit(report(campaign.finished()))


def report(results: list[dict]) -> bool:
    """Prints a row for each variant and JAX; returns whether any case differs."""
    print(f"{'variant':12}{'jax':10}{'kills':>7}{'half a save':>13}{'steps lost':>12}{'orphans end s':>15}  different")
    for variant, jax in sorted({(x["variant"], x["jax"]) for x in results}):
        own = [x for x in results if (x["variant"], x["jax"]) == (variant, jax)]
        deaths, waits = [d for x in own for d in x["kills"]], [s for x in own for s in x.get("orphaned", [])]
        differing = [f"{variant}:{x['seed']} {x['different']}" for x in own if x["different"]]
        half, lost = sum(death["writing"] for death in deaths), sum(death["lost"] for death in deaths)
        print(
            f"{variant:12}{jax:10}{len(deaths):7}{half:13}{lost:12}"
            f"{f'{max(waits):.1f}' if waits else '':>15}  {'; '.join(differing) or 'nothing'}"
        )
    return any(x["different"] for x in results)


if __name__ == "__main__":
    main()
