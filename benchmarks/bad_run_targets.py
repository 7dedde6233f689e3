"""What the campaign of bad inputs does to a run's folder, to weights that travel and to command lines."""

import functools
import json
import pathlib
import random
import shutil
import string
import tempfile
from collections.abc import Callable

import damage
import numpy as np
from damage import damaged, damaged_json, refusing

from basisnet_jax import compare
from basisnet_jax.config import validate
from basisnet_jax.data import teacher_logits
from basisnet_jax.host.command_line import on_one_line
from basisnet_jax.inference import trained_run
from basisnet_jax.modes import config_files
from basisnet_jax.serving import zoo
from basisnet_jax.serving.exit_rule import ChosenRule
from basisnet_jax.workdir import run_folder

EXPORT = pathlib.Path(zoo.FOLDER, "digits")
IDENTITY = {"teacher": "abc", "data": "digits, train, 9 examples", "side": 8}
DATA = {"name": "digits", "classes": ["a", "b"], "channels": 1, "train_examples": 9, "teacher": None}
RESULTS = {
    "config": {
        "seed": 0,
        "data": {"name": "digits", "dir": "", "eval_split": "test"},
        "model": {"routing": "static"},
    },
    **{"step": 9, "train_seconds": 1.5, "skipped_steps": 0, "recompilations": 0, "images_per_second": 2.0},
    "input_wait_share": 0.1,
    "eval": {"count": 10, "top1": 0.5, "top5": 0.9, "preview_top1": None, "loss": 1.0},
    **{"madds": {"total": 9}, "parameters": 7, "versions": {}},
}


@functools.cache
def _manifest() -> dict:
    return json.loads((EXPORT / "manifest.json").read_text())


def _bad_json(rng: random.Random, original: object) -> bytes:
    """Returns a JSON file that holds other values, or is damaged."""
    if rng.random() < 0.01:
        return damage.TOO_DEEP
    content = json.dumps(damaged_json(rng, original)).encode("utf-8", "surrogatepass")
    return damaged(rng, [content]) if rng.random() < 0.3 else content


def identity(rng: random.Random, folder: pathlib.Path) -> str:
    """The identity of a cache of a teacher's logits."""
    (folder / "identity.json").write_bytes(_bad_json(rng, IDENTITY))
    with refusing(printed=on_one_line) as outcome:
        teacher_logits.check_identity(folder, IDENTITY)
    return outcome[0]


def exit_rule(rng: random.Random, folder: pathlib.Path) -> str:
    """The exit rule that --mode=evaluate wrote."""
    (folder / "exit_rule.json").write_bytes(_bad_json(rng, _manifest()["rule"]))
    with refusing(printed=on_one_line) as outcome:
        assert ChosenRule.load(folder).rule.exits(np.zeros((2, 10))).shape == (2,)
    return outcome[0]


def results(rng: random.Random, folder: pathlib.Path) -> str:
    """Results that are compared with those of a whole run."""
    whole, other = folder / "whole", folder / "other"
    for run, content in ((whole, json.dumps(RESULTS).encode()), (other, _bad_json(rng, RESULTS))):
        run.mkdir(exist_ok=True)
        (run / "results.json").write_bytes(content)
    with refusing(printed=on_one_line) as outcome:
        rows, left_out = compare.read([str(whole), str(other)])
        compare.markdown(rows)
        if left_out:
            outcome[0] = "refused"
    return outcome[0]


def config_json(rng: random.Random, folder: pathlib.Path) -> str:
    """Opens a damaged config.json of a run, as the command line does and as Python does."""
    (folder / "config.json").write_bytes(_bad_json(rng, _manifest()["config"]))
    with refusing(printed=on_one_line) as outcome:
        validate(config_files.load(str(folder / "config.json")))
    with refusing(printed=on_one_line):
        run_folder.open_run(str(folder))
    return outcome[0]


def data_json(rng: random.Random, folder: pathlib.Path) -> str:
    """Reads a damaged data.json of a run."""
    (folder / "data.json").write_bytes(_bad_json(rng, DATA))
    with refusing(printed=on_one_line) as outcome:
        facts = trained_run._facts(folder / "data.json")
        assert all(isinstance(name, str) for name in facts.classes)
    return outcome[0]


