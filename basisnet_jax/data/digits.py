"""The embedded data set: scikit-learn's handwritten digits as a TFDS builder.

1,797 gray images of 8x8 pixels and 17 levels, from the scikit-learn wheel (UCI's test set of optical recognition of
handwritten digits). In the file's order, the last 500 are 'test' and the 1,297 before them 'train'.
"""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

TEST_EXAMPLES = 500


class Digits(tfds.core.GeneratorBasedBuilder):
    """The digits as a TFDS builder: prepared in seconds without a network, read without TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None  # no files beside the code to read

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        from sklearn.datasets import load_digits

        digits = load_digits()
        images, labels = np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target
        return {
            "train": self._generate_examples(images[:-TEST_EXAMPLES], labels[:-TEST_EXAMPLES]),
            "test": self._generate_examples(images[-TEST_EXAMPLES:], labels[-TEST_EXAMPLES:]),
        }

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            # Encoded here, since TFDS would import TensorFlow to encode it.
            encoded = cv2.imencode(".png", image)[1].tobytes()
            yield index, {"image": encoded, "label": int(label)}
