"""--mode=evaluate: the same on 1 and 8 devices, equal to plain NumPy, and complete."""

import csv
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from basisnet_jax.errors import UserError
from basisnet_jax.evaluation.of_run import evaluate_run
from basisnet_jax.evaluation.results import EvaluationResults
from basisnet_jax.evaluation.whole_split import predict
from basisnet_jax.experiment.run import make_experiment
from basisnet_jax.models.stages import ABLATIONS, random_cycle
from basisnet_jax.workdir.checkpoint import restore_model
from tests.conftest import save_untrained


def opened(config, workdir, devices):
    experiment = make_experiment(config, jax.devices()[:devices])
    like = experiment.abstract_variables
    return experiment, restore_model(epath.Path(workdir), config.eval.checkpoint, ema=True, like=like).variables


def one_image_at_a_time(experiment, variables):
    """[(preview logits, coefficients)] and a specialist to give coefficients to, without batches or a mesh."""
    images = np.concatenate([batch["image"] for batch in experiment.eval_batches()])[:37] / np.float32(127.5) - 1
    first = jax.jit(lambda x: experiment.model.apply(variables, x, train=False, method="first_stage"))
    second = jax.jit(lambda x, c: experiment.model.apply(variables, x, c, train=False, method="second_stage"))
    return images, [first(image[None]) for image in images], second


def test_every_ablation_is_what_its_name_says_on_any_mesh(trained, trained_config):
    images, stage, specialist = one_image_at_a_time(*opened(trained_config, trained, 1))
    coefficients = np.stack([np.asarray(c[0]) for _, c in stage])
    donors, layers = random_cycle(37), random_cycle(coefficients.shape[1])
    assert sorted(donors) == list(range(37))
    assert not np.any(donors == np.arange(37))

    def strongest(count):
        """The largest coefficients of each vector, with its sum; a plain loop."""
        kept = np.zeros_like(coefficients)
        for place in np.ndindex(coefficients.shape[:2]):
            largest = np.argsort(-coefficients[place], kind="stable")[:count]
            kept[place][largest] = coefficients[place][largest] / coefficients[place][largest].sum()
        return kept

    given = {
        "predicted": coefficients,
        "uniform": np.full_like(coefficients, 1 / coefficients.shape[2]),
        "argmax": (coefficients == coefficients.max(-1, keepdims=True)).astype(np.float32),
        "strongest_2": strongest(2),
        "strongest_4": strongest(4),
        "shuffle_images": coefficients[donors],
        "shuffle_layers": coefficients[:, layers],
    }
    assert set(given) == set(ABLATIONS)
    eight, sharded = opened(trained_config, trained, 8)
    for name, vectors in given.items():
        expected = [specialist(image[None], vector[None])[0] for image, vector in zip(images, vectors, strict=True)]
        got = predict(eight, eight.stages.of(sharded, 0.0), name)
        np.testing.assert_allclose(got.logits_NxK, np.stack(expected), rtol=1e-3, atol=1e-4, err_msg=name)
        assert len(got.labels_N) == 37


def numpy_summary(logits, labels):
    logits = logits.astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    ranks = np.array([(row > row[label]).sum() for row, label in zip(logits, labels, strict=True)])
    return {
        "top1": np.mean(ranks < 1),
        "top5": np.mean(ranks < 5),
        "loss": -np.mean(np.log([row[label] for row, label in zip(probabilities, labels, strict=True)])),
    }


