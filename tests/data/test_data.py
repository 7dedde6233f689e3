"""The order of examples, who reads which, and what happens to pixels."""

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st

from basisnet_jax.data import datasets, pipeline, preprocess
from basisnet_jax.errors import UserError
from basisnet_jax.images import decode
from basisnet_jax.images.crop import WHOLE_IMAGE


class Numbers:
    """Image i is noise of its own, and its label is i."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitems__(self, indices):
        return [{"image": encode(noise(i)), "label": i} for i in indices]


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (6, 5), dtype=np.uint8)


def encode(image):
    return cv2.imencode(".png", image)[1].tobytes()


def train_batches(steps, count=23, start_step=0, source=None, **kwargs):
    settings = {"batch_size": 6, "side": 4, "channels": 1, "num_classes": count, "seed": 0, "threads": 2}
    settings["augmentation"] = preprocess.Augmentation(max_shift=1, crop=preprocess.RandomCrop(0.2, 2.0))
    settings["max_bad_share"] = 0.0
    stream = pipeline.train_batches(source or Numbers(count), start_step=start_step, **{**settings, **kwargs})
    return [next(stream) for _ in range(steps)]


def labels(batches):
    return np.concatenate([batch["label"] for batch in batches])


def test_every_epoch_has_every_example_once_in_an_order_of_its_own():
    stream = labels(train_batches(12))  # 72 positions: three epochs of 23, across batches
    epochs = [stream[i : i + 23] for i in (0, 23, 46)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(23))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert not np.array_equal(stream, labels(train_batches(12, seed=1)))


def test_a_stream_goes_on_from_any_step():
    whole, rest = train_batches(8), train_batches(5, start_step=3)
    for expected, got in zip(whole[3:], rest, strict=True):
        np.testing.assert_equal(got, expected)


@pytest.mark.parametrize("processes", [2, 3])
def test_hosts_together_read_what_one_reads(processes):
    hosts = [train_batches(5, process=p, processes=processes) for p in range(processes)]
    for step, expected in enumerate(train_batches(5)):
        got = {key: np.concatenate([host[step][key] for host in hosts]) for key in expected}
        np.testing.assert_equal(got, expected, err_msg="augmentation must not depend on the number of hosts either")


@settings(max_examples=8, derandomize=True, database=None, deadline=None)
@given(
    st.integers(1, 40),
    st.sampled_from([4, 8, 12]),
    st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(1, 4)), min_size=2, max_size=4),
)
def test_no_example_is_lost_or_repeated_where_the_number_of_hosts_changes(count, batch_size, lives):
    """Each life of a run is (hosts, steps); wherever in an epoch one ends, the next goes on at its step."""
    stream, step = [], 0
    for hosts, steps in lives:
        read = [
            train_batches(steps, count, step, batch_size=batch_size, process=p, processes=hosts) for p in range(hosts)
        ]
        stream.extend(labels([host[number] for number in range(steps) for host in read]))
        step += steps
    assert len(stream) == step * batch_size
    for start in range(0, len(stream), count):
        epoch = stream[start : start + count]
        assert sorted(epoch) == list(range(count)) if len(epoch) == count else len(set(epoch)) == len(epoch)


def test_worker_processes_read_the_same():
    flags.FLAGS.mark_as_parsed()  # grain hands the flags on to its workers
    np.testing.assert_equal(train_batches(3, workers=2), train_batches(3))


@pytest.mark.parametrize(("count", "processes"), [(10, 1), (12, 2), (13, 2), (1, 2)])
def test_evaluation_counts_every_example_once(count, processes):
    hosts = [
        list(
            pipeline.eval_batches(
                Numbers(count),
                batch_size=4,
                side=4,
                channels=1,
                num_classes=count,
                process=p,
                processes=processes,
                threads=2,
            )
        )
        for p in range(processes)
    ]
    assert len({len(host) for host in hosts}) == 1, "hosts must take the same number of steps"
    seen = [
        label
        for host in hosts
        for batch in host
        for label, mask in zip(batch["label"], batch["mask"], strict=True)
        if mask
    ]
    assert sorted(seen) == list(range(count))


def test_digits_are_scikit_learns_in_file_order(config):
    from sklearn.datasets import load_digits

    data = datasets.open_dataset("digits", config.data.dir, "train", "test")
    assert (len(data.train), len(data.eval), data.num_classes, data.channels) == (1297, 500, 10, 1)
    examples = [preprocess.load_eval(x, 8, 1, 10, WHOLE_IMAGE) for x in data.eval.__getitems__(list(range(500)))]
    expected = load_digits()
    # TFDS shuffles what it writes, so images are compared as a set.
    got = sorted((bytes(np.round(x["image"] / 255 * 16).astype(np.uint8)), int(x["label"])) for x in examples)
    assert got == sorted(
        (bytes(i.astype(np.uint8)), int(t)) for i, t in zip(expected.images[-500:], expected.target[-500:], strict=True)
    )


def test_shift_and_flip_move_pixels_and_nothing_else():
    image = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    moves = {
        (dy, dx, flip): np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")[1 - dy :, 1 - dx :][:6, :6][
            :, :: -1 if flip else 1
        ]
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
        for flip in (False, True)
    }
    rng, settings, seen = np.random.default_rng(0), preprocess.Augmentation(flip=True, max_shift=1), set()
    for _ in range(300):
        got = preprocess.augment(image, settings, rng)
        matches = [move for move, expected in moves.items() if np.array_equal(got, expected)]
        assert matches
        seen.add(matches[0])
    assert seen == moves.keys()


def test_rotation_turns_about_the_centre():
    image = np.zeros((9, 9, 1), np.uint8)
    image[4, 4] = 255
    got = preprocess.augment(image, preprocess.Augmentation(max_rotation=45.0), np.random.default_rng(0))
    assert got[4, 4] == 255


def test_a_split_that_is_not_here_stays_one_with_tasks():
    unread = datasets.Dataset(Numbers(5), datasets.SizeOnlySplit(3), ("a",), 1, "numbers")
    data = datasets.with_tasks(unread, "label", 10)
    assert data.eval == datasets.SizeOnlySplit(3)
    assert data.train.__getitems__([2])[0]["task"] == data.train.__getitems__([2])[0]["label"]


def test_mistakes_are_answered_in_a_sentence(config):
    where = config.data.dir
    for name, split, words in (
        ("digitz", "train", "is not a data set of TFDS"),
        ("mnist", "train", "download_and_prepare"),
        ("digits", "trian", "it has train, test"),
        ("digits", "train[:0]", "no examples"),
    ):
        with pytest.raises(UserError, match=words):
            datasets.open_dataset(name, where, split, "test")


class Spoiled(Numbers):
    """Numbers, some of which cannot be used."""

    def __init__(self, count, bad):
        super().__init__(count)
        self.bad = bad  # {index: what stands in its place}

    def __getitems__(self, indices):
        examples = super().__getitems__(indices)
        return [{**x, **self.bad.get(i, {}), "file_name": f"{i}.png"} for i, x in zip(indices, examples, strict=True)]


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_training_examples_are_told_once_and_replaced_by_the_next(workers, caplog):
    flags.FLAGS.mark_as_parsed()
    bad = {3: {"image": b""}, 4: {"label": 23}, 22: {"image": encode(noise(22))[:-20]}}
    got = train_batches(12, source=Spoiled(23, bad), max_bad_share=0.2, workers=workers)
    for batch, expected in zip(got, train_batches(12), strict=True):
        assert batch.keys() == expected.keys(), "what is said of bad examples must not reach the devices"
        replaced = [{3: 5, 4: 5, 22: 0}.get(label, label) for label in expected["label"]]
        np.testing.assert_array_equal(batch["label"], replaced)
        good = batch["label"] == expected["label"]
        np.testing.assert_array_equal(batch["image"][good], expected["image"][good])
    said = [record.getMessage() for record in caplog.records if "bad training example" in record.getMessage()]
    assert len(said) == 3, "once for each, though three epochs met them"
    assert any("example 3 (3.png) is not an image: 0 bytes" in line for line in said)
    assert any("example 4 (4.png) has label 23, which is not in 0 to 22" in line for line in said)


def test_too_many_bad_training_examples_stop_the_run():
    bad = {i: {"image": b"no image"} for i in (3, 4, 5)}
    assert len(train_batches(12, source=Spoiled(23, bad), max_bad_share=3 / 23)) == 12
    with pytest.raises(
        UserError, match=r"^3 of 23 training examples cannot be used, more than config.data.max_bad_share"
    ):
        train_batches(12, source=Spoiled(23, bad), max_bad_share=2.9 / 23)
    with pytest.raises(UserError, match="100 training examples in a row cannot be used"):
        train_batches(1, source=Spoiled(23, {i: {"image": b""} for i in range(23)}), max_bad_share=0.99)


def test_workers_answer_with_the_same_sentence():
    flags.FLAGS.mark_as_parsed()
    with pytest.raises(UserError, match="100 training examples in a row cannot be used"):
        train_batches(1, source=Spoiled(23, {i: {"image": b""} for i in range(23)}), max_bad_share=0.99, workers=1)


@pytest.mark.parametrize("spoil", [{"image": b""}, {"label": -1}])
def test_a_bad_evaluation_example_ends_the_run(spoil):
    batches = pipeline.eval_batches(Spoiled(10, {7: spoil}), batch_size=4, side=4, channels=1, num_classes=10)
    with pytest.raises(UserError, match=r"^example 7 \(7.png\) of the evaluation split .*skips no example") as error:
        list(batches)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("cifar10", (32, 32, 3), 10), ("oxford_iiit_pet", (9, 12, 3), 37), ("fashion_mnist", (28, 28, 1), 10)],
)
def test_stock_builders_are_read(name, shape, classes, tmp_path, monkeypatch):
    """Prepared by TFDS with the builder's own features, from made-up images: the real ones are not to be had here."""
    builder = tfds.builder(name, data_dir=tmp_path, file_format="array_record")
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)

    box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)

    def generate():
        for number, image in enumerate(images):
            example = {"image": image, "label": number, "id": str(number), "file_name": "x.jpg", "species": 0}
            example.update(head_bbox=box, segmentation_mask=image[..., :1])
            yield number, {key: example[key] for key in builder.info.features}

    splits = {"train": generate(), "test": generate()}
    monkeypatch.setattr(type(builder), "_split_generators", lambda self, manager: splits)
    builder.download_and_prepare()
    data = datasets.open_dataset(name, str(tmp_path), "train", "test[:2]")
    assert (data.num_classes, data.channels, len(data.train), len(data.eval)) == (classes, shape[-1], 3, 2)
    for example in data.train.__getitems__(range(3)):
        pixels = decode.decode(example["image"], shape[-1])
        difference = np.abs(pixels.astype(int) - images[int(example["label"])]).mean()
        assert difference == 0 or (name == "oxford_iiit_pet" and difference < 60), "its images are JPEGs"
