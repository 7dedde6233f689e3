"""A config from a file: each mistake in one is a sentence that names the file, its line and the way out."""

import importlib
import json
import os
import pathlib

import pytest

from basisnet_jax import config as config_lib
from basisnet_jax.errors import UserError
from basisnet_jax.modes import config_files
from basisnet_jax.modes.mode import read_flags

FIELDS = """from basisnet_jax.config import default
def get_config():
    config = default()
    {}
    return config
"""
MISTAKES = {
    FIELDS.format(
        "config.bach_size = 1"
    ): "mine.py, line 4: there is no field config.bach_size; did you mean config.batch_",
    FIELDS.format(
        "config.model.num_base = 1"
    ): "there is no field config.model.num_base; did you mean config.model.num_b",
    FIELDS.format(
        "print(config.data.flp)"
    ): "line 4: there is no field config.data.flp; did you mean config.data.flip?",
    FIELDS.format("config.update(bach_size=1)"): "there is no field config.bach_size; did you mean config.batch_size?",
    FIELDS.format(
        "config.batch_size = 'many'"
    ): "line 4: the field batch_size must be of type int; 'many' is of type str.",
    FIELDS.format("config.seed = sed"): "line 4: NameError: name 'sed' is not defined.",
    FIELDS.format("import json; json.loads('{')"): "line 4: JSONDecodeError: Expecting property name",
    FIELDS.format("open('nowhere')"): "line 4: FileNotFoundError: [Errno 2] No such file or directory: 'nowhere'.",
    FIELDS.format("raise SystemExit(3)"): "line 4: SystemExit: 3.",
    "import nowhere": "mine.py, line 1: ModuleNotFoundError: No module named 'nowhere'.",
    "def get_config(:": "mine.py, line 1: invalid syntax.",
    "\0": "mine.py: SyntaxError: source code string cannot contain null bytes.",
    "": "mine.py: it has no function get_config()",
    "def get_config(): pass": "get_config() returned None; it must return a config that starts from",
    "def get_config(): return {'seed': 1}": "get_config() returned {'seed': 1}; it must return",
    "def get_config(size): return size": "mine.py: TypeError: get_config() missing 1 required positional argument",
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(argument):
    with pytest.raises(UserError) as error:
        config_files.load(argument)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
    return str(error.value)


@pytest.mark.parametrize("content", MISTAKES)
def test_a_mistake_in_a_python_file(content):
    pathlib.Path("mine.py").write_text(content)
    assert MISTAKES[content] in refused("mine.py")


def test_a_mistake_in_a_file_that_a_config_imports(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    pathlib.Path("recipes_of_mine.py").write_text("\n\nx = y\n")
    pathlib.Path("mine.py").write_text("import recipes_of_mine\n")
    assert refused("mine.py").startswith("recipes_of_mine.py, line 3: NameError: name 'y'")


def test_what_is_not_a_file():
    pathlib.Path("configs").mkdir()
    pathlib.Path("configs/digits.py").touch()
    pathlib.Path("run").mkdir()
    pathlib.Path("run/config.json").touch()
    for argument, words in {
        "configs": "--config=configs is a folder; give a file, as in --config=configs/digits.py.",
        "run": "--config=run is a folder with a run; give --workdir=run instead of --config.",
        "configs/digit.py": "there is no config file 'configs/digit.py'; did you mean configs/digits.py?",
        "zzz.py": "there is no config file 'zzz.py'; --mode=configs lists the included ones.",
        "zzz.json": "there is no config file 'zzz.json'",
        "": "--config is empty; give a file or the name of an included config",
    }.items():
        assert words in refused(argument)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads whatever there is")
def test_a_file_that_cannot_be_read():
    pathlib.Path("mine.py").touch(mode=0)
    assert "cannot read mine.py (Permission denied)." in refused("mine.py")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "mine.json is not JSON (Expecting property name"),
        ("[]", "mine.json holds no config"),
        ('{"batchsize": 3}', "mine.json: there is no field config.batchsize; did you mean config.batch_size?"),
        ('{"batch_size": "x"}', "mine.json: the field batch_size must be of type int; 'x' is of type str."),
        (
            '{"model": {"preview": {"backbone": "mine"}}}',
            "'mine' is not one of models/architectures.py; if a config file of",
        ),
        ('{"model": {"num_bases": {"x": 1}}}', "there is no field config.model.num_bases.x"),
    ],
)
def test_a_mistake_in_a_json_file(content, words):
    pathlib.Path("mine.json").write_text(content)
    assert words in refused("mine.json")


