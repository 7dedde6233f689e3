"""Printed tables: columns never touch, whatever stands in them."""

from basisnet_jax.evaluation.results import EvaluationResults
from basisnet_jax.export import card
from basisnet_jax.host import command_line
from basisnet_jax.host.records import typed
from basisnet_jax.serving.manifest import Accuracy, FileFacts, Top1
from tests.conftest import make_manifest
from tests.serving.test_exit_rule import CHOSEN


def test_columns_are_as_wide_as_their_widest_cell():
    lines = command_line.align([("name", "loss"), ("a", "0.7600"), ("a name of many words", "462.6887")])
    assert lines == [
        "name                      loss",
        "a                       0.7600",
        "a name of many words  462.6887",
    ]


def test_wide_characters_take_two_columns():
    lines = command_line.align([("猫", "1"), ("cat", "2"), ("e\N{COMBINING ACUTE ACCENT}", "3")])
    assert lines == ["猫   1", "cat  2", "e\N{COMBINING ACUTE ACCENT}    3"]


def figures(loss):
    return {"top1": 0.76, "top5": 0.76, "loss": loss, "ece": 0.01}


def test_an_evaluation_with_a_large_loss_can_be_read():
    point = {"threshold": 0.5, "exit_rate": 0.5, "top1": 0.9, "madds": 123_456_789_012.0}
    results = {
        **{"config": {}, "versions": {}, "coefficients": None},
        "step": 1,
        "count": 10,
        "resolution": 8,
        "specialist": figures(0.2),
        "preview": None,
        "ablations": {"argmax": figures(462.6887), "a_name_longer_than_twenty_four": figures(12345.6)},
        "reported_half": {"count": 5, "top1": 0.9},
        "madds": {"total": 100},
        "early_termination": {
            "criteria": [
                {
                    **{"criterion": "probability", "temperature": 1.0, "chosen_mean_top1": 0.8, "mean_top1": 0.9},
                    "points": {"madds_target": point},
                }
            ],
            "best": {"criterion": "probability", "temperature": 1.0, "mean_top1_gain": 0.0},
            "rule": CHOSEN.to_json(),
        },
    }
    words = [line.split() for line in typed(EvaluationResults, results).summary().splitlines()]
    assert ["argmax", "0.7600", "0.7600", "462.6887", "0.0100"] in words
    assert ["a_name_longer_than_twenty_four", "0.7600", "0.7600", "12345.6000", "0.0100"] in words
    assert ["probability", "1.000", "0.8000", "0.9000", "madds_target", "50.0%", "0.9000", "123,456,789,012"] in words


def test_an_export_with_long_names_can_be_read():
    name = "specialist_int8_weights_of_a_long_name.tflite"
    manifest = make_manifest(
        files={name: FileFacts(123_456_789_012, "", 1e-6)}, accuracy=Accuracy("10 images", {name: Top1(0.9)})
    )
    words = [line.split() for line in card.summary("out", manifest).splitlines()]
    assert [name, "123,456,789,012", "1.0e-06"] in words
    assert [name, "specialist", "0.9000"] in words
