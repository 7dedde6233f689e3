"""Folders of images as data sets, and what is said of data that is not there, before a device is asked for."""

import pickle

import cv2
import jax
import numpy as np
import pytest

from basisnet_jax import train
from basisnet_jax.data import datasets
from basisnet_jax.errors import UserError
from basisnet_jax.experiment import make_experiment


@pytest.fixture
def photos(tmp_path):
    """Two splits of three classes; the blue channel of an image is 100 times its class."""
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                image = np.full((20, 30, 3), (100 * label, 50, 10 * number), np.uint8)
                cv2.imwrite(str(tmp_path / split / name / f"{number}.{('jpg', 'JPEG', 'png')[label]}"), image)
    (tmp_path / "train" / "bee" / ".hidden").touch()
    return tmp_path


def test_a_folder_is_a_data_set(photos):
    data = datasets.open_dataset("folder", str(photos), "train", "val")
    assert (len(data.train), len(data.eval), data.num_classes, data.channels) == (12, 6, 3, 3)
    examples = data.train.__getitems__([11, 0, 5])
    assert [x["label"] for x in examples] == [2, 0, 1]
    assert [x["file_name"] for x in examples] == ["cat/3.png", "ant/0.jpg", "bee/1.JPEG"]
    for example in examples:
        assert example["image"] == (photos / "train" / example["file_name"]).read_bytes()
    assert pickle.loads(pickle.dumps(data.train)).__getitems__([5]) == [examples[2]], "workers get a copy"


def test_a_config_reads_a_folder_with_crops_and_a_bad_image(photos, config):
    """It is replaced in training, and ends an evaluation."""
    config.data.update(name="folder", dir=str(photos), train_split="train", eval_split="val", max_bad_share=0.1)
    config.data.update(crop="inception", eval_crop="central", eval_padding=2, flip=True)
    config.epochs = 4.0
    (photos / "train" / "bee" / "2.JPEG").write_bytes(b"")
    experiment = make_experiment(config)
    assert experiment.image_shape == (8, 8, 3)
    stream, blue = experiment.train_batches(0), np.array([0, 100, 200])
    labels = []
    for _ in range(3):  # four epochs of twelve
        batch = next(stream)
        assert batch.keys() == {"image", "label", "mask"}
        assert batch["image"].shape == (16, 8, 8, 3)
        labels.extend(np.asarray(batch["label"]).tolist())
        error = np.asarray(batch["image"])[..., 2].astype(int) - blue[batch["label"]][:, None, None]
        assert np.abs(error).max() < 5
    assert [labels.count(label) for label in range(3)] == [16, 16, 16], "bee/3.JPEG takes the place of bee/2.JPEG"
    assert sum(float(batch["mask"].sum()) for batch in experiment.eval_batches()) == 6
    (photos / "val" / "cat" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"^example 5 \(cat/1.png\) of the evaluation split is no image"):
        list(experiment.eval_batches())


def test_mistakes_in_a_folder_are_answered_in_a_sentence(photos):
    def sentence(folder=str(photos), split="val"):
        with pytest.raises(UserError) as error:
            datasets.open_dataset("folder", folder, "train", split)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "config.data.dir = '': " not in sentence("/nowhere")
    assert "config.data.dir = '' is no folder" in sentence("")
    assert "config.data.dir = '/nowhere' is no folder" in sentence("/nowhere")
    assert "config.data.eval_split = 'test' is no folder of" in sentence(split="test")
    assert "which has train, val" in sentence(split="val[:1]")
    (photos / "val" / "dog").mkdir()
    assert "has the class 'dog' in only one of 'train' and 'val'" in sentence()
    (photos / "val" / "dog").rmdir()
    (photos / "val" / "bee" / "notes.txt").touch()
    assert "bee/notes.txt is no .jpg, .jpeg or .png" in sentence()
    (photos / "empty" / "ant").mkdir(parents=True)
    (photos / "empty" / "bee").mkdir()
    (photos / "empty" / "cat").mkdir()
    assert "empty holds no images" in sentence(split="empty")


def test_a_file_that_vanishes_is_named(photos):
    data = datasets.open_dataset("folder", str(photos), "train", "val")
    (photos / "val" / "ant" / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"cannot read .*val/ant/1.jpg \(No such file"):
        data.eval.__getitems__([1])


def test_missing_data_is_told_before_a_device_is_asked_for(config, tmp_path, monkeypatch):
    def asked(*_):
        raise AssertionError("a device was asked for")

    for name in ("devices", "process_index", "process_count"):
        monkeypatch.setattr(jax, name, asked)
    config.data.update(name="imagenet2012", dir=str(tmp_path / "data"))
    manual = tmp_path / "data" / "downloads" / "manual"
    with pytest.raises(UserError) as error:
        train.train(config, str(tmp_path / "run"))
    for words in (
        f"is not prepared in {tmp_path}/data/imagenet2012/",
        f"put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (see https://image-net.org/) into {manual} and",
        f'tfds.builder("imagenet2012", data_dir="{tmp_path}/data", file_format="array_record").download_and_prepare()',
    ):
        assert words in str(error.value)
    assert not (tmp_path / "run").exists()
    manual.mkdir(parents=True)
    (manual / "ILSVRC2012_img_train.tar").touch()
    with pytest.raises(UserError, match=r"; put ILSVRC2012_img_val.tar \(see"):
        train.train(config, str(tmp_path / "run"))
    (manual / "ILSVRC2012_img_val.tar").touch()
    with pytest.raises(UserError, match=r"; prepare it with `python -c"):
        train.train(config, str(tmp_path / "run"))
