"""Checkpoints with files that are gone, cut off or changed, and folders that are none: never a wrong number."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from basisnet_jax.errors import UserError
from basisnet_jax.training.state import TrainState
from basisnet_jax.workdir import integrity
from basisnet_jax.workdir.checkpoint import Checkpoints
from tests.system.test_fuzz import fuzz, one_sentence

STEPS = (5, 7)


def state_of(step):
    """Every array says of which step it is."""
    tree = {"layer": {"kernel": jnp.full((40, 5), float(step)), "bias": jnp.full(3, float(step))}}
    names = ("params", "batch_stats", "ema_params", "ema_batch_stats", "opt_state")
    return TrainState(step=jnp.int32(step), **dict.fromkeys(names, tree))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(epath.Path(folder), keep=2) as checkpoints:
        for step in STEPS:
            checkpoints.save(step, state_of(step), {"summed_steps": step})
            checkpoints.record(step, {"top1": 0.1 * step})
    return folder


FILES = st.integers(0, 10**6)  # which file, modulo their number
DAMAGE = st.one_of(
    st.tuples(st.sampled_from(["remove", "empty", "halve", "folder"]), FILES),
    st.tuples(st.just("flip"), FILES, st.integers(0, 10**6), st.integers(0, 7)),
    st.tuples(
        st.sampled_from(["put", "make"]), st.sampled_from(["9", "x", "11.orbax-checkpoint-tmp-1", "-3", "007", "5 "])
    ),
    st.tuples(st.just("remove step"), st.sampled_from(STEPS)),
)


def harm(folder, kind, which, at=0, bit=0):
    if kind == "remove step":
        return shutil.rmtree(folder / str(which), ignore_errors=True)
    if kind == "put":
        return None if (folder / which).exists() else (folder / which).write_text("junk")
    if kind == "make":
        return (folder / which / "state").mkdir(parents=True, exist_ok=True) if not (folder / which).is_file() else None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        return None
    path = files[which % len(files)]
    content = bytearray(path.read_bytes())
    match kind:
        case "remove":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "halve":
            path.write_bytes(content[: len(content) // 2])
        case "folder":
            path.unlink()
            path.mkdir()
        case "flip" if content:
            content[at % len(content)] ^= 1 << bit
            path.write_bytes(content)


@fuzz(25)
@given(st.lists(DAMAGE, min_size=1, max_size=3))
def test_any_damage(saved, tmp_path_factory, damages):
    folder = tmp_path_factory.mktemp("damaged") / "checkpoints"
    shutil.copytree(saved, folder)
    for damage in damages:
        harm(folder, *damage)
    refused = None
    try:
        integrity.quarantine_damaged_checkpoints(epath.Path(folder))
        with Checkpoints(epath.Path(folder), keep=2) as checkpoints:
            step = checkpoints.latest_step()
            if step is not None:
                state, account = checkpoints.restore(step, state_of(step))
                assert int(state.step) == step == account["summed_steps"]
                assert step in STEPS
                for name in ("params", "batch_stats", "ema_params", "ema_batch_stats", "opt_state"):
                    for array in getattr(state, name)["layer"].values():
                        np.testing.assert_array_equal(array, step)
    except UserError as error:
        refused = error
    assert refused is None or one_sentence(refused)
    shutil.rmtree(folder.parent, ignore_errors=True)  # Orbax removes leftovers in a thread of its own
