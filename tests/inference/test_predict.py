"""Two-stage inference: what the simulated table says, without compiling again, and as a user has it."""

import csv
import dataclasses
import io
import itertools
import json
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from etils import epath

from basisnet_jax.errors import UserError
from basisnet_jax.evaluation.of_run import evaluate_run
from basisnet_jax.evaluation.whole_split import predict as predict_split
from basisnet_jax.experiment.run import make_experiment
from basisnet_jax.inference import TwoStageClassifier, batching, jax_classifier, trained_run
from basisnet_jax.serving import exit_curve, exit_rule, image_files
from basisnet_jax.training.metrics import is_correct
from basisnet_jax.workdir.checkpoint import restore_model
from tests.conftest import TRAINED_RATE, save_untrained


@pytest.fixture(scope="module")
def classifier(trained):
    return TwoStageClassifier.from_checkpoint(str(trained), threshold=0.5)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), np.uint8)


def test_answers_are_those_of_the_simulated_table(trained, trained_config, classifier):
    """Every criterion, at thresholds over the whole range: the same images exit, with the same answers and cost."""
    experiment = make_experiment(trained_config, jax.devices()[:1])
    restored = restore_model(epath.Path(trained), "best", ema=True, like=experiment.abstract_variables)
    split = predict_split(experiment, experiment.stages.of(restored.variables, 0.0))
    pixels = np.concatenate([batch["image"] for batch in experiment.eval_batches()])[:37]
    right = [is_correct(x, split.labels_N) for x in (split.preview_logits_NxK, split.logits_NxK)]
    for criterion in exit_rule.CRITERIA:
        rule = exit_rule.ExitRule(criterion, temperature=1.4)
        confidence = rule.confidence(split.preview_logits_NxK)
        thresholds = exit_curve.all_thresholds(confidence)
        curve = exit_curve.simulate(confidence, *right, experiment.cost(), thresholds)
        for index in range(0, len(thresholds), 6):
            used = dataclasses.replace(classifier, rule=dataclasses.replace(rule, threshold=thresholds[index]))
            answers = used.classify(pixels)
            np.testing.assert_array_equal(answers.exited_early, confidence >= thresholds[index])
            stage = [x.argmax(-1) for x in (split.preview_logits_NxK, split.logits_NxK)]
            np.testing.assert_array_equal(answers.labels, np.where(answers.exited_early, *stage))
            assert np.mean(answers.exited_early) == curve.exit_rate[index]
            assert np.mean(answers.labels == split.labels_N) == pytest.approx(curve.top1[index])
            assert np.mean(answers.madds) == pytest.approx(curve.madds[index])


def test_any_batch_size_gives_each_image_its_own_answer(classifier, images):
    confidence = classifier.rule.confidence(np.concatenate([classifier.first_stage(x[None])[0] for x in images[:70]]))
    used = dataclasses.replace(classifier, rule=exit_rule.ExitRule(threshold=float(np.median(confidence))))
    alone = [used.classify(image[None]) for image in images[:70]]
    assert 0 < sum(bool(x.exited_early) for x in alone) < 70
    for count in (1, 3, 64, 70):
        together = used.classify(images[:count])
        for name in ("labels", "exited_early", "madds"):
            np.testing.assert_array_equal(getattr(together, name), [getattr(x, name)[0] for x in alone[:count]])
        np.testing.assert_allclose(together.probabilities, [x.probabilities[0] for x in alone[:count]], rtol=1e-4)
    assert all(len(x) == 0 for x in used.classify(images[:0]))


def test_nothing_compiles_again_after_each_bucket_was_seen(trained, images, monkeypatch):
    monkeypatch.setattr(batching, "SIZES", (1, 2, 5))  # each costs seconds
    fresh = TwoStageClassifier.from_checkpoint(str(trained), threshold=0.0)
    seen = []
    first, second = fresh.first_stage, fresh.second_stage

    def noting(function):
        def noted(batch, *rest):
            seen.append(len(batch))
            return function(batch, *rest)

        return noted

    fresh = dataclasses.replace(fresh, first_stage=noting(first), second_stage=noting(second))
    order = np.sort(fresh.rule.confidence(np.concatenate([first(x)[0] for x in np.split(images[:20], 4)])))
    for count in range(1, 21):
        for threshold in (0.0, *order, exit_rule.NEVER):
            dataclasses.replace(fresh, rule=exit_rule.ExitRule(threshold=threshold)).classify(images[:count])
    assert set(seen) == {1, 2, 5}
    for stage in (first, second):
        assert stage.func._cache_size() == 3, "one program a bucket"


def test_a_stage_is_handed_the_weights_that_it_reads_and_their_vectors_as_one(trained):
    opened = trained_run.open_trained(str(trained))
    stages = jax_classifier.jit_stages(opened.model, opened.variables, 0.0)
    handed = [jax.tree.leaves(stage.args) for stage in stages]
    read = jax.tree.leaves(opened.variables)
    assert sum(x.size for arrays in handed for x in arrays) == sum(x.size for x in read) + 2, (
        "and how much of the warm start is left"
    )
    assert [sum(x.ndim == 1 for x in arrays) for arrays in handed] == [1, 1]


