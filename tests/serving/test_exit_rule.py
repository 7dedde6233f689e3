"""A rule knows what it was chosen with: it is used there, warned of on other images, refused with other weights."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from etils import epath

from basisnet_jax.errors import UserError
from basisnet_jax.evaluation.of_run import evaluate_run
from basisnet_jax.export import package
from basisnet_jax.inference.trained_run import open_trained, rule_of
from basisnet_jax.serving.exit_rule import CRITERIA, NEVER, ChosenRule, ExitRule, Point, Provenance, threshold_rule

PROVENANCE = Provenance(100, "best", True, 8, "digits", "test", "none", 0, True)
CHOSEN = ChosenRule(
    ExitRule("margin", 1.5, 0.7), "madds_target=5e5", PROVENANCE, Point(5, 0.4, 0.9, 5e5), Point(5, 0.3, 0.8, 6e5)
)


def test_a_rule_comes_back_as_it_was_saved():
    content = json.loads(json.dumps(CHOSEN.to_json()))
    assert ChosenRule.from_json(content, "here") == CHOSEN
    assert (content["criterion"], content["temperature"], content["threshold"]) == ("margin", 1.5, 0.7)
    by_hand = ChosenRule(threshold_rule(0.5))
    assert ChosenRule.from_json(json.loads(json.dumps(by_hand.to_json())), "here") == by_hand


@pytest.mark.parametrize(
    "change",
    [
        *({"criterion": "doubt"}, {"threshold": float("nan")}, {"threshold": 90}, {"threshold": "0.5"}),
        *({"temperature": 0}, {"temperature": float("inf")}, {"provenance": {"step": 1}}, {"chosen_on": [1]}),
        {"provenance": {**dataclasses.asdict(PROVENANCE), "step": "100"}},
    ],
    ids=str,
)
def test_what_is_not_a_rule_is_told(change):
    with pytest.raises(UserError, match="here has no exit rule that can be read; run --mode=evaluate again"):
        ChosenRule.from_json({**CHOSEN.to_json(), **change}, "here")


@pytest.mark.parametrize("threshold", [90, -0.1, float("nan"), float("inf")])
def test_a_threshold_is_a_probability(threshold):
    with pytest.raises(UserError, match=r"--threshold=.* is not a probability; give a number from 0 to 1"):
        threshold_rule(threshold)
    assert threshold_rule(NEVER).threshold == NEVER


@pytest.mark.parametrize("criterion", CRITERIA)
def test_one_class_is_sure(criterion):
    assert ExitRule(criterion).confidence(np.zeros((3, 1), np.float32)).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("change", "said"),
    [({"step": 99}, "step 99"), ({"ema": False}, "the parameters"), ({"resolution": 12}, "12 pixels")],
)
def test_a_rule_of_other_weights_is_refused(change, said):
    now = dataclasses.replace(PROVENANCE, **change)
    CHOSEN.check_fits(PROVENANCE, "here")
    with pytest.raises(
        UserError,
        match=rf"the moving averages of step 100 \(best\) at 8 pixels, but .*{said}.*used now",
    ):
        CHOSEN.check_fits(now, "here")


@pytest.mark.parametrize(
    "change",
    [{"data": "mnist"}, {"split": "test[:10]"}, {"crop": "central"}, {"padding": 32}, {"exif_orientation": False}],
    ids=str,
)
def test_a_rule_of_other_images_is_warned_of(change, caplog):
    with caplog.at_level(logging.WARNING):
        CHOSEN.check_fits(PROVENANCE, "here")
        assert not caplog.messages
        CHOSEN.check_fits(dataclasses.replace(PROVENANCE, **change), "here")
    (message,) = caplog.messages
    assert "here was chosen on digits test (crop none), but the config names " in message


def test_prediction_and_export_take_a_rule_where_it_fits(trained, trained_config, tmp_path, caplog):
    """The rule on disk is the one that was printed; every other setting of evaluation is refused or warned of."""
    results = evaluate_run(trained_config, str(trained))
    opened = open_trained(str(trained), trained_config)
    chosen = rule_of(opened)
    assert chosen == ChosenRule.load(trained / "evaluation")
    assert chosen.to_json() == results.early_termination.rule
    assert chosen.provenance.step == results.step
    assert chosen.chosen_on.count + chosen.reported_on.count == results.count
    printed = results.summary()
    assert f"of at least {chosen.rule.threshold:.4f}, by max_accuracy_drop=0.003" in printed
    words = [line.split() for line in printed.splitlines()]
    for name, half in (("chosen", chosen.chosen_on), ("reported", chosen.reported_on)):
        cells = [str(half.count), f"{half.exit_rate:.1%}", f"{half.top1:.4f}", f"{half.madds:,.0f}"]
        assert [name, "on", *cells] in words

    trained_config.data.eval_split = "test[:36]"
    with caplog.at_level(logging.WARNING):
        assert rule_of(open_trained(str(trained), trained_config)) == chosen
    assert "was chosen on digits test[:37] (crop none), but the config names digits test[:36]" in caplog.text
    trained_config.eval.ema = False
    with pytest.raises(UserError, match=r"was chosen with the moving averages .* but the parameters of step"):
        package.export_run(trained_config, str(trained))
    assert rule_of(open_trained(str(trained), trained_config), 0.5).rule == ExitRule(threshold=0.5)
    opened = dataclasses.replace(opened, folder=epath.Path(tmp_path))
    with pytest.raises(UserError, match=r"there is no .*exit_rule.json, which has the threshold; run --mode=evaluate"):
        rule_of(opened)


def test_a_file_that_is_nested_too_deeply_is_told(tmp_path):
    (tmp_path / "exit_rule.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="has no exit rule that can be read; run --mode=evaluate again"):
        ChosenRule.load(tmp_path)
