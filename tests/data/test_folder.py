"""Folders of images as data sets, and what is said of data that is not there, before a device is asked for."""

import collections
import os
import pickle
import shutil

import cv2
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from basisnet_jax.config import validate
from basisnet_jax.data import datasets, folder
from basisnet_jax.errors import UserError
from basisnet_jax.experiment import cost_table
from basisnet_jax.experiment.run import make_experiment
from basisnet_jax.export import card, package
from basisnet_jax.images import files
from basisnet_jax.inference import cache_teacher
from basisnet_jax.loop import train
from basisnet_jax.serving.manifest import Accuracy, Data, Top1
from tests.conftest import save_untrained


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
    with pytest.raises(UserError, match=r"^example 5 \(cat/1.png\) of the evaluation split is not an image"):
        list(experiment.eval_batches())


def test_mistakes_in_a_folder_are_answered_in_a_sentence(photos):
    def sentence(folder=str(photos), split="val"):
        with pytest.raises(UserError) as error:
            datasets.open_dataset("folder", folder, "train", split)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "config.data.dir = '': " not in sentence("/nowhere")
    assert "config.data.dir = '' is not a folder" in sentence("")
    assert "config.data.dir = '/nowhere' is not a folder" in sentence("/nowhere")
    assert "config.data.eval_split = 'test' is not a folder in" in sentence(split="test")
    assert "which has train, val" in sentence(split="val[:1]")
    (photos / "val" / "dog").mkdir()
    assert "has the class 'dog' in only one of 'train' and 'val'" in sentence()
    (photos / "val" / "dog").rmdir()
    (photos / "val" / "bee" / "notes.txt").touch()
    assert "bee/notes.txt is not one of .jpg, .jpeg, .jfif, .png, .gif, .webp, .bmp; convert it" in sentence()
    (photos / "val" / "bee" / "notes.txt").unlink()
    (photos / "val" / "bee" / "more.jpg").mkdir()
    assert "bee/more.jpg is a folder" in sentence()
    (photos / "val" / "bee" / "more.jpg").rmdir()
    (photos / "val" / "lost.JPG").touch()
    assert "val/lost.JPG is not in a class folder" in sentence()
    (photos / "val" / "lost.JPG").unlink()
    (photos / "val" / "readme.txt").touch()
    datasets.open_dataset("folder", str(photos), "train", "val")
    (photos / "empty" / "ant").mkdir(parents=True)
    (photos / "empty" / "bee").mkdir()
    (photos / "empty" / "cat").mkdir()
    assert "empty holds no images" in sentence(split="empty")


def test_what_the_system_puts_beside_images_is_skipped(photos, caplog):
    before = datasets.open_dataset("folder", str(photos), "train", "val")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", ".hidden.jpg", "._1.jpg"):
        (photos / "train" / "ant" / name).write_bytes(b"no image")
    (photos / "train" / ".cache").mkdir()
    (photos / "train" / "ant" / ".cache").mkdir()
    data = datasets.open_dataset("folder", str(photos), "train", "val")
    assert data == before
    assert [x.getMessage() for x in caplog.records] == [
        f"{photos}/train: 2 files named thumbs.db or desktop.ini are skipped"
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tab\tname", r"class folder 'tab\tname' of"),
        ("line\nname", r"class folder 'line\nname' of"),
        ("red\x1b[31m", r"class folder 'red\x1b[31m' of"),
        (b"\xffatin-1", r"class folder '\udcffatin-1' of"),
        ("n" * 101, "has a name of 101 characters; rename it with at most 100"),
    ],
)
def test_a_class_name_that_cannot_be_printed_is_refused(photos, name, words):
    for split in ("train", "val"):
        os.rename(photos / split / "ant", os.path.join(os.fsencode(photos / split), os.fsencode(name)))
    with pytest.raises(UserError) as error:
        datasets.open_dataset("folder", str(photos), "train", "val")
    assert words in str(error.value)
    assert "rename it" in str(error.value)
    assert "\n" not in str(error.value)


def test_class_names_in_any_script_are_taken(photos):
    names = ("n" * 100, "\N{CJK UNIFIED IDEOGRAPH-732B}", "\N{DOG FACE}\N{ZERO WIDTH JOINER}$x$")
    for split in ("train", "val"):
        for old, new in zip(("ant", "bee", "cat"), names, strict=True):
            (photos / split / old).rename(photos / split / new)
    assert datasets.open_dataset("folder", str(photos), "train", "val").classes == names


def test_the_data_set_is_called_as_its_folder(photos, tmp_path, monkeypatch):
    data = datasets.open_dataset("folder", f"{photos}/", "train", "val")
    facts = {"name": photos.name, "classes": ("ant", "bee", "cat"), "channels": 3, "train_examples": 12}
    assert data.facts() == {**facts, "identity": data.train.identity()}
    monkeypatch.chdir(photos)
    assert datasets.open_dataset("folder", ".", "train", "val").name == photos.name
    assert folder.name_of("/photos/line\nname") == "line\\nname"


def test_manifest_and_card_name_the_folder_and_the_orientation(photos, config, tmp_path):
    config.data.update(name="folder", dir=str(photos), eval_split="val", exif_orientation=False)
    config.epochs = 20.0
    (tmp_path / "run").mkdir()
    save_untrained(config, tmp_path / "run")
    opened, network = package.open_network(config, str(tmp_path / "run"))
    manifest = package.describe(opened, network, {}, {}, Accuracy("none", {"jax": Top1(0.5)}))
    assert manifest.data == Data(photos.name, "train")
    assert manifest.input.exif_orientation == "ignored"
    text = card.model_card(manifest, opened.classes)
    assert f"\n# tiny for {photos.name}\n" in text
    assert "EXIF orientation: ignored." in text


