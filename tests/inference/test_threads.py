"""A trained model is called by several threads at once: its jitted stages answer each with its own."""

import concurrent.futures

import numpy as np

from basisnet_jax.inference import TwoStageClassifier


def test_threads_that_share_a_trained_model_get_their_own_answers(trained):
    classifier = TwoStageClassifier.from_checkpoint(str(trained), threshold=0.5)
    shape = (8, classifier.side, classifier.side, classifier.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = [classifier.classify(images[start:]) for start in range(8)]  # also compiles all sizes

    def is_right(number):
        answers = classifier.classify(images[number % 8 :])
        return all(map(np.array_equal, answers, expected[number % 8]))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(is_right, range(40)))
