"""Writes an evaluation's tables, pictures and report; `docs/guides/evaluation.md` explains them."""

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from basisnet_jax.data import preprocess
from basisnet_jax.evaluation import calibration, plots, report, report_data
from basisnet_jax.evaluation.coefficient_plot import draw_coefficients, similar_classes
from basisnet_jax.evaluation.early_exit import Candidate
from basisnet_jax.evaluation.plots import Network, Picture
from basisnet_jax.evaluation.report_data import Answers
from basisnet_jax.evaluation.results import EarlyTermination, EvaluationResults
from basisnet_jax.evaluation.whole_split import Predictions
from basisnet_jax.experiment.model import eval_crop
from basisnet_jax.experiment.run import Experiment
from basisnet_jax.host import files
from basisnet_jax.training.metrics import is_correct
from basisnet_jax.workdir.run_folder import is_export

SHOWN = 8  # images of each kind in `first_and_last_exits.png`
REPORT = "report.html"


def write_files(
    folder: epath.Path,
    experiment: Experiment,
    predictions: Predictions,
    candidates: Sequence[Candidate],
    results: EvaluationResults,
    compared: Sequence[Network],
) -> None:
    """Writes the tables, the pictures and `report.html` into a folder's `evaluation/`.

    Args:
      folder: folder of the run or of the export.
      experiment: the data and the network.
      predictions: the outputs for all images.
      candidates: the criteria of early exits; none without a preview.
      results: the results, which are written already.
      compared: other runs on the same images.
    """
    out, exported = folder / "evaluation", is_export(os.fspath(folder))
    both = {"specialist": predictions.logits_NxK, "preview": predictions.preview_logits_NxK}
    logits = {stage: logits_NxK for stage, logits_NxK in both.items() if logits_NxK is not None}
    answers = {
        stage: Answers(logits_NxK.argmax(axis=-1), is_correct(logits_NxK, predictions.labels_N))
        for stage, logits_NxK in logits.items()
    }
    bins = {stage: calibration.reliability(logits[stage], answers[stage].right_N) for stage in logits}
    plots.draw_reliability(out / "reliability.png", bins)
    files.write(out / "classes.csv", class_table(experiment.data.classes, predictions.labels_N, answers))
    whole = Network("this network", experiment.cost().total, results.reported_half.top1)
    data_set = re.split("[/:]", experiment.config.data.name)[0]
    found = results.early_termination
    in_use = _in_use(candidates, found) if found else None
    exits = (candidates[in_use[0]], in_use[1]) if in_use else None
    plots.draw_accuracy(out / "accuracy_over_madds.png", whole, exits, compared, data_set)
    run = folder.parent if exported else folder
    data = {
        "name": f"{run.name}/{folder.name}" if exported else run.name,
        "classes": report_data.names(experiment.data.classes),
        "results": report_data.without_machine(results),
        "networks": report_data.networks(whole, compared, data_set),
        "reliability": report_data.reliability(bins),
        "curves": report_data.curves(run / "events"),
    }
    if in_use:
        data |= _write_two_stages(out, experiment, predictions, candidates, results, answers, in_use[0])
    report.write(out / REPORT, data)


def _in_use(candidates: Sequence[Candidate], found: EarlyTermination) -> tuple[int, int]:
    """Returns the number of the candidate that prediction uses, and the index of its threshold."""
    rule = found.rule
    names = [(candidate.criterion, candidate.temperature) for candidate in candidates]
    number = names.index((rule["criterion"], rule["temperature"]))
    return number, candidates[number].index_of(rule["threshold"])


def _write_two_stages(
    out: epath.Path,
    experiment: Experiment,
    predictions: Predictions,
    candidates: Sequence[Candidate],
    results: EvaluationResults,
    answers: Mapping[str, Answers],
    in_use: int,
) -> dict[str, Any]:
    """Writes what only a network with a preview has; returns the report's data of it.

    Args:
      out: the evaluation's folder.
      experiment: the data and the network.
      predictions: the outputs for all images.
      candidates: the criteria of early exits.
      results: the results.
      answers: both stages' answers.
      in_use: number of the candidate that prediction uses.
    """
    assert predictions.coefficients is not None
    assert results.early_termination is not None
    files.write(out / "early_termination.csv", exit_table(candidates))
    classes, vectors = experiment.data.classes, experiment.vector_names()
    means = predictions.coefficients.means()
    similar = similar_classes(means["by_class"])
    draw_coefficients(out / "coefficients.png", vectors, classes, means, similar)

    labels_N = predictions.labels_N
    groups = report_data.choose_pictures(candidates[in_use].confidence_N, answers)
    pixels = _pixels(experiment, np.unique(np.concatenate(list(groups.values()))))

    def answered(index: int) -> Picture:
        given = {stage: int(answers[stage].answer_N[index]) for stage in ("preview", "specialist")}
        return plots.answered(pixels[index], int(labels_N[index]), given, classes)

    plots.draw_images(
        out / "first_and_last_exits.png",
        {
            "The preview is surest of these images": [answered(index) for index in groups["first"][:SHOWN]],
            "The preview is least sure of these": [answered(index) for index in groups["last"][:SHOWN]],
        },
    )
    rows = results.early_termination.criteria
    stops = [report_data.Stops.of(candidate, row) for candidate, row in zip(candidates, rows, strict=True)]
    return {
        "in_use": in_use,
        "exits": [stop.to_json(answers) for stop in stops],
        "groups": {name: group.tolist() for name, group in groups.items()},
        "pictures": report_data.pictures(pixels, labels_N, answers, stops),
        "mended": report_data.mended(labels_N, answers),
        "coefficients": report_data.coefficients(means, vectors, similar, predictions.coefficients.images),
    }


def _pixels(experiment: Experiment, indices: np.ndarray) -> dict[int, np.ndarray]:
    """Returns {index in the split: uint8[H, W, C]}, images as the specialist sees them."""
    data, numbers = experiment.data, [int(index) for index in indices]
    crop = eval_crop(experiment.config.data)
    return {
        number: preprocess.load_eval(example, experiment.eval_side, data.channels, data.num_classes, crop)["image"]
        for number, example in zip(numbers, data.eval.__getitems__(numbers), strict=True)
    }


def class_table(classes: Sequence[str], labels_N: np.ndarray, answers: Mapping[str, Answers]) -> str:
    """Returns CSV: each class with its number of images and each stage's top-1 on them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "count", *answers])
    for label, name in enumerate(classes):
        of_class_N = labels_N == label
        top1 = [f"{given.right_N[of_class_N].mean():.5g}" if of_class_N.any() else "" for given in answers.values()]
        writer.writerow([name, of_class_N.sum(), *top1])
    return text.getvalue()


def exit_table(candidates: Sequence[Candidate]) -> str:
    """Returns CSV: the threshold of each whole percent of exits on one half, and its figures on the other half."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["criterion", "temperature", *vars(candidates[0].reported_on)])
    for candidate in candidates:
        for index in candidate.each_percent():
            row = candidate.reported_on.point(index)
            writer.writerow([candidate.criterion, f"{candidate.temperature:.6g}", *(f"{x:.8g}" for x in row.values())])
    return text.getvalue()
