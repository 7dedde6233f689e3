"""Eight CPU devices for every test, a network small enough to train in one, and its config."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the tests' time is compilation, so XLA's passes run, and LLVM is told not to optimize what they give it.
_FLAGS = ("force_host_platform_device_count=8", "backend_optimization_level=0", "llvm_disable_expensive_passes=true")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *(f"--xla_{flag}" for flag in _FLAGS)])
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Tests compile the same small programs again and again; pytest's worker processes inherit the folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import ml_collections
import pytest

from tests.configs import tiny


@pytest.fixture
def config(tmp_path_factory) -> ml_collections.ConfigDict:
    """tests/configs/tiny.py, with the digits prepared once in a folder of the tests' own."""
    config = tiny.get_config()
    config.data.dir = str(tmp_path_factory.getbasetemp() / "tensorflow_datasets")
    return config
