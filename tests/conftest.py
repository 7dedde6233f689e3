"""Eight CPU devices for every test, a network small enough to train in one, and its config."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Tests compile the same small programs again and again.
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