@pytest.fixture
def unsplit(photos):
    """Three classes of 10, 5 and 2 images, in no splits."""
    for name, count in (("ant", 10), ("bee", 5), ("cat", 2)):
        (photos / "all" / name).mkdir(parents=True)
        for number in range(count):
            (photos / "all" / name / f"{number}.jpg").write_bytes(b"")
    return photos / "all"


def test_a_folder_without_splits_is_split_by_a_share_of_each_class(unsplit):
    data = datasets.open_dataset("folder", str(unsplit), "train", "test", 0.2)
    train, test = ([data_file.split("/") for data_file in split.files] for split in (data.train, data.eval))
    assert collections.Counter(name for name, _ in train) == {"ant": 8, "bee": 4, "cat": 1}
    assert collections.Counter(name for name, _ in test) == {"ant": 2, "bee": 1, "cat": 1}
    assert len({*map(tuple, train + test)}) == 17, "every image is in one of the two"
    assert [data.classes[label] for label in data.train.labels] == [name for name, _ in train]
    assert datasets.open_dataset("folder", str(unsplit), "train", "test", 0.2) == data, "always the same"
    assert datasets.open_dataset("folder", str(unsplit), "test", "train", 0.2).train == data.eval
    (unsplit / "ant" / "new.jpg").touch()
    grown = datasets.open_dataset("folder", str(unsplit), "train", "test", 0.2)
    assert len({*data.eval.files} - {*grown.eval.files}) <= 1, "a new image moves one other at most"


def test_mistakes_in_a_folder_without_splits_are_answered_in_a_sentence(unsplit):
    def sentence(split="test", share=0.2):
        with pytest.raises(UserError) as error:
            datasets.open_dataset("folder", str(unsplit), "train", split, share)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert (
        f"config.data.train_split = 'train' is not a folder in {unsplit}, which has class folders without splits "
        "(ant, bee, cat); --config.data.eval_share=0.2 keeps a fifth" in sentence(share=0.0)
    )
    assert "'val': with config.data.eval_share it must be 'train' or 'test'" in sentence(split="val")
    (unsplit / "cat" / "0.jpg").unlink()
    assert f"{unsplit}/cat holds one image, which cannot be in both splits" in sentence()
    (unsplit / "cat" / "1.jpg").unlink()
    assert f"the class folder {unsplit}/cat holds no images" in sentence()


def test_eval_share_is_for_a_folder(config):
    config.data.eval_share = 0.2
    with pytest.raises(UserError, match=r"config.data.eval_share = 0.2: is for data.name 'folder'; slice a TFDS split"):
        validate(config)


def test_a_class_without_training_images_is_refused(photos):
    for number in range(4):
        (photos / "train" / "bee" / f"{number}.JPEG").unlink()
    with pytest.raises(UserError, match=r"class folder .*train/bee holds no images; fill it, or remove it"):
        datasets.open_dataset("folder", str(photos), "train", "val")


def test_one_class_is_refused_wherever_it_is_known(photos, config, tmp_path):
    for split in ("train", "val"):
        for name in ("bee", "cat"):
            shutil.rmtree(photos / split / name)
    config.data.update(name="folder", dir=str(photos), eval_split="val")
    words = r"has 1 class \(ant\), but a classifier needs at least 2 classes; choose a data set"
    with pytest.raises(UserError, match=words):
        train.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=words):
        cost_table.cost(config, str(tmp_path / "run"))
    with pytest.raises(UserError, match=words):
        make_experiment(config, open_dataset=datasets.describe_dataset)
    config.distill.update(teacher="efficientnet_lite0", cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=words):
        cache_teacher.cache_logits(config)
    config.distill.update(teacher="", cache="")
    one = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["a"])})
    with pytest.raises(UserError, match=r"has 1 class \(a\)"):
        datasets.check_classes("one", one["label"].names)


def test_images_are_found_below_a_folder(photos, monkeypatch, caplog):
    (photos / "train" / "bee" / "Thumbs.db").touch()
    (photos / "train" / ".trash").mkdir()
    (photos / "train" / ".trash" / "1.jpg").touch()
    (photos / "train" / "notes.txt").touch()
    monkeypatch.chdir(photos)
    expected = [f"train/{x}" for x in sorted(datasets.open_dataset("folder", ".", "train", "val").train.files)]
    for given in ("train", "train/"):
        found = files.find_images(given, "images")
        assert [os.path.normpath(x) for x in found] == expected
    skipped = [x.getMessage() for x in caplog.records if "not images" in x.getMessage()]
    assert skipped == [
        "train: 4 files that are not images are skipped",
        "train/: 4 files that are not images are skipped",
    ]
    (photos / "val" / "notes.txt").touch()
    files.find_images("val", "images")
    assert caplog.records[-1].getMessage() == "val: 1 file that is not an image is skipped"
    assert files.find_images("train/*/*.jp*g", "images") == files.find_images("train/**/*.jp*g", "images")
    assert files.find_images("train/bee/*", "images") == [f"train/bee/{x}.JPEG" for x in range(4)]
    (photos / "empty").mkdir()
    for pattern, words in (
        ("empty", "--images = 'empty' is a folder without images"),
        ("t*", "--images = 't.' matches only folders"),
        ("nowhere", "--images = 'nowhere' matches no files; quote the pattern"),
    ):
        with pytest.raises(UserError, match=words):
            files.find_images(pattern, "images")


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
