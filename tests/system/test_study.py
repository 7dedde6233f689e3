"""benchmarks/: rows of study.py that can be compared, and figures that are what they say."""

import importlib
import json

import cv2
import numpy as np
import pytest

from basisnet_jax import config as config_lib
from basisnet_jax.data import datasets
from basisnet_jax.evaluation import early_exit, of_run
from basisnet_jax.experiment.model import make_model, model_cost
from basisnet_jax.training.metrics import is_correct
from benchmarks import study, timing, turned


def config_of(run):
    """The config that a command's flags make, as the command line parses them."""
    flags = dict(flag.removeprefix("--config.").split("=", 1) for flag in run.command("train")[5:-1])
    config = importlib.import_module(f"configs.{study.ROWS[run.row][1].replace('/', '.')}").get_config()
    for name, value in flags.items():
        was = config_lib.flatten(config)[name]
        config.update_from_flattened_dict({name: value == "True" if isinstance(was, bool) else type(was)(value)})
    return config


@pytest.mark.parametrize("row", study.ROWS)
def test_rows_are_valid_and_cost_alike(row, tmp_path):
    config = config_of(study.Run(row, 1, tmp_path, rate="4e-3"))
    config_lib.validate(config)
    assert (config.seed, config.optimizer.learning_rate) == (1, 4e-3)
    assert config.data.eval_split == ("train[200000:]" if "turned" in row else "train[50000:]")
    if row != "teacher":
        total = model_cost(make_model(config.model, 10), 28, 1).total
        assert total == pytest.approx(1_449_320, rel=0.02), "every row spends what the static network does"


def save_evaluation(folder, logits, preview, labels, cost):
    right = [is_correct(x, labels) for x in (preview, logits)]
    candidates = early_exit.candidates(preview, labels, *right, cost)
    out = folder / "evaluation"
    out.mkdir(parents=True)
    (out / "early_termination.csv").write_text(of_run._table(candidates))
    best = {"criterion": "margin", "temperature": candidates[4].temperature}
    results = {"madds": cost.madds(), "specialist": {"top1": 0.9}, "preview": {"top1": 0.8}}
    criteria = [{**best, "mean_top1": 0.7}, {**best, "criterion": "entropy", "mean_top1": 0.6}]
    results |= {
        "early_termination": {"best": best, "criteria": criteria},
        "coefficients": {"class_share": {"all": 0.5}},
    }
    (out / "results.json").write_text(json.dumps(results))
    return candidates[4]


def test_what_exits_lose_is_read_off_the_table(config, tmp_path):
    """With 100 images a half, a percent is an image, and the table has every threshold."""
    rng, cost = np.random.default_rng(0), model_cost(make_model(config.model, 5), 8, 1)
    labels = rng.integers(0, 5, 200).astype(np.int32)
    right = 2 * np.eye(5)[labels]
    logits, preview = (right + rng.normal(size=(200, 5)) * scale for scale in (1, 2))
    runs = [study.Run("preview_n4", seed, tmp_path) for seed in (0, 1)]
    margin = save_evaluation(runs[0].workdir, logits, preview, labels, cost)
    found = study.measured(runs[0].workdir)
    for share in study.SHARES:
        index = early_exit.at_most_madds(margin.chosen_on, share * cost.total)
        lost = margin.reported_on.top1[0] - margin.reported_on.top1[index]
        assert found[f"lost_{share:.0%}"] == pytest.approx(lost, abs=1e-7)
    assert found["lost_60%"] != 0
    assert [command[3] for command in runs[0].missing()] == ["--mode=train"]
    assert len(list(runs[1].missing())) == 2
    (line,) = study.table(runs).splitlines()[2:]
    assert line.startswith(f"| preview_n4 | {cost.total:,} | 1 | 0.9000 | 0.8000 | 0.7000 | ")


def test_one_round_has_quartiles():
    assert timing.quartiles([2.0]) == (2.0, 2.0, 2.0)
    assert timing.quartiles([1.0, 2.0, 3.0]) == (1.0, 2.0, 3.0)


def test_rotations_are_classes_of_their_own(config, tmp_path, monkeypatch):
    """Read as a run reads it, with nothing of the builder's code at hand: each image four times, in order."""
    upright = datasets.open_dataset("digits", config.data.dir, "train[:40]", "test[:12]")
    monkeypatch.setattr(turned, "PIECE", 16)
    builder = turned.FashionMnistTurned(upright, data_dir=str(tmp_path))
    builder.download_and_prepare()
    made = datasets.open_dataset("fashion_mnist_turned", str(tmp_path), "train", "test")
    assert (len(made.train), len(made.eval), made.num_classes, made.channels) == (160, 48, 40, 1)
    assert made.classes[7] == "1 turned by 270"

    def image(example):
        return cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_UNCHANGED)

    for source, of in ((made.train, upright.train), (made.eval, upright.eval)):
        examples, originals = source.__getitems__(range(len(source))), of.__getitems__(range(len(of)))
        mirrored = 0
        for index, example in enumerate(examples):
            original = originals[index // 4]
            assert example["label"] == 4 * original["label"] + index % 4
            back = np.rot90(image(example), -(index % 4))
            mirrored += not np.array_equal(back, image(original))
            np.testing.assert_array_equal(np.rot90(image(examples[index // 4 * 4]), index % 4), image(example))
            assert np.array_equal(back, image(original)) or np.array_equal(back, image(original)[:, ::-1])
        assert (0 < mirrored < 160) if of is upright.train else mirrored == 0
    held_out = datasets.open_dataset("fashion_mnist_turned", str(tmp_path), "train[120:]", "test").train
    assert held_out.__getitems__([0])[0]["image"] == made.train.__getitems__([120])[0]["image"]
