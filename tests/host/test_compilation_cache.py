"""Compiled programs kept on disk: where, and that they give what a fresh compilation gives."""

import os
import subprocess
import sys

import jax
import pytest

from basisnet_jax.host import compilation_cache

TWO_STEPS = """
import sys
from basisnet_jax.host import compilation_cache
from basisnet_jax.experiment.run import make_experiment
from tests.configs import tiny

compilation_cache.use_compilation_cache()
config = tiny.get_config()
config.data.dir = sys.argv[1]
experiment = make_experiment(config)
state, step, batches = experiment.init_state(), experiment.train_step(), experiment.train_batches(0)
for _ in range(2):
    state, metrics = step(state, next(batches), experiment.schedule, None)
print({name: float(value).hex() for name, value in sorted(metrics.items())})
"""


@pytest.fixture
def unset():
    """JAX as it is where nobody has named a cache folder."""
    names = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_cached_programs_give_the_same_bits(config, tmp_path):
    """Two fresh processes: the first compiles and keeps, the second finds everything and computes the same."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    printed, kept = [], []
    for _ in range(2):
        command = [sys.executable, "-c", TWO_STEPS, config.data.dir]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.splitlines()[-1])
        kept.append({path.name for path in (tmp_path / "basisnet_jax" / "jax").glob("*-cores/*-cache")})
    assert any(name.startswith("jit_train_step") for name in kept[0])
    assert kept[1] == kept[0], "the second process compiled again what the first had kept"
    assert printed[1] == printed[0]
    assert "loss" in printed[0]


def test_a_program_that_a_kill_left_unfinished_is_removed(tmp_path, monkeypatch, unset):
    """JAX writes the time after the program; without one, JAX 0.10 keeps nothing any more."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = compilation_cache._default_folder()
    place.mkdir(parents=True)
    for name in ("jit_f-1-cache", "jit_f-1-atime", "jit_g-2-cache"):
        (place / name).write_bytes(b"program")
    compilation_cache.use_compilation_cache()
    assert sorted(path.name for path in place.iterdir()) == ["jit_f-1-atime", "jit_f-1-cache"]


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog, unset):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compilation_cache.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert f"cannot write to {tmp_path}/file/basisnet_jax/jax" in caplog.text


def test_the_cache_is_bounded_and_the_users_own_choice_stands(tmp_path, monkeypatch, unset):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3}, raising=False)
    compilation_cache.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "basisnet_jax" / "jax" / "2-cores")
    assert 0 < jax.config.jax_compilation_cache_max_size < 2**40
    jax.config.update("jax_compilation_cache_dir", "")  # as JAX_COMPILATION_CACHE_DIR= in the environment
    compilation_cache.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == ""