def network(rng: random.Random, _: pathlib.Path) -> str:
    """Weights that travel, and the config beside them."""
    from basisnet_jax.experiment import network_files

    files = {name: (EXPORT / name).read_bytes() for name in ("config.json", "model.safetensors")}
    if rng.random() < 0.5:
        files["config.json"] = _bad_json(rng, json.loads(files["config.json"]))
    else:
        files["model.safetensors"] = damaged(rng, [files["model.safetensors"]])
    with refusing(printed=on_one_line) as outcome:
        network_files.from_files(files.__getitem__)
    return outcome[0]


def checkpoint(rng: random.Random, folder: pathlib.Path) -> str:
    """Restores a checkpoint whose files are damaged: never another number."""
    return _damaged_checkpoint(rng, folder, rehashed=False)


def stranger_checkpoint(rng: random.Random, folder: pathlib.Path) -> str:
    """The same with checksums that fit, as whoever wrote it can: arrays of the right shape, or a sentence."""
    return _damaged_checkpoint(rng, folder, rehashed=True)


def _damaged_checkpoint(rng: random.Random, folder: pathlib.Path, rehashed: bool) -> str:
    from etils import epath

    from basisnet_jax.workdir import integrity
    from basisnet_jax.workdir.checkpoint import Checkpoints
    from tests.workdir.test_fuzz_checkpoints import state_of

    place = folder / "checkpoints"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(_saved(), place)
    files = sorted(path for path in (place / "7").rglob("*") if path.is_file() and path.name != integrity.NAME)
    harmed = rng.choice(files)
    harmed.write_bytes(damaged(rng, [harmed.read_bytes()]))
    if rehashed:
        integrity.write_checksums(epath.Path(place / "7"))
    with refusing(printed=on_one_line) as outcome:
        integrity.quarantine_damaged_checkpoints(epath.Path(place))
        with Checkpoints(epath.Path(place), keep=2) as checkpoints:
            step = checkpoints.latest_step()
            state, _ = checkpoints.restore(step, state_of(step))
        kernel = np.asarray(state.params["layer"]["kernel"])
        assert kernel.shape == (40, 5)
        assert rehashed or (kernel == step).all()
        if step != 7:
            outcome[0] = "set aside"
    return outcome[0]


@functools.cache
def _saved() -> pathlib.Path:
    from etils import epath

    from basisnet_jax.workdir.checkpoint import Checkpoints
    from tests.workdir.test_fuzz_checkpoints import STEPS, state_of

    folder = pathlib.Path(tempfile.mkdtemp()) / "checkpoints"
    with Checkpoints(epath.Path(folder), keep=2) as checkpoints:
        for step in STEPS:
            checkpoints.save(step, state_of(step), {"summed_steps": step})
            checkpoints.record(step, {"top1": 0.1 * step})
    return folder


def command_line(rng: random.Random, _: pathlib.Path) -> str:
    """Command lines of settings and flags with odd values: parsed, and the config validated."""
    from tests.system.command_lines import outcome
    from tests.system.test_fuzz_commands import CONFIG, FIELDS, FLAGS, ODD, check

    def value() -> str:
        word = "".join(rng.choice(string.printable) for _ in range(rng.randrange(9)))
        return rng.choice((rng.choice(ODD), word, str(rng.randrange(-(2**40), 2**40)), str(rng.gauss(0, 1e3))))

    def argument() -> str:
        return rng.choice(
            (
                f"--config.{rng.choice(list(FIELDS))}={value()}",
                f"--config.{rng.choice(list(FIELDS))}={value()}",
                f"--{rng.choice(list(FLAGS))}={value()}",
                value(),
            )
        )

    arguments = [*([CONFIG] if rng.random() < 0.9 else []), *(argument() for _ in range(rng.randint(1, 3)))]
    answer = outcome(arguments)
    check(answer["code"], answer["text"], arguments)
    return "refused" if answer["code"] else "read"


TARGETS: dict[str, Callable[[random.Random, pathlib.Path], str]] = {
    **{x.__name__: x for x in (identity, exit_rule, results, config_json, data_json, network)},
    **{x.__name__: x for x in (checkpoint, stranger_checkpoint, command_line)},
}
