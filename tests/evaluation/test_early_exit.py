"""Confidence, calibration and the early-termination table against plain loops."""

import dataclasses
import math

import numpy as np
import pytest

from basisnet_jax.errors import UserError
from basisnet_jax.evaluation import calibration, early_exit
from basisnet_jax.models.cost import Cost, Layer
from basisnet_jax.serving import exit_curve, exit_rule
from basisnet_jax.serving.exit_rule import ExitRule

COST = Cost((Layer("preview/a", 10, 0), Layer("synthesis/a", 30, 0), Layer("specialist/a", 60, 0)))


@pytest.fixture
def images():
    """(preview logits, logits, labels) of 200 images, five classes; the specialist is right more often."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 200).astype(np.int32)
    truth = np.eye(5)[labels]
    preview = (2.0 * truth + rng.normal(size=(200, 5))).astype(np.float32)
    return preview, (4.0 * truth + rng.normal(size=(200, 5))).astype(np.float32), labels


def softmax(logits, temperature=1.0):
    powers = [math.exp(float(x) / temperature) for x in logits]
    return [x / sum(powers) for x in powers]


def test_confidence_is_what_its_name_says(images):
    for logits in images[0][:20]:
        ordered = sorted(softmax(logits, 1.7))
        expected = {
            "probability": ordered[-1],
            "margin": ordered[-1] - ordered[-2],
            "entropy": 1 + sum(p * math.log(p) for p in ordered) / math.log(5),
        }
        assert set(expected) == set(exit_rule.CRITERIA)
        for criterion, value in expected.items():
            got = ExitRule(criterion, 1.7).confidence(logits[None])
            assert got.item() == pytest.approx(value, rel=1e-9), criterion


def test_no_confidence_reaches_never_and_all_reach_zero():
    logits = np.array([[0.0, 0.0, 0.0], [1000.0, 0.0, 0.0]], np.float32)
    for criterion in exit_rule.CRITERIA:
        assert not ExitRule(criterion, threshold=exit_rule.NEVER).exits(logits).any()
        assert ExitRule(criterion, threshold=0.0).exits(logits).all()


def test_ece_is_the_mean_distance_of_confidence_and_accuracy(images):
    preview, _, labels = images
    bins = [[] for _ in range(calibration.BINS)]
    for logits, label in zip(preview, labels, strict=True):
        probabilities = softmax(logits)
        confidence = max(probabilities)
        bins[min(int(confidence * len(bins)), len(bins) - 1)].append(
            (confidence, probabilities.index(confidence) == label)
        )
    expected = sum(abs(sum(c for c, _ in b) - sum(r for _, r in b)) for b in bins) / len(labels)
    right = (preview.argmax(-1) == labels).astype(np.float64)
    found = calibration.reliability(preview, right)
    assert found.ece == pytest.approx(expected)
    assert found.count.tolist() == [len(b) for b in bins]


def test_the_fitted_temperature_has_the_least_cross_entropy(images):
    preview, _, labels = images
    fitted = calibration.fit_temperature(preview, labels)

    def loss(temperature):
        return -np.mean([math.log(softmax(x, temperature)[y]) for x, y in zip(preview, labels, strict=True)])

    grid = np.geomspace(0.2, 5.0, 400)
    assert fitted == pytest.approx(grid[np.argmin([loss(t) for t in grid])], rel=0.02)
    # Logits that are three times too large are told by a temperature that is.
    assert calibration.fit_temperature(3 * preview, labels) == pytest.approx(3 * fitted, rel=1e-3)


def test_the_simulated_curve_is_what_a_loop_over_images_gives(images):
    preview, logits, labels = images
    rule = ExitRule("margin", 1.3)
    confidence = np.round(rule.confidence(preview), 2)  # with ties
    right = [(x.argmax(-1) == labels).astype(np.float64) for x in (preview, logits)]
    thresholds = exit_curve.all_thresholds(confidence)
    curve = exit_curve.simulate(confidence, *right, COST, thresholds)
    for index, threshold in enumerate(thresholds):
        exits, correct, madds = 0, 0, 0
        for image in range(len(labels)):
            exit_here = confidence[image] >= threshold
            exits += exit_here
            correct += right[0 if exit_here else 1][image]
            madds += 10 if exit_here else 100
        got = curve.point(index)
        assert got["exit_rate"] == pytest.approx(exits / 200)
        assert got["top1"] == pytest.approx(correct / 200)
        assert got["madds"] == pytest.approx(madds / 200)
    assert curve.exit_rate[0] == 0
    assert curve.exit_rate[-1] == 1
    assert len(curve.threshold) == len(set(confidence)) + 1
    area = sum(
        (curve.exit_rate[i + 1] - curve.exit_rate[i]) * (curve.top1[i + 1] + curve.top1[i]) / 2
        for i in range(len(thresholds) - 1)
    )
    assert curve.mean_top1 == pytest.approx(area)


def test_chosen_thresholds_meet_what_was_asked(images):
    preview, logits, labels = images
    right = [(x.argmax(-1) == labels).astype(np.float64) for x in (preview, logits)]
    for candidate in early_exit.candidates(preview, labels, *right, COST):
        curve = candidate.chosen_on
        index = exit_curve.at_most_madds(curve, 70.0, "config.eval.madds_target")
        assert curve.madds[index] <= 70.0 < curve.madds[index - 1]
        index = exit_curve.at_most_drop(curve, 0.02)
        assert curve.top1[index] >= curve.top1[0] - 0.02 - 1e-9
        assert not any(top1 >= curve.top1[0] - 0.02 for top1 in curve.top1[index + 1 :])
    with pytest.raises(UserError, match="less than the preview alone costs"):
        exit_curve.at_most_madds(curve, 9.0, "config.eval.madds_target")


def test_figures_are_of_the_half_that_nothing_was_chosen_on(images):
    preview, logits, labels = images
    reported = exit_curve.reported_half(200)
    assert reported.sum() == 100
    np.testing.assert_array_equal(reported, exit_curve.reported_half(200))
    right = [(x.argmax(-1) == labels).astype(np.float64) for x in (preview, logits)]
    before = early_exit.candidates(preview, labels, *right, COST)
    assert [c.temperature for c in before] == [1.0] * 3 + [
        calibration.fit_temperature(preview[~reported], labels[~reported])
    ] * 3
    # Labels and answers of the reported half change no threshold, no temperature and nothing of the other half.
    worse = [np.where(reported, 0.0, x) for x in right]
    after = early_exit.candidates(preview, np.where(reported, 0, labels), *worse, COST)
    for a, b in zip(before, after, strict=True):
        assert a.temperature == b.temperature
        for name in vars(a.chosen_on):
            np.testing.assert_array_equal(getattr(a.chosen_on, name), getattr(b.chosen_on, name))
        assert b.reported_on.top1.max() == 0
        expected = dataclasses.replace(a.rule(7)).exits(preview[reported]).mean()
        assert a.reported_on.exit_rate[7] == pytest.approx(expected)


def test_one_image_cannot_be_halved():
    with pytest.raises(UserError, match="holds 1 image"):
        exit_curve.reported_half(1)
