"""TFDS's own imagenet2012, prepared from a miniature of the official archives and read by our pipeline."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from basisnet_jax.experiment.run import make_experiment
from benchmarks import miniature_imagenet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    assert miniature_imagenet.write(folder, train=2, validation=1, side=40)[0] > 3 + 2 * 3
    tfds.builder("imagenet2012", data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_the_stock_builder_is_read_odd_files_included(folder, config):
    """Every training image is decoded to three channels, and shows what its label says: the photographs differ."""
    config.data.update(name="imagenet2012", dir=str(folder), train_split="train", eval_split="train", eval_crop="none")
    config.model.specialist.resolution = 32
    config.epochs = 9.0
    experiment = make_experiment(config)
    assert experiment.data.num_classes == 1000
    batches = list(experiment.eval_batches())
    images, labels, masks = (np.concatenate([batch[key] for batch in batches]) for key in ("image", "label", "mask"))
    images, labels = images[masks > 0].astype(float), labels[masks > 0]
    assert images.shape[1:] == (32, 32, 3)
    names = experiment.data.train.source.dataset_info.features["label"].int2str
    synsets = [names(int(label)) for label in labels]
    assert len(synsets) == len(experiment.data.train)
    assert {"n03877845", "n11939491", "n02447366", "n02105855"} <= set(synsets)
    palace, daisy = (images[[x == synset for x in synsets]].mean((0, 1, 2)) for synset in ("n03877845", "n11939491"))
    assert palace[2] > palace[0], "sky"
    assert daisy[0] > daisy[2], "petals"
    odd = [image for image, x in zip(images, synsets, strict=True) if x in ("n02447366", "n02105855")]
    gray = [np.ptp(image, axis=-1).max() == 0 for image in odd]
    assert sorted(gray) == [False, False, True]
    assert all(image.std() > 10 for image in odd)


def test_validation_has_the_official_labels(folder, config):
    config.data.update(name="imagenet2012", dir=str(folder), train_split="train", eval_split="validation")
    config.data.eval_crop = "central"
    config.epochs = 9.0
    experiment = make_experiment(config)
    labels = np.concatenate([batch["label"][np.asarray(batch["mask"]) > 0] for batch in experiment.eval_batches()])
    names = experiment.data.eval.source.dataset_info.features["label"].int2str
    assert sorted(names(int(label)) for label in labels) == sorted(
        synset
        for synset, (package, _) in miniature_imagenet.PHOTOGRAPHS.items()
        if miniature_imagenet._installed(package)
    )
