"""Files of a run that anybody may have changed: a sentence, never a traceback."""

import pytest
from etils import epath

from basisnet_jax.config import default
from basisnet_jax.data import teacher_logits
from basisnet_jax.errors import UserError
from basisnet_jax.inference import trained_run
from basisnet_jax.workdir import integrity, run_folder
from basisnet_jax.workdir.checkpoint import Checkpoints
from tests.workdir.test_fuzz_checkpoints import state_of

NO_OBJECT = (b"", b"[]", b"3", b"\xff", b"[" * 100_000)


@pytest.mark.parametrize("content", [*NO_OBJECT, b'{"seed": "x"}', b'{"model": 1}'])
def test_a_config_that_cannot_be_read_is_told(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config.*; "):
        run_folder.open_run(str(tmp_path))


@pytest.mark.parametrize("content", [*NO_OBJECT, b'{"classes": 3}', b'{"classes": [], "channels": 1}'])
def test_facts_of_the_data_that_cannot_be_read_are_told(tmp_path, content):
    (tmp_path / "config.json").write_text(default().to_json())
    (tmp_path / "data.json").write_bytes(content)
    with pytest.raises(UserError, match=r"data.json is damaged: it is not what --mode=train writes"):
        trained_run.open_trained(str(tmp_path))


@pytest.mark.parametrize("content", NO_OBJECT)
def test_an_identity_of_a_cache_that_cannot_be_read_is_told(tmp_path, content):
    (tmp_path / "identity.json").write_bytes(content)
    with pytest.raises(UserError, match=r"identity.json cannot be read"):
        teacher_logits.check_identity(epath.Path(tmp_path), {"teacher": "a"})


@pytest.mark.parametrize("content", ["{", "[]", '{"top1": "x"}', "{}"])
def test_metrics_that_are_not_metrics_count_as_missing(tmp_path, content):
    """Their checksum fits: whoever wrote the checkpoint wrote them so."""
    folder = epath.Path(tmp_path / "checkpoints")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(3, state_of(3), {})
    integrity.add_file(folder / "3", "evaluation.json", content)
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.best_step() is None
