"""Measures CPU time per image of the input pipeline, and of tf.data's fused decode-and-crop on the same JPEGs.

    python benchmarks/input_pipeline.py [--json input_pipeline.json]

Each system reads 500 x 375 JPEGs of about 100 KB from memory, takes Inception's crop, resizes it to 224 and flips
half of them; two systems apply AutoAugment as well. Each runs in its own process, and they take turns. A turn's time is
the user and system time of the process and its children from one idle state to the next, so prefetched images count
exactly once.
"""

import argparse
import multiprocessing
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import cv2
import numpy as np
import timing

SIDE, HEIGHT, WIDTH, BATCH = 224, 375, 500, 64
MIN_AREA, MAX_ASPECT = 0.08, 4 / 3
# name: (threads, worker processes, policy) of the project's pipeline, for one core each; None is tf.data
SYSTEMS = {
    "tf.data": None,
    "threads": (2, 0, "none"),
    "workers": (1, 2, "none"),
    "threads, AutoAugment": (2, 0, "autoaugment"),
    "workers, AutoAugment": (1, 2, "autoaugment"),
}


def make_jpegs(count: int) -> list[bytes]:
    """Parts of scikit-learn's two photographs, with the grain that brings them to ImageNet's mean size."""
    from sklearn.datasets import load_sample_image

    photos, rng, jpegs = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")], np.random.default_rng(0), []
    for number in range(count):
        photo = photos[number % 2]
        height = int(rng.integers(280, 427))
        width = height * WIDTH // HEIGHT
        top, left = rng.integers(photo.shape[0] - height + 1), rng.integers(photo.shape[1] - width + 1)
        image = cv2.resize(photo[top : top + height, left : left + width], (WIDTH, HEIGHT)).astype(np.float32)
        image = np.clip(image + rng.normal(0, 15, image.shape), 0, 255).astype(np.uint8)
        jpegs.append(cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    return jpegs


class Memory:
    """JPEGs as a source of the pipeline, over and over: as many examples as ImageNet has."""

    def __init__(self, jpegs: list[bytes]) -> None:
        self.jpegs = jpegs

    def __len__(self) -> int:
        return 1_281_167  # grain's shuffle is slow on a set of a hundred

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [{"image": self.jpegs[index % len(self.jpegs)], "label": 0} for index in indices]


def our_batches(jpegs: list[bytes], threads: int, workers: int, policy: str) -> Iterator[Any]:
    """Yields the batches that training reads."""
    from absl import flags

    from basisnet_jax.data import pipeline, preprocess

    flags.FLAGS.mark_as_parsed()  # grain hands the flags on to its workers
    return pipeline.train_batches(
        Memory(jpegs),
        batch_size=BATCH,
        side=SIDE,
        channels=3,
        num_classes=1,
        augmentation=preprocess.Augmentation(
            flip=True, crop=preprocess.RandomCrop(MIN_AREA, MAX_ASPECT), policy=policy
        ),
        max_bad_share=0.0,
        seed=0,
        start_step=0,
        threads=threads,
        workers=workers,
    )


def tf_data_batches(jpegs: list[bytes], threads: int) -> Iterator[Any]:
    """Yields the same from tf.data, as the MobileNet and MnasNet trainers have it: crop and decoding fused."""
    import tensorflow as tf

    def prepare(encoded: Any) -> Any:
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(encoded),
            tf.constant([0.0, 0.0, 1.0, 1.0], shape=[1, 1, 4]),
            min_object_covered=0.0,
            aspect_ratio_range=(1 / MAX_ASPECT, MAX_ASPECT),
            area_range=(MIN_AREA, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
        image = tf.image.resize(image, (SIDE, SIDE))
        return tf.cast(tf.image.random_flip_left_right(image), tf.uint8)

    data = tf.data.Dataset.from_tensor_slices(jpegs).repeat().shuffle(len(jpegs))
    data = data.map(prepare, num_parallel_calls=threads).batch(BATCH, drop_remainder=True).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    return data.with_options(options).as_numpy_iterator()


def cpu_seconds() -> float:
    """Returns User and system time of this process and its living children, so far."""
    own = os.times()
    total, ticks = own.user + own.system, os.sysconf("SC_CLK_TCK")
    for child in multiprocessing.active_children():
        fields = pathlib.Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def serve(connection: Connection, make: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> None:
    """Runs one system: for each number of batches received, reads them and answers with the CPU seconds they took."""
    batches = make(*arguments)
    next(batches)
    while count := connection.recv():
        idle()
        before = cpu_seconds()
        for _ in range(count):
            next(batches)
        idle()
        connection.send(cpu_seconds() - before)
    del batches  # ends its threads and worker processes
    idle()  # the last batch's shared memory is freed by a thread


def idle() -> None:
    """Waits until prefetching has filled its buffers."""
    before = -1.0
    while (now := cpu_seconds()) - before > 0.02:
        before = now
        time.sleep(0.5)


def measure(jpegs: list[bytes], systems: Sequence[str], rounds: int, batches: int) -> dict[str, Any]:
    """Milliseconds of CPU an image, {system: [one for each round]}; the systems take turns in each round."""
    context, connections = multiprocessing.get_context("spawn"), {}
    for system in systems:
        connections[system], end = context.Pipe()
        ours = SYSTEMS[system]
        make, arguments = (our_batches, (jpegs, *ours)) if ours else (tf_data_batches, (jpegs, 2))
        context.Process(target=serve, args=(end, make, arguments)).start()
    times: dict[str, list[float]] = {system: [] for system in systems}
    for number in range(rounds + 1):
        for system, connection in connections.items():
            connection.send(batches)
            seconds = connection.recv()
            if number:  # the first round warms up
                times[system].append(1e3 * seconds / (batches * BATCH))
    for connection in connections.values():
        connection.send(0)
    return times


def main() -> None:
    """Prints a table; writes all turns as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=8, help=f"batches of {BATCH} images per turn")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()

    jpegs = make_jpegs(128)
    times = measure(jpegs, options.systems, options.rounds, options.batches)
    result: dict[str, Any] = {
        "images": f"{len(jpegs)} of {WIDTH} x {HEIGHT}, {np.mean([len(x) for x in jpegs]) / 1e3:.0f} KB on average",
        "machine": timing.machine(),
        "rounds": options.rounds,
        "systems": {},
    }
    print(f"{result['images']}; {result['machine']}; medians of {options.rounds} rounds")
    print(f"{'system':22}{'CPU ms an image':>17}{'images/s a core':>17}{'over tf.data':>14}")
    for system, values in times.items():
        over = timing.ratio(times, system, "tf.data" if "tf.data" in times else system)
        median = statistics.median(values)
        result["systems"][system] = {"cpu_ms": median, "over_tf_data": over, "all_ms": values}
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(f"{system:22}{median:17.3f}{1e3 / median:17.0f}{over:14.2f}   {spread}")
    timing.write_json(options.json, result)


if __name__ == "__main__":
    main()