def test_a_runs_config_is_the_config_that_it_had():
    config = config_lib.default()
    config.update(batch_size=32, epochs=3.0)
    config.model.synthesize = ("expand",)
    saved = config.to_json()
    pathlib.Path("config.json").write_text(saved)
    pathlib.Path("manifest.json").write_text(json.dumps({"config": json.loads(saved)}))
    for name in ("config.json", "manifest.json"):
        loaded = config_files.load(name)
        assert loaded == config
        assert loaded.is_locked
        config_lib.validate(loaded)


def test_a_config_knows_its_workdir():
    for argument, workdir in {
        "configs/digits.py": "runs/digits",
        "configs/digits.py:small": "runs/digits",
        "runs/a/config.json": "runs/a",
        "runs/a/export/manifest.json": "runs/a/export",
        "config.json": ".",
        "saved/mine.json": "runs/mine",
    }.items():
        assert config_files.default_workdir(argument) == workdir


def test_a_workdir_knows_its_config(tmp_path):
    with pytest.raises(UserError, match=r"--workdir=run has no config.json, so there is no run in it; start one with"):
        config_files.of_workdir("run", or_export=True)
    pathlib.Path("run/export").mkdir(parents=True)
    pathlib.Path("run/config.json").touch()
    pathlib.Path("run/export/manifest.json").touch()
    assert config_files.of_workdir("run", or_export=False) == f"{tmp_path}/run/config.json"
    assert config_files.of_workdir("run/export", or_export=True) == f"{tmp_path}/run/export/manifest.json"
    with pytest.raises(UserError, match="--workdir=run/export is an export; give the --workdir of a run"):
        config_files.of_workdir("run/export", or_export=False)


def test_a_value_that_is_none_or_of_the_wrong_kind_is_named():
    config = config_lib.default()
    config.batch_size = None
    with pytest.raises(UserError, match=r"config.batch_size = None: is missing"):
        config_lib.validate(config)
    config.batch_size = 64
    config.model.synthesize = (3,)
    with pytest.raises(UserError, match=r"config.model.synthesize = \(3,\): must be strings"):
        config_lib.validate(config)


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ((), None),
        (("--mode=train",), "train"),
        (("--mode", "train", "--fit"), "train"),
        (("-mode", "export", "--nofit"), "export"),
        (("--images", "a.jpg", "b.jpg", "--mode=predict"), "predict"),
        (("--config.batch_size", "3", "--mode=cost", "--mode=train"), "train"),
        (("--flagfile=flags",), "evaluate"),
        (("--flagfile=nowhere",), None),
        (("--mode",), None),
    ],
)
def test_the_mode_is_known_before_the_flags_are(given, mode):
    """By it the allocator is set, and whether an export is meant."""
    pathlib.Path("flags").write_text("--mode=evaluate\n")
    assert read_flags(["main.py", *given], "mode", "workdir") == {"mode": mode, "workdir": None}


def test_one_process_reads_included_configs_and_a_users_own(tmp_path, monkeypatch):
    """Also where the user's folder has a package of the same name, as in a notebook."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.py").write_text(
        "from basisnet_jax.config import default\n\n\ndef get_config():\n    config = default()\n"
        "    config.seed = 7\n    return config\n"
    )
    (tmp_path / "configs" / "own.py").write_text("from configs.base import get_config\n")
    (tmp_path / "mine.py").write_text("from configs.digits import get_config\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for _ in range(2):
        assert config_files.load("digits_static").model.routing == "static"
        assert config_files.load("configs/own.py").seed == 7
    (tmp_path / "configs").rename(tmp_path / "elsewhere")
    importlib.invalidate_caches()
    for _ in range(2):
        assert config_files.load("mine.py").epochs == 40.0