def test_images_are_worked_off_in_buckets_with_little_padding():
    for count in range(1, 2000):
        pieces = list(batching.pieces(count))
        assert [start for start, _ in pieces] == list(itertools.accumulate([0, *(size for _, size in pieces)]))[:-1]
        assert {size for _, size in pieces} <= set(batching.SIZES)
        assert 0 <= sum(size for _, size in pieces) - count <= 3, "one of them is padded, and by three at most"
        assert len(pieces) <= count // 256 + 5, "a call costs something whatever its size"
    assert [size for _, size in batching.pieces(230)] == [128, 64, 40]
    assert [size for _, size in batching.pieces(58)] == [48, 12]


def test_the_specialist_sees_only_the_unsure(classifier, images):
    seen = []

    def counted(batch, coefficients):
        seen.append(int(np.any(batch, axis=(1, 2, 3)).sum()))  # padding is zeros
        return np.zeros((len(batch), 10))

    used = dataclasses.replace(classifier, second_stage=counted)
    for threshold, expected in ((0.0, 0), (exit_rule.NEVER, 300)):
        seen.clear()
        answers = dataclasses.replace(used, rule=exit_rule.ExitRule(threshold=threshold)).classify(images)
        assert sum(seen) == expected == 300 - answers.exited_early.sum()


def test_a_static_network_answers_in_one_stage(trained_config, tmp_path, images):
    trained_config.model.routing = "static"
    save_untrained(trained_config, tmp_path)
    answers = TwoStageClassifier.from_checkpoint(str(tmp_path)).classify(images[:5])
    assert not answers.exited_early.any()
    assert set(answers.madds) == {make_experiment(trained_config).cost().total}
    with pytest.raises(UserError, match=r"--threshold=0.5 is for a network whose preview can answer alone"):
        TwoStageClassifier.from_checkpoint(str(tmp_path), 0.5)


def test_what_is_missing_is_told(trained, tmp_path, trained_config):
    with pytest.raises(UserError, match=r"has no config.json"):
        TwoStageClassifier.from_checkpoint(str(tmp_path))
    trained_config.model.routing = "task"
    trained_config.data.task = "label"
    (tmp_path / "config.json").write_text(trained_config.to_json())
    with pytest.raises(UserError, match=r"config.model.routing = 'task': needs each image's task"):
        TwoStageClassifier.from_checkpoint(str(tmp_path), config=trained_config)
    (tmp_path / "config.json").write_text((trained / "config.json").read_text())
    with pytest.raises(UserError, match=r"there is no .*data.json"):
        TwoStageClassifier.from_checkpoint(str(tmp_path))


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(1)
    for name, shape in (("a.png", (8, 8)), ("b.jpg", (40, 30, 3)), ("d.png", (8, 8))):
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, shape).astype(np.uint8))
    (tmp_path / "c.jpg").write_bytes(b"\xff\xd8 no image")
    return tmp_path


def test_files_are_classified_and_the_bad_named(trained, trained_config, photos):
    evaluate_run(trained_config, str(trained))
    chosen = json.loads((trained / "evaluation" / "results.json").read_text())["early_termination"]["rule"]
    classifier = TwoStageClassifier.from_checkpoint(str(trained))
    assert vars(classifier.rule).items() <= chosen.items()
    rows, bad = image_files.predict_files(classifier, str(photos / "*"))
    assert [row.file for row in rows] == [str(photos / name) for name in ("a.png", "b.jpg", "d.png")]
    assert len(bad) == 1
    assert bad[0].startswith(str(photos / "c.jpg"))
    assert all(row.label in "0123456789" and row.stage in ("preview", "specialist") for row in rows)
    parsed = list(csv.DictReader(io.StringIO(image_files.table(rows, "csv"))))
    assert [row["label"] for row in parsed] == [row.label for row in rows]
    assert json.loads(image_files.table(rows, "json")) == [row._asdict() for row in rows]
    with pytest.raises(UserError, match="matches no files"):
        image_files.predict_files(classifier, str(photos / "*.gif"))


def test_the_command_line_predicts_without_the_data(trained, photos):
    config = ("--config=tests/configs/tiny.py", f"--config.optimizer.learning_rate={TRAINED_RATE}")
    predicting = ("--mode=predict", f"--workdir={trained}", "--threshold=0.9", "--format=csv")
    names = f"--images={photos}/*"

    def run(*arguments):
        command = [sys.executable, "-m", "basisnet_jax.main", *predicting, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    code, printed, said = run(*config, "--config.data.dir=/nowhere", names)
    assert code == 1, said
    assert len(printed.splitlines()) == 4
    assert f"error: {photos / 'c.jpg'} is not an image" in said
    # Without --config the run's own is taken; this one has a backbone that the tests alone know.
    code, _, said = run(names)
    assert code == 2
    assert "config.model.specialist.backbone = 'tiny' is not one of models/architectures.py" in said
    code, _, said = run(*config)
    assert code == 2
    assert "--images is missing" in said
