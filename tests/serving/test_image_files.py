"""The runtime's command line on image files: the answers of --mode=predict, and the choice of a threshold."""

import csv
import dataclasses
import io
import itertools
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from basisnet_jax import runtime
from basisnet_jax.errors import UserError
from basisnet_jax.serving import choose_threshold, zoo
from basisnet_jax.serving.exit_rule import NEVER, softmax
from basisnet_jax.serving.two_stage import TwoStageClassifier

EXPORT = zoo.folder_of("digits")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """60 digits in folders of their class, with noise that makes some of them hard."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    for number, (image, label) in enumerate(zip(images[:60], labels[:60], strict=True)):
        (folder / str(label)).mkdir(exist_ok=True)
        small = np.clip(image.reshape(8, 8) * 16 + rng.normal(0, 60, (8, 8)), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / str(label) / f"{number:02}.png"), cv2.resize(small, (50, 40)))
    return folder


def run(capsys, *arguments):
    """(exit code, stdout, stderr) of the command line."""
    code = runtime.main([EXPORT, *map(str, arguments)])
    return code, *capsys.readouterr()


def pixels_of(classifier, photos):
    """(pixels, labels) of all photographs, by OpenCV's own functions."""
    files = sorted(photos.glob("*/*.png"))
    read = [cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in files]
    resized = [cv2.resize(image, (classifier.side, classifier.side), interpolation=cv2.INTER_AREA) for image in read]
    return np.stack(resized)[..., None], np.array([int(file.parent.name) for file in files])


def test_image_files_get_the_answers_of_their_pixels(photos, capsys):
    classifier = TwoStageClassifier.from_export(EXPORT)
    pixels, _ = pixels_of(classifier, photos)
    expected = classifier.classify(pixels)
    assert 0 < expected.exited_early.sum() < len(pixels)
    code, printed, said = run(capsys, photos, "--format=csv")
    assert (code, said) == (0, "")
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert [int(row["label"]) for row in rows] == list(expected.labels)
    assert [row["stage"] == "preview" for row in rows] == list(expected.exited_early)
    np.testing.assert_allclose([float(row["probability"]) for row in rows], expected.probabilities)
    assert sum(int(row["madds"]) for row in rows) == expected.madds.sum()


def test_the_best_classes_are_the_largest_logits(photos, capsys):
    classifier = TwoStageClassifier.from_export(EXPORT)
    pixels, _ = pixels_of(classifier, photos)
    previewed = classifier.preview_stage(pixels)
    (specialist,) = classifier.second_stage(pixels, previewed.coefficients_BxLxN)
    logits = np.where(previewed.exits_B[:, None], previewed.logits_BxK, specialist)
    code, printed, _ = run(capsys, photos, "--format=json", "--top_k=3")
    rows = json.loads(printed)
    assert code == 0
    assert [int(row["label"]) for row in rows] == np.argsort(-logits, axis=-1)[:, :3].flatten().tolist()
    np.testing.assert_allclose([row["probability"] for row in rows], -np.sort(-softmax(logits))[:, :3].flatten())
    np.save(photos.parent / "pixels.npy", pixels)
    _, printed, _ = run(capsys, photos.parent / "pixels.npy", "--top_k=3")
    assert [line.split()[0] for line in printed.splitlines()] == [row["label"] for row in rows]
    for count in (11, 0, -1):
        code, printed, said = run(capsys, photos, f"--top_k={count}")
        assert (code, printed, said) == (2, "", f"error: top_k = {count} is not in 1 to 10, the number of classes.\n")


@pytest.mark.parametrize("missing", [(), ("cv2",), ("cv2", "PIL")])
def test_pillow_takes_opencvs_place_and_without_both_a_sentence_says_so(photos, missing):
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing})); from basisnet_jax import runtime; "
        "sys.exit(runtime.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, EXPORT, str(photos / "*" / "0*.png"), "--format=csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if len(missing) == 2:
        assert done.returncode == 2
        assert "image files need OpenCV or Pillow, and neither is installed; run pip install pillow" in done.stderr
        assert "Traceback" not in done.stderr
        return
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    classifier = TwoStageClassifier.from_export(EXPORT)
    expected = classifier.classify(pixels_of(classifier, photos)[0])
    names = [file.name for file in sorted(photos.glob("*/*.png"))]
    expected_labels = [label for label, name in zip(expected.labels, names, strict=True) if name.startswith("0")]
    assert [int(row["label"]) for row in rows] == expected_labels


def test_a_file_that_is_not_an_image_is_named_and_the_others_are_answered(photos, tmp_path, capsys):
    (tmp_path / "good.png").write_bytes((photos / "0" / "00.png").read_bytes())
    (tmp_path / "worse.png").write_bytes(b"no image")
    code, printed, said = run(capsys, tmp_path, "--format=csv")
    assert code == 1
    assert len(printed.splitlines()) == 2
    assert (
        said
        == f"error: {tmp_path / 'worse.png'} is not an image: 8 bytes that are neither JPEG, PNG, GIF, WebP nor BMP\n"
    )


