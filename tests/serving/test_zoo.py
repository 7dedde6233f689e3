"""The models that come along: whole, small together, and made by one command."""

import pytest

import basisnet_jax
from basisnet_jax.errors import UserError
from basisnet_jax.serving import zoo
from basisnet_jax.serving.export import Export
from basisnet_jax.serving.manifest import CARD, LABELS, NAME
from benchmarks import zoo as maker


@pytest.mark.parametrize("name", zoo.names())
def test_every_model_is_whole(name):
    export = Export.open(zoo.folder_of(name))
    for file in (*export.manifest.files, LABELS):
        export.read(file)  # verifies its hash
    expected = {*export.manifest.files, LABELS, CARD, NAME}
    assert {path.name for path in export.folder.iterdir()} == expected, "nothing else travels in the wheel"
    assert export.manifest.rule is not None, "no --threshold is needed"
    of_first_files = export.manifest.accuracy.top1[next(iter(export.manifest.files)).partition(".")[2]]
    assert f"top-1 {of_first_files.specialist:.4f} on" in zoo.described(name)


def test_all_models_together_are_small():
    assert "digits" in zoo.names()
    assert sum(path.stat().st_size for path in zoo.FOLDER.glob("*/*")) <= zoo.MAX_BYTES


def test_an_unknown_model_is_a_sentence():
    with pytest.raises(UserError, match="there is no model 'cats'; the models that come along are "):
        zoo.folder_of("cats")


def test_weights_of_a_model_open_by_its_name():
    classifier = basisnet_jax.from_pretrained("digits")
    assert (classifier.classes, classifier.side) == (tuple("0123456789"), 24)


def test_an_export_becomes_a_model_in_place_of_the_older_one(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "old").touch()
    size = maker.add(exported[0], "mine")
    assert zoo.names() == ["mine"]
    assert not (tmp_path / "mine" / "old").exists()
    assert size == sum(path.stat().st_size for path in (tmp_path / "mine").iterdir())
    monkeypatch.setattr(zoo, "MAX_BYTES", 2 * size - 1)
    with pytest.raises(UserError, match=f"with other all models have .* at most {2 * size - 1:,} may be"):
        maker.add(exported[0], "other")
    assert zoo.names() == ["mine"]
    assert maker.add(exported[0], "mine") == size, "the older one does not count"
