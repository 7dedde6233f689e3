"""The wheel and the sdist, built and used outside of the checkout."""

import csv
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

import basisnet_jax
from basisnet_jax.serving import zoo

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.py")}
PAGES = {path.relative_to(ROOT).as_posix() for path in (ROOT / "basisnet_jax").glob("*/*_page/*")}


def run(*command, **keywords):
    """Runs a command without what the checkout may have put on Python's path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = list(map(str, command))
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, **keywords)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(wheel built from the sdist, the sdist's names), from a copy without the ignored files."""
    source, out = tmp_path_factory.mktemp("source") / "checkout", tmp_path_factory.mktemp("dist")
    for name in ("basisnet_jax", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        path = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(path, source / name, ignore=ignored) if path.is_dir() else shutil.copy(path, source / name)
    hook = "import sys, setuptools.build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    done = run(sys.executable, "-c", hook, "build_sdist", out, cwd=source)
    assert done.returncode == 0, done.stderr
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(out / "unpacked", filter="data")
        names = {"/".join(name.split("/")[1:]) for name in archive.getnames()}
    (unpacked,) = (out / "unpacked").iterdir()
    done = run(sys.executable, "-c", hook, "build_wheel", out, cwd=unpacked)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel, names


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The programs of a fresh environment with the wheel; the other packages are those of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    assert run(sys.executable, "-m", "venv", "--without-pip", folder).returncode == 0
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", "--no-deps"]
    done = run(*pip, "--no-index", built[0])
    assert done.returncode == 0, done.stderr
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # after the wheel's own folder
    return folder / "bin"


def outside(installed, tmp_path, *command):
    """Runs a program of the environment in an empty folder, where nothing of the checkout is on the path."""
    return run(installed / command[0], *command[1:], cwd=tmp_path)


def test_the_sdist_has_the_configs_and_the_licence(built):
    assert built[1] >= {*CONFIGS, "LICENSE", "README.md", "basisnet_jax/data/glyphs.json", *PAGES}


def test_the_description_for_pypi_has_no_link_into_the_checkout(built):
    with zipfile.ZipFile(built[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        _, _, page = wheel.read(name).decode().partition("\n\n")
    targets = re.findall(r"\]\(([^)]*)\)", page)
    assert any("/blob/main/docs/" in target for target in targets)
    assert any("/raw/main/docs/" in target for target in targets), "the pictures"
    assert all(re.match("https://|#", target) for target in targets)


def test_the_command_lists_and_takes_configs_that_are_included(installed, tmp_path):
    done = outside(installed, tmp_path, "basisnet", "--version")
    assert done.stdout.startswith(f"basisnet_jax {basisnet_jax.__version__}, JAX "), done.stderr
    done = outside(installed, tmp_path, "basisnet", "configs")
    names = {line.split()[0] for line in done.stdout.splitlines()}
    assert names == {name.removeprefix("configs/").removesuffix(".py") for name in CONFIGS} - {"recipes"}
    # A config that imports others, which import a recipe.
    done = outside(installed, tmp_path, "basisnet", "cost", "--config=imagenet_mbv2_static")
    assert done.returncode == 0, done.stderr
    assert "300,774,272" in done.stdout, "the multiply-adds of MobileNetV2"
    assert (tmp_path / "runs" / "imagenet_mbv2_static" / "cost.json").exists()
    done = outside(installed, tmp_path, "basisnet", "cost", "--config=digit")
    assert (done.returncode, done.stderr) == (2, "error: there is no config file 'digit'; did you mean digits?\n")


def test_a_config_of_the_users_may_build_on_an_included_one(installed, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from configs import digits\n\n\ndef get_config():\n    config = digits.get_config()\n"
        "    config.model.num_bases = 2\n    return config\n"
    )
    done = outside(installed, tmp_path, "basisnet", "cost", "--config=mine.py")
    assert done.returncode == 0, done.stderr
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.py").write_text("from basisnet_jax.config import default as get_config\n")
    (tmp_path / "configs" / "own.py").write_text("from configs.base import get_config\n")
    for program in (("basisnet",), ("python", "-m", "basisnet_jax.main")):
        done = outside(installed, tmp_path, *program, "cost", "--config=configs/own.py")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("what", ["backbones", "weights", "datasets"])
def test_what_a_config_can_name_is_listed(installed, tmp_path, what):
    done = outside(installed, tmp_path, "basisnet", what)
    assert (done.returncode, done.stderr) == (0, "")
    expected = {"backbones": "mobilenet_v3_large", "weights": "efficientnet_lite0", "datasets": "digits"}[what]
    assert expected in {line.split()[0] for line in done.stdout.splitlines()}


def test_a_model_that_comes_along_answers_without_data_or_training(installed, tmp_path):
    """The handwritten digits that it answers are not those that it was trained on."""
    done = outside(installed, tmp_path, "basisnet", "models")
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    assert listed == set(zoo.names()), done.stderr
    digits = load_digits()
    for number in range(1400, 1440):
        image = np.round(digits.images[number] * (255 / 16)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
    done = outside(installed, tmp_path, "basisnet", "predict", "--model=digits", "--images=*.png", "--format=csv")
    assert done.returncode == 0, done.stderr
    answers = list(csv.DictReader(done.stdout.splitlines()))
    right = [int(x["label"]) == digits.target[int(x["file"].removesuffix(".png"))] for x in answers]
    assert len(right) == 40
    assert sum(right) >= 36
    assert {x["stage"] for x in answers} <= {"preview", "specialist"}
    assert not (tmp_path / "runs").exists()


def test_the_runtime_starts_with_the_wheel(installed, tmp_path):
    done = outside(installed, tmp_path, "python", "-m", "basisnet_jax.runtime", "--help")
    assert done.returncode == 0, done.stderr
