"""Both stages at once: the answers, their order and the exceptions are those of one image after the other."""

import dataclasses
import threading

import numpy as np
import pytest

from basisnet_jax.errors import UserError
from basisnet_jax.runtime import TwoStageClassifier, TwoStagePipeline
from basisnet_jax.serving import zoo
from basisnet_jax.serving.exit_rule import ExitRule


@pytest.fixture(scope="module")
def classifier():
    return TwoStageClassifier.from_export(zoo.folder_of("digits"))


@pytest.fixture(scope="module")
def batches():
    return np.random.default_rng(0).integers(0, 256, (30, 2, 24, 24, 1), np.uint8)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("ahead", [1, 4, 100])
def test_answers_are_those_of_classify_in_order(classifier, batches, share, ahead):
    confidence = classifier.rule.confidence(np.concatenate([classifier.preview_stage(x).logits_BxK for x in batches]))
    rule = dataclasses.replace(classifier.rule, threshold=float(np.quantile(confidence, 1 - share)) - 1e-9)
    used = dataclasses.replace(classifier, rule=rule if share else ExitRule())
    expected = [used.classify(x) for x in batches]
    assert np.mean([x.exited_early for x in expected]) == pytest.approx(share, abs=0.02)
    with TwoStagePipeline(used) as pipeline:
        got = list(pipeline.map(iter(batches), ahead))
    assert len(got) == len(expected)
    for answers, others in zip(got, expected, strict=True):
        for field, other in zip(answers, others, strict=True):
            np.testing.assert_array_equal(field, other)


def test_an_image_that_exits_passes_one_that_waits(classifier, batches):
    """The specialist is held up; the preview goes on, and what exits is answered."""
    free = threading.Event()

    def held(*arrays):
        free.wait(60)
        return classifier.second_stage(*arrays)

    surest = classifier.preview_stage(batches[0]).logits_BxK * 0 + np.eye(10)[0] * 50
    first = {0: surest * 0, 1: surest}  # by the first pixel
    coefficients = classifier.preview_stage(batches[0]).coefficients_BxLxN
    staged = dataclasses.replace(
        classifier,
        first_stage=lambda images: [first[int(images[0, 0, 0, 0])], coefficients],
        second_stage=held,
        rule=ExitRule(threshold=0.9),
    )
    with TwoStagePipeline(staged) as pipeline:
        waits, exits = (pipeline.submit(np.full((2, 24, 24, 1), x, np.uint8)) for x in (0, 1))
        assert exits.result(60).exited_early.all()
        assert not waits.done()
        free.set()
        assert not waits.result(60).exited_early.any()


def test_an_error_is_of_its_images_alone(classifier, batches):
    with TwoStagePipeline(classifier) as pipeline:
        wrong, right = pipeline.submit(batches[0][:, :8]), pipeline.submit(batches[0])
        with pytest.raises(UserError, match="do not fit; resize them"):
            wrong.result(60)
        np.testing.assert_array_equal(right.result(60).labels, classifier.classify(batches[0]).labels)


def test_eight_threads_get_their_own_answers(classifier, batches):
    expected = [classifier.classify(x) for x in batches]
    wrong = []

    def ask(number):
        for _ in range(5):
            for batch, answers in zip(batches[number::8], expected[number::8], strict=True):
                wrong.extend(np.flatnonzero(classifier.classify(batch).probabilities != answers.probabilities))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
