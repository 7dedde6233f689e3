"""A save keeps no memory, although TensorStore leaks."""

import gc
import sys

import jax
import pytest
import tensorstore as ts
from etils import epath

from basisnet_jax.training.state import TrainState
from basisnet_jax.workdir import tensorstore_leak
from basisnet_jax.workdir.checkpoint import Checkpoints

ARRAYS, SAVES = 200, 3


def test_a_save_keeps_no_memory(tmp_path):
    """TensorStore 0.1.86 alone keeps 4 blocks for each array in a save."""
    params = dict.fromkeys(map(str, range(ARRAYS)), jax.device_get(jax.numpy.ones(3)))
    state = TrainState(jax.numpy.int32(0), params, {}, {}, {}, ())
    with Checkpoints(epath.Path(tmp_path), keep=1) as checkpoints:

        def blocks_after(steps):
            for step in steps:
                checkpoints.save(step, state, {})
            checkpoints.wait()
            gc.collect()
            return sys.getallocatedblocks()

        before = blocks_after(range(3))
        assert (blocks_after(range(3, 3 + SAVES)) - before) / SAVES < 2 * ARRAYS


@pytest.mark.parametrize("path", ["/a/", "/ü '\" {x}/"])
def test_specs_are_converted_as_before(path):
    """The replaced conversion is asked first, then again, and its answer may be changed by the caller."""
    tensorstore_leak.avoid_leak()
    expected = {"driver": "file", "path": path}
    for _ in range(2):
        converted = ts.KvStore.Spec(expected).to_json()
        assert converted == expected
        converted["path"] = "changed"
    with_defaults = ts.KvStore.Spec(expected).to_json(include_defaults=True)
    assert with_defaults.items() > expected.items()


def test_many_specs_are_converted_and_few_are_kept():
    tensorstore_leak.avoid_leak()
    for number in range(3 * tensorstore_leak._KEPT):
        expected = {"driver": "file", "path": f"/{number}/"}
        assert ts.KvStore.Spec(expected).to_json() == expected