def expected_choice(photos, fits):
    """A plain loop over the thresholds: the first, from the lowest, whose (top-1, madds) on one half `fits`."""
    classifier = TwoStageClassifier.from_export(EXPORT, NEVER)
    pixels, labels = pixels_of(classifier, photos)
    logits, coefficients = classifier.first_stage(pixels)
    (both,) = classifier.second_stage(pixels, coefficients)
    sure = softmax(logits).max(axis=-1)
    chooses = np.random.default_rng(0).permutation(len(labels)) < len(labels) // 2

    def results(threshold, half):
        exits = sure[half] >= threshold
        answers = np.where(exits, logits[half].argmax(-1), both[half].argmax(-1))
        madds = np.where(exits, classifier.cost.preview, classifier.cost.total)
        return float(np.mean(answers == labels[half])), float(np.mean(madds)), float(np.mean(exits))

    never = results(NEVER, chooses)
    between = sorted(sure[chooses])
    for threshold in [0.0, *((a + b) / 2 for a, b in itertools.pairwise(between)), NEVER]:
        if fits(results(threshold, chooses), never):
            return threshold, results(threshold, ~chooses), results(NEVER, ~chooses)
    raise AssertionError


def test_a_threshold_is_the_one_of_a_plain_loop(photos, tmp_path, capsys):
    threshold, (top1, madds, rate), (without, _, _) = expected_choice(
        photos, lambda now, never: now[0] >= never[0] - 0.04
    )
    code, printed, said = run(capsys, photos, "--max_accuracy_drop=0.04")
    assert (code, said) == (0, "")
    first, then = printed.splitlines()
    assert first == (
        f"threshold {threshold}: {rate:.1%} of the images exit; top-1 {top1:.4f}, without exits {without:.4f}; "
        f"{madds:,.0f} multiply-adds on average (on the 30 images that it was not chosen on)"
    )
    assert then == f"next: python -m basisnet_jax.runtime {EXPORT} IMAGES --threshold={threshold}"
    rows = [("file", "label"), *((file, file.parent.name) for file in sorted(photos.glob("*/*.png")))]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert run(capsys, tmp_path / "labels.csv", "--max_accuracy_drop=0.04")[1] == printed


def test_a_target_of_multiply_adds_is_met_on_the_half_that_chooses(photos, capsys):
    code, printed, _ = run(capsys, photos, "--madds_target=700000")
    assert code == 0
    classifier = TwoStageClassifier.from_export(EXPORT, NEVER)
    choice, bad = choose_threshold.choose_threshold(
        classifier, choose_threshold.labelled_files(str(photos), classifier.classes), madds_target=700_000
    )
    assert (printed.splitlines()[0], bad) == (str(choice), [])
    assert choice.madds == pytest.approx(700_000, rel=0.15), "of the other half"
    code, _, said = run(capsys, photos, "--madds_target=1000")
    assert code == 2
    assert said.startswith("error: --madds_target = 1,000 is less than the preview alone costs, ")


def test_numbers_that_do_not_fit_are_told(photos, capsys):
    for flag, message in (
        ("--threads=0", "--threads=0 is not a number of threads"),
        ("--max_accuracy_drop=-0.1", "--max_accuracy_drop=-0.1 is not a share of 1"),
        ("--max_accuracy_drop=nan", "--max_accuracy_drop=nan is not a share of 1"),
    ):
        code, printed, said = run(capsys, photos, flag)
        assert (code, printed, said.count("\n")) == (2, "", 1)
        assert said.startswith(f"error: {message}")


def test_a_warm_up_runs_both_stages(photos):
    ran = []
    classifier = TwoStageClassifier.from_export(EXPORT, 0.0)
    staged = dataclasses.replace(
        classifier,
        first_stage=lambda *x: ran.append("preview") or classifier.first_stage(*x),
        second_stage=lambda *x: ran.append("specialist") or classifier.second_stage(*x),
    )
    staged.warm_up()
    assert ran == ["preview", "specialist"], "although every image exits by this rule"


def test_labels_that_do_not_fit_are_told(photos, tmp_path):
    classes = tuple("0123456789")

    def listed(text):
        (tmp_path / "labels.csv").write_text(text)
        return choose_threshold.labelled_files(str(tmp_path / "labels.csv"), classes)

    assert listed("file,label,note\na.png,3,x\n") == {str(tmp_path / "a.png"): 3}
    assert listed("\ufefffile,label\na.png,3\na.png,3\n") == {str(tmp_path / "a.png"): 3}, "as a spreadsheet writes it"
    for text, message in (
        ("file,label\na.png,cat\n", r"a.png has the label 'cat', which is not one of the export's 10 classes"),
        ("file,label\na.png\n", r"row 2 of .*labels.csv has no file or label"),
        ("name,class\na.png,3\n", r"whose first row is 'file,label'"),
        ("", r"lists no images"),
        ("file,label\na.png,3\na.png,4\n", r"row 3 of .*labels.csv gives a.png another label than a row before"),
    ):
        with pytest.raises(UserError, match=message):
            listed(text)
    with pytest.raises(UserError, match="cannot be read"):
        choose_threshold.labelled_files(str(tmp_path / "none.csv"), classes)
    (tmp_path / "one.csv").write_text(f"file,label\n{photos / '0' / '00.png'},0\n")
    classifier = TwoStageClassifier.from_export(EXPORT, NEVER)
    with pytest.raises(UserError, match="1 image"):
        choose_threshold.choose_threshold(
            classifier, choose_threshold.labelled_files(str(tmp_path / "one.csv"), classes), max_accuracy_drop=0.0
        )