def test_devices_that_no_batch_divides_over_give_the_same_results(trained, trained_config, tmp_path):
    """Batches of 16, of training and of evaluation, on three devices."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    one, three = (evaluate_run(trained_config, str(tmp_path), jax.devices()[:devices]) for devices in (1, 3))
    assert one.count == three.count == 37
    assert one.specialist.top1 == three.specialist.top1
    assert one.specialist.loss == pytest.approx(three.specialist.loss, rel=1e-4)


def test_results_equal_numpy_and_do_not_depend_on_the_mesh(trained, trained_config, tmp_path):
    trained_config.eval.coefficients = tuple(ABLATIONS)
    trained_config.eval.madds_target = 20_000.0
    found = {}
    for devices in (1, 8):
        workdir = tmp_path / str(devices)
        shutil.copytree(trained, workdir)
        found[devices] = evaluate_run(trained_config, str(workdir), jax.devices()[:devices])
        written = epath.Path(workdir / "evaluation")
        assert json.loads((written / "results.json").read_text()) == dataclasses.asdict(found[devices])
        assert EvaluationResults.load(written) == found[devices]
    one, eight = found[1], found[8]
    assert one.count == eight.count == 37
    experiment, variables = opened(trained_config, trained, 1)
    predictions = predict(experiment, experiment.stages.of(variables, 0.0))
    for stage, logits in (("specialist", predictions.logits_NxK), ("preview", predictions.preview_logits_NxK)):
        for name, value in numpy_summary(logits, predictions.labels_N).items():
            assert getattr(getattr(one, stage), name) == pytest.approx(value, rel=1e-6), (stage, name)
            assert getattr(getattr(eight, stage), name) == pytest.approx(value, rel=1e-4), (stage, name)
        assert getattr(one, stage).ece == pytest.approx(getattr(eight, stage).ece, abs=1e-4)
    assert {"predicted", *one.ablations} == set(ABLATIONS)
    for name in one.ablations:
        assert one.ablations[name].top1 == eight.ablations[name].top1
    for a, b in zip(one.early_termination.criteria, eight.early_termination.criteria, strict=True):
        assert a.points["madds_target"].top1 == b.points["madds_target"].top1
        assert a.points["madds_target"].madds == b.points["madds_target"].madds
    # The rest of what a reader finds there.
    out = tmp_path / "8" / "evaluation"
    for name in ("accuracy_over_madds", "reliability", "coefficients", "first_and_last_exits"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((out / "early_termination.csv").open()))
    assert len(rows) == 6 * 101
    assert {row["criterion"] for row in rows} == {"probability", "margin", "entropy"}
    for row in rows:
        assert float(row["madds"]) == pytest.approx(experiment.cost().average(float(row["exit_rate"])), rel=1e-6)
    assert float(rows[0]["exit_rate"]) == 0
    assert float(rows[100]["exit_rate"]) == 1
    assert "shuffle_images" in one.summary()


def test_coefficients_are_summed_as_numpy_would(trained, trained_config):
    experiment, variables = opened(trained_config, trained, 1)
    _, stage, _ = one_image_at_a_time(experiment, variables)
    coefficients = np.stack([np.asarray(c[0], np.float64) for _, c in stage])
    predictions = predict(experiment, experiment.stages.of(variables, 0.0))
    means = predictions.coefficients.means()
    for label in range(10):
        mine = coefficients[predictions.labels_N == label]
        np.testing.assert_allclose(means["by_class"][label], mine.mean(0) if len(mine) else 0, atol=1e-5)
    entropy = -(coefficients * np.log(coefficients)).sum(-1).mean(0) / np.log(4)
    np.testing.assert_allclose(means["entropy"], entropy, rtol=1e-4)
    wins = [[np.mean(coefficients[:, v].argmax(-1) == n) for n in range(4)] for v in range(coefficients.shape[1])]
    np.testing.assert_allclose(means["wins"], wins)
    guesses = predictions.preview_logits_NxK.argmax(-1)
    replaced = np.stack([coefficients[guesses == guess].mean(0) for guess in guesses])  # by their guess's mean
    share = predictions.coefficients.class_share()
    vectors = replaced.var(0).sum(-1) / coefficients.var(0).sum(-1)
    np.testing.assert_allclose(share["vectors"], vectors, rtol=1e-3)
    assert share["all"] == pytest.approx(replaced.var(0).sum() / coefficients.var(0).sum(), rel=1e-3)
    assert experiment.vector_names()[0] == "block00/expand"
    assert len(experiment.vector_names()) == coefficients.shape[1]


def test_a_named_checkpoint_without_averages_at_another_resolution(trained, trained_config):
    default = evaluate_run(trained_config, str(trained))
    trained_config.eval.update(checkpoint="13", ema=False, resolution=12)
    other = evaluate_run(trained_config, str(trained))
    assert (other.step, other.resolution) == (13, 12)
    assert default.resolution == 8
    assert other.specialist.loss != default.specialist.loss
    # The preview's image is the small one either way, so it costs the same.
    assert other.madds["preview"] == default.madds["preview"]
    assert other.madds["specialist"] > default.madds["specialist"]
    trained_config.eval.checkpoint = "7"
    with pytest.raises(
        UserError, match=r"config.eval.checkpoint = '7': .* has no checkpoint of that step; the steps are [\d, ]+\."
    ):
        evaluate_run(trained_config, str(trained))


def test_a_static_network_is_evaluated_and_drawn_beside(trained, trained_config, tmp_path):
    trained_config.model.routing = "static"
    save_untrained(trained_config, tmp_path)
    results = evaluate_run(trained_config, str(tmp_path))
    assert results.preview is None
    assert results.early_termination is None
    assert "top-1" in results.summary()
    assert not (tmp_path / "evaluation" / "early_termination.csv").exists()
    trained_config.eval.coefficients = ("uniform",)
    with pytest.raises(UserError, match=r"must be \('predicted',\) for a network without a preview"):
        evaluate_run(trained_config, str(tmp_path))
    trained_config.eval.coefficients = ("predicted",)
    trained_config.model.routing = "preview"
    with pytest.raises(UserError, match=r"model.routing was 'static' and is 'preview'"):
        evaluate_run(trained_config, str(tmp_path))
    trained_config.eval.compare = (str(tmp_path),)
    evaluate_run(trained_config, str(trained))
    trained_config.data.eval_split = "test[:36]"
    with pytest.raises(UserError, match=r"was evaluated on digits test\[:37\], not on digits test\[:36\]"):
        evaluate_run(trained_config, str(trained))
    other = tmp_path / "evaluation" / "results.json"
    content = json.loads(other.read_text())
    content["config"]["data"].update(name="folder", dir="/elsewhere/photos")
    other.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"was evaluated on photos test\[:37\], not on digits"):
        evaluate_run(trained_config, str(trained))
    trained_config.eval.compare = (str(tmp_path / "none"),)
    with pytest.raises(UserError, match=r"has no evaluation/results.json"):
        evaluate_run(trained_config, str(trained))


def test_a_workdir_without_a_run_is_told(config, tmp_path):
    with pytest.raises(UserError, match=r"has no config.json, so it is not a run"):
        evaluate_run(config, str(tmp_path))
