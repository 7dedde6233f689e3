"""Eight CPU devices for every test, a network small enough to train in one, and its config."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the tests' time is compilation, so XLA's passes run, and LLVM is told not to optimize what they give it.
_FLAGS = ["force_host_platform_device_count=8", "backend_optimization_level=0", "llvm_disable_expensive_passes=true"]
if importlib.metadata.version("jaxlib") < "0.11":  # newer ones have no other way to emit a fusion
    _FLAGS.append("cpu_use_fusion_emitters=false")  # these take more than half of the time
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *(f"--xla_{flag}" for flag in _FLAGS)])
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Tests compile the same small programs again and again; pytest's worker processes inherit the folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["KERAS_BACKEND"] = "jax"  # of the networks that ours are compared with
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import filelock
import ml_collections
import pytest

from tests.configs import tiny

TRAINED_RATE = 0.03


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Returns a folder that all of pytest's worker processes share."""
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    shared.mkdir(exist_ok=True)
    return shared


def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> ml_collections.ConfigDict:
    """tests/configs/tiny.py, with the digits prepared once in a folder of the tests' own."""
    config, folder = tiny.get_config(), shared_folder(tmp_path_factory) / "tensorflow_datasets"
    config.data.dir = str(folder)
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.exists():
            from basisnet_jax.data.datasets import open_dataset

            open_dataset(config.data.name, config.data.dir, "train", "test")
    return config


@pytest.fixture
def config(tmp_path_factory) -> ml_collections.ConfigDict:
    """A config for each test to change."""
    return tiny_config(tmp_path_factory)


def made_once(
    name: str, tmp_path_factory: pytest.TempPathFactory, make: Callable[[pathlib.Path], None]
) -> pathlib.Path:
    """Returns this process's copy of a folder that `make` filled, in the first of pytest's processes that asks."""
    shared = shared_folder(tmp_path_factory) / name
    with filelock.FileLock(f"{shared}.lock"):
        if not shared.exists():
            make(unfinished := tmp_path_factory.mktemp(name))
            unfinished.rename(shared)  # so that one that failed is made again
    return shutil.copytree(shared, tmp_path_factory.mktemp(name), dirs_exist_ok=True)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> pathlib.Path:
    """The workdir of a run of that config, trained once; its learning rate is high enough to learn something."""
    from basisnet_jax.loop.train import train

    def make(workdir: pathlib.Path) -> None:
        config = tiny_config(tmp_path_factory)
        config.optimizer.learning_rate = TRAINED_RATE
        train(config, str(workdir))

    return made_once("trained", tmp_path_factory, make)


EXPORTED_FORMATS = ("tflite", "stablehlo", "safetensors", *(("onnx",) if importlib.util.find_spec("tf2onnx") else ()))


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory) -> tuple[pathlib.Path, str]:
    """(the folder, what was printed) of an export of `trained` in all formats that can be made here; not to be changed.

    It has no rule: nothing was evaluated before. The run's folder is a copy, so that no other test's evaluation counts.
    """
    from basisnet_jax.export.package import export_run

    def make(workdir: pathlib.Path) -> None:
        config = tiny_config(tmp_path_factory)
        shutil.copytree(trained, workdir, dirs_exist_ok=True, ignore=shutil.ignore_patterns("evaluation", "export"))
        config.optimizer.learning_rate = TRAINED_RATE
        config.export.formats = EXPORTED_FORMATS
        (workdir / "printed").write_text(export_run(config, str(workdir)))

    workdir = made_once("exported", tmp_path_factory, make)
    return workdir / "export", (workdir / "printed").read_text()


def save_untrained(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """What a run leaves, with the parameters that it would have started from: no step is compiled."""
    from basisnet_jax.experiment.run import make_experiment
    from basisnet_jax.workdir.checkpoint import Checkpoints

    experiment = make_experiment(config)
    (workdir / "config.json").write_text(config.to_json())
    (workdir / "data.json").write_text(json.dumps(experiment.data.facts()))
    with Checkpoints(workdir / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(0, experiment.init_state(), {})
        checkpoints.record(0, {"top1": 0.1})


@pytest.fixture
def trained_config(config) -> ml_collections.ConfigDict:
    """The config that `trained` was trained with, for each test to change."""
    config.optimizer.learning_rate = TRAINED_RATE
    return config


def run_results(**changes):
    """The results of a run that nobody trained."""
    from basisnet_jax.workdir.results import FinalEvaluation, RunResults

    madds = {"preview": 0, "synthesis": 0, "specialist": 9, "total": 9}
    results = RunResults(
        config={},
        step=1,
        train_seconds=2.0,
        skipped_steps=0,
        recompilations=0,
        images_per_second=None,
        input_wait_share=None,
        eval=FinalEvaluation(count=4, top1=0.5, top5=1.0, preview_top1=None, loss=0.1),
        madds=madds,
        parameters=7,
        versions={},
    )
    return dataclasses.replace(results, **changes)


def make_manifest(**changes):
    """Returns the manifest of an export of nothing, with other values where given."""
    from basisnet_jax.serving.manifest import Accuracy, Data, Input, Manifest, file_facts

    image = Input(8, 1, "gray", 1, {"tflite": "float32"}, "none", None, "none", "ignored", None)
    manifest = Manifest(
        step=0,
        input=image,
        outputs={},
        madds={"preview": 1, "total": 2},
        parameters=0,
        files={},
        labels=file_facts(b""),
        data=Data("digits", "train"),
        config={},
        versions={},
        accuracy=Accuracy("no images", {}),
        warnings=[],
    )
    return dataclasses.replace(manifest, **changes)
