"""TensorFlow leaves the accelerators to JAX."""

import re

import jax.numpy as jnp
import pytest
import tensorflow as tf
from etils import epath

from basisnet_jax.export.by_tensorflow import to_tflite
from basisnet_jax.host.devices import hide_accelerators_from_tensorflow
from basisnet_jax.host.trackers import TrackedRun
from basisnet_jax.workdir.events import event_writer

USES = {
    "event files": lambda folder: event_writer(epath.Path(folder), None, TrackedRun({}, epath.Path(folder))),
    "conversion": lambda folder: to_tflite(jnp.sin, {"x": (1,)}, ("y",)),
}


@pytest.mark.parametrize("use", USES)
def test_accelerators_are_hidden_before_tensorflow_runs(use, tmp_path, monkeypatch):
    hidden = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda devices, kind: hidden.append((devices, kind)))

    def first_use(*args, **kwargs):
        raise RuntimeError(f"TensorFlow runs after {hidden}")

    monkeypatch.setattr(tf.summary, "create_file_writer", first_use)
    monkeypatch.setattr(tf, "TensorSpec", first_use)
    with pytest.raises(RuntimeError, match=re.escape("TensorFlow runs after [([], 'GPU'), ([], 'TPU')]")):
        USES[use](tmp_path)


def test_a_tensorflow_that_runs_already_is_left_alone(monkeypatch):
    """No error reaches the run, and nothing more is asked of TensorFlow after its refusal."""
    asked = []

    def too_late(devices, kind):
        asked.append(kind)
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "set_visible_devices", too_late)
    hide_accelerators_from_tensorflow()
    assert asked == ["GPU"]
