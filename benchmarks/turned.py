"""Makes a TFDS data set of Fashion-MNIST in four rotations, with a class per rotation: the harder task of study.py.

    python benchmarks/turned.py [--data_dir FOLDER]    # reads fashion_mnist there, writes fashion_mnist_turned there

Example i is example i // 4 of Fashion-MNIST, turned counterclockwise i % 4 times by 90 degrees; its label is
4 * label + i % 4. So both splits are four times as large, and train[:200000] is made of the first 50,000 images.

Half of the training images are mirrored, and then turned. Do not mirror them again in training (data.flip=False): the
mirror image of an image turned by 90 degrees is one turned by 270.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from basisnet_jax.data import datasets
from basisnet_jax.errors import UserError

TURNS = 4  # of 90 degrees
SEED = 0  # of which training images are mirrored
PIECE = 1000  # images read at once: one at a time takes forty times as long


class FashionMnistTurned(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Turns the images of a data set; the same images give the same examples in the same order."""

    name = "fashion_mnist_turned"
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = epath.Path(__file__).parent  # TFDS takes this file itself for it where it is run as a script

    def __init__(self, source: datasets.Dataset, **kwargs: Any) -> None:
        """Opens the data set, prepared or not.

        Args:
          source: the upright images, of which 'train' and 'test' are made.
          **kwargs: `data_dir` and the rest of what TFDS's builders take.
        """
        self._source = source
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        names = [f"{name} turned by {90 * turns}" for name in self._source.classes for turns in range(TURNS)]
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, self._source.channels), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=names),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        mirrored = np.random.default_rng(SEED).random(len(self._source.train)) < 0.5
        return {
            "train": self._generate_examples(self._source.train, mirrored),
            "test": self._generate_examples(self._source.eval, np.zeros(len(self._source.eval), bool)),
        }

    def _generate_examples(
        self, source: Sequence[dict[str, Any]], mirrored: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        pieces = (range(start, min(start + PIECE, len(source))) for start in range(0, len(source), PIECE))
        for index, example in enumerate(example for piece in pieces for example in source.__getitems__(piece)):
            image = cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_UNCHANGED)
            image = image[:, ::-1] if mirrored[index] else image
            for turns in range(TURNS):
                encoded = cv2.imencode(".png", np.ascontiguousarray(np.rot90(image, turns)))[1].tobytes()
                yield TURNS * index + turns, {"image": encoded, "label": TURNS * int(example["label"]) + turns}


def main() -> int:
    """Runs the command line; returns 2 if Fashion-MNIST is not prepared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="", help="where TFDS keeps prepared data (default: TFDS's own)")
    options = parser.parse_args()
    try:
        source = datasets.open_dataset("fashion_mnist", options.data_dir, "train", "test")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    builder = FashionMnistTurned(source, data_dir=options.data_dir or None)
    builder.download_and_prepare()
    print(f"{builder.data_dir} holds {', '.join(f'{x.num_examples:,} {x.name}' for x in builder.info.splits.values())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
