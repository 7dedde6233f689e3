"""The order of examples, who reads which, and what happens to pixels."""

import cv2
import numpy as np
import pytest
from absl import flags

from basisnet_jax.data import datasets, pipeline, preprocess
from basisnet_jax.errors import UserError


class Numbers:
    """Image i is all i, and so is its label."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitems__(self, indices):
        return [{"image": encode(np.full((4, 4), i, np.uint8)), "label": i} for i in indices]


def encode(image):
    return cv2.imencode(".png", image)[1].tobytes()


def train_batches(steps, count=23, start_step=0, **kwargs):
    settings = {"batch_size": 6, "side": 4, "channels": 1, "seed": 0, "threads": 2}
    settings["augmentation"] = preprocess.Augmentation(max_shift=1)
    stream = pipeline.train_batches(Numbers(count), start_step=start_step, **{**settings, **kwargs})
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


def test_worker_processes_read_the_same():
    flags.FLAGS.mark_as_parsed()  # grain hands the flags on to its workers
    np.testing.assert_equal(train_batches(3, workers=2), train_batches(3))


@pytest.mark.parametrize(("count", "processes"), [(10, 1), (12, 2), (13, 2), (1, 2)])
def test_evaluation_counts_every_example_once(count, processes):
    hosts = [
        list(
            pipeline.eval_batches(
                Numbers(count), batch_size=4, side=4, channels=1, process=p, processes=processes, threads=2
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
    examples = [preprocess.load(x, 8, 1) for x in data.eval.__getitems__(list(range(500)))]
    expected = load_digits()
    # TFDS shuffles what it writes, so images are compared as a set.
    got = sorted((bytes(np.round(x["image"] / 255 * 16).astype(np.uint8)), int(x["label"])) for x in examples)
    assert got == sorted(
        (bytes(i.astype(np.uint8)), int(t)) for i, t in zip(expected.images[-500:], expected.target[-500:], strict=True)
    )


def test_decode_gives_rgb_and_refuses_what_is_no_image():
    rgb = np.zeros((5, 7, 3), np.uint8)
    rgb[..., 0] = 200
    np.testing.assert_equal(preprocess.decode(encode(rgb[..., ::-1]), 3), rgb)
    for bad in (b"", b"no image", encode(rgb)[:30]):
        with pytest.raises(ValueError, match="no image"):
            preprocess.decode(bad, 3)


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


def test_mistakes_are_answered_in_a_sentence(config):
    where = config.data.dir
    for name, split, words in (
        ("digitz", "train", "is no data set of TFDS"),
        ("mnist", "train", "download_and_prepare"),
        ("digits", "trian", "it has train, test"),
        ("digits", "train[:0]", "no examples"),
    ):
        with pytest.raises(UserError, match=words):
            datasets.open_dataset(name, where, split, "test")
