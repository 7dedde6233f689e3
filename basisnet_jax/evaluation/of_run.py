"""--mode=evaluate: fills a trained run's `evaluation/` folder. `docs/guides/evaluation.md` explains the figures."""

import csv
import dataclasses
import functools
import io
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from basisnet_jax import runtime
from basisnet_jax.config import Config
from basisnet_jax.data import preprocess
from basisnet_jax.data.folder import data_name
from basisnet_jax.errors import UserError
from basisnet_jax.evaluation import calibration, early_exit, plots
from basisnet_jax.evaluation.coefficient_plot import draw_coefficients
from basisnet_jax.evaluation.coefficients import CoefficientSums
from basisnet_jax.evaluation.early_exit import Candidate
from basisnet_jax.evaluation.plots import Network, Picture
from basisnet_jax.evaluation.results import Best, Criterion, EarlyTermination, EvaluationResults, ExitPoint, Half
from basisnet_jax.evaluation.whole_split import Predictions, predict, summarize
from basisnet_jax.experiment.model import eval_crop
from basisnet_jax.experiment.run import Experiment, make_experiment
from basisnet_jax.export import package
from basisnet_jax.host import compilation_cache, distributed, files, installed, terminal
from basisnet_jax.inference import trained_run
from basisnet_jax.models.stages import Stages
from basisnet_jax.serving.exit_rule import FILE, NEVER, ChosenRule, Provenance
from basisnet_jax.serving.export import Export
from basisnet_jax.settings.declare import as_json, fail
from basisnet_jax.settings.groups import Settings
from basisnet_jax.training.metrics import is_correct
from basisnet_jax.workdir.checkpoint import restore_model
from basisnet_jax.workdir.run_folder import is_export, open_run

EXIT_PERCENT = range(0, 101)  # rows of the CSV for each criterion
SHOWN = 8  # images of each kind that are drawn


def evaluate_run(config: Config | None, workdir: str, devices: Sequence[jax.Device] | None = None) -> EvaluationResults:
    """Evaluates a trained run, or the LiteRT files of its export, and writes `evaluation/` into its folder.

    Args:
      config: the config that started the run; settings that only evaluation reads may differ. None is the run's own.
      workdir: folder of the run, or of an export.
      devices: devices to run on; None is all devices.

    Returns:
      The contents of `evaluation/results.json`.

    Raises:
      UserError: config, data, devices, workdir or checkpoint do not fit.
    """
    with terminal.Progress(silent=not distributed.is_first()) as progress:
        return _evaluate(config, workdir, devices, progress)


def _evaluate(
    config: Config | None,
    workdir: str,
    devices: Sequence[jax.Device] | None,
    progress: terminal.Progress,
) -> EvaluationResults:
    progress.stage("opening run and data")
    folder, config = open_run(workdir, config, or_export=True)
    experiment = make_experiment(config, devices, training=False)
    ablations = [name for name in config.eval.coefficients if name != "predicted"]
    if ablations and experiment.model.preview is None:
        fail(
            "eval.coefficients",
            tuple(config.eval.coefficients),
            "must be ('predicted',) for a network without a preview",
        )
    compared = [_compared(name, experiment) for name in config.eval.compare]

    if is_export(workdir):
        provenance, stages = _stages_of_export(folder, experiment)
    else:
        step, variables = restore_model(
            folder, config.eval.checkpoint, ema=config.eval.ema, like=experiment.abstract_variables
        )
        stages = experiment.stages.of(variables, experiment.warm_start_left(step))
        provenance = trained_run.provenance_of(config, experiment.data.name, step)

    def predicted(number: int, coefficients: str) -> Predictions:
        """Predicts the split with the named coefficients; `number` counts the evaluations."""
        which = "" if coefficients == "predicted" else f" with coefficients {coefficients}"
        count = f" {number}/{1 + len(ablations)}" if ablations else ""
        progress.stage(
            f"evaluating{count}{which}", experiment.plan.eval_examples, waiting=compilation_cache.compiling()
        )
        return predict(experiment, stages, coefficients, progress)

    predictions = predicted(1, "predicted")
    ablated = {name: predicted(number, name) for number, name in enumerate(ablations, 2)}
    for evaluated in (predictions, *ablated.values()):
        if not np.isfinite(evaluated.logits_NxK).all():
            raise UserError(
                f"the network's logits at step {provenance.step} are not finite; choose another "
                "--config.eval.checkpoint."
            )
    progress.stage("choosing thresholds")
    candidates = _candidates(experiment, predictions)
    chosen = _chosen(config, candidates, len(predictions.labels_N), provenance) if candidates else None
    termination = _termination(config, candidates, chosen) if chosen else None
    results = _results(experiment, provenance.step, predictions, ablated, termination)
    if jax.process_index() == 0:
        out = folder / "evaluation"
        progress.stage("drawing")
        try:
            out.mkdir(parents=True, exist_ok=True)
            results.save(out)
            _write_files(out, experiment, predictions, candidates, chosen, results, compared)
            if chosen:
                files.write_json(out / FILE, chosen.to_json())
                if is_export(workdir):
                    package.write_rule(folder, chosen)
        except OSError as error:
            raise UserError(f"cannot write to {out} ({error.strerror}); make it writable.") from None
    return results


def _stages_of_export(folder: epath.Path, experiment: Experiment) -> tuple[Provenance, Stages]:
    """Opens the first kind of LiteRT files of an export; returns the weights' provenance and the stages."""
    if jax.process_count() > 1:
        raise UserError(f"{folder} is an export, which only one process can evaluate; start a single process.")
    classifier = runtime.TwoStageClassifier.from_export(os.fspath(folder), NEVER, os.cpu_count() or 1)
    if (experiment.model.preview is None) != (classifier.first_stage is None):
        raise UserError(f"{folder} is frozen for one place; evaluate the run, or an export without --specialize.")
    if experiment.eval_side != classifier.side:
        fail("eval.resolution", experiment.eval_side, f"must be {classifier.side}, the side of the export's images")

    def on_host(stage: Any, *arrays_Bx: jax.Array | None) -> Any:
        return stage(*(np.asarray(array_Bx) for array_Bx in arrays_Bx if array_Bx is not None))

    first = functools.partial(on_host, classifier.first_stage) if classifier.first_stage else None
    export = Export.open(os.fspath(folder))
    manifest = export.manifest
    hashes = {name: manifest.files[name].sha256 for name in export.stages().values()}
    exported = manifest.config["eval"]  # the exported weights do not depend on the current config
    provenance = dataclasses.replace(
        trained_run.provenance_of(experiment.config, experiment.data.name, manifest.step, hashes),
        checkpoint=exported["checkpoint"],
        ema=exported["ema"],
    )
    return provenance, Stages(first, lambda *arrays_Bx: on_host(classifier.second_stage, *arrays_Bx)[0])


def _compared(workdir: str, experiment: Experiment) -> Network:
    """Returns another evaluated run as a point: its multiply-adds, and its top-1 on the reported half."""
    try:
        other = EvaluationResults.load(epath.Path(workdir).expanduser() / "evaluation")
    except OSError:
        fail("eval.compare", workdir, "has no evaluation/results.json; run --mode=evaluate on it first")
    except ValueError as error:
        fail("eval.compare", workdir, f"cannot be read ({error}); run --mode=evaluate on it again")
    was, now = ((data_name(x), x["eval_split"]) for x in (other.config["data"], as_json(experiment.config.data)))
    if was != now:
        fail("eval.compare", workdir, f"was evaluated on {' '.join(was)}, not on {' '.join(now)}")
    return Network(epath.Path(workdir).name, other.madds["total"], other.reported_half.top1)


def _candidates(experiment: Experiment, predictions: Predictions) -> list[Candidate]:
    labels_N, preview_NxK = predictions.labels_N, predictions.preview_logits_NxK
    if preview_NxK is None:
        return []
    preview_correct_N, correct_N = is_correct(preview_NxK, labels_N), is_correct(predictions.logits_NxK, labels_N)
    return early_exit.candidates(preview_NxK, labels_N, preview_correct_N, correct_N, experiment.cost())


def _results(
    experiment: Experiment,
    step: int,
    predictions: Predictions,
    ablated: dict[str, Predictions],
    early_termination: EarlyTermination | None,
) -> EvaluationResults:
    labels_N, cost, preview_NxK = predictions.labels_N, experiment.cost(), predictions.preview_logits_NxK
    half_N = early_exit.reported_half(len(labels_N))
    correct_N = is_correct(predictions.logits_NxK, labels_N)
    return EvaluationResults(
        config=as_json(experiment.config),
        step=step,
        count=len(labels_N),
        resolution=experiment.eval_side,
        specialist=summarize(predictions.logits_NxK, labels_N),
        preview=None if preview_NxK is None else summarize(preview_NxK, labels_N),
        ablations={name: summarize(other.logits_NxK, labels_N) for name, other in ablated.items()},
        reported_half=Half(count=int(half_N.sum()), top1=float(correct_N[half_N].mean())),
        madds=cost.madds(),
        versions=installed.versions(),
        coefficients=None if predictions.coefficients is None else _coefficient_facts(predictions.coefficients),
        early_termination=early_termination,
    )


def _coefficient_facts(sums: CoefficientSums) -> dict[str, Any]:
    """Returns the results' figures on the coefficients, as JSON values."""
    means = sums.means()
    return {name: means[name].tolist() for name in ("entropy", "wins")} | {"class_share": sums.class_share()}


def _chosen_points(config: Settings, candidate: Candidate) -> dict[str, int]:
    """Returns {setting: index of its threshold}, chosen on the half for choosing; the last is the rule's."""
    chosen = {"max_accuracy_drop": early_exit.at_most_drop(candidate.chosen_on, config.eval.max_accuracy_drop)}
    if config.eval.madds_target:
        chosen["madds_target"] = early_exit.at_most_madds(candidate.chosen_on, config.eval.madds_target)
    return chosen


def _chosen(config: Settings, candidates: list[Candidate], images: int, provenance: Provenance) -> ChosenRule:
    """Returns the rule for prediction and export: the best criterion's, by madds_target if that is set."""
    best = candidates[_best(candidates)]
    setting, index = list(_chosen_points(config, best).items())[-1]
    return best.choice(index, f"{setting}={getattr(config.eval, setting):g}", images, provenance)


def _termination(config: Settings, candidates: list[Candidate], chosen: ChosenRule) -> EarlyTermination:
    """Returns every criterion with its chosen points, the best criterion, and the rule for prediction.

    Thresholds, temperature and the best criterion are chosen on one half; the points are measured on the other.
    """
    rows = [
        Criterion(
            criterion=candidate.criterion,
            temperature=candidate.temperature,
            chosen_mean_top1=candidate.chosen_on.mean_top1,
            mean_top1=candidate.reported_on.mean_top1,
            points={
                name: ExitPoint(**candidate.reported_on.point(index))
                for name, index in _chosen_points(config, candidate).items()
            },
        )
        for candidate in candidates
    ]
    best = rows[_best(candidates)]
    gain = best.mean_top1 - rows[0].mean_top1  # against the largest probability at temperature 1
    return EarlyTermination(rows, Best(best.criterion, best.temperature, gain), chosen.to_json())


def _best(candidates: list[Candidate]) -> int:
    return int(np.argmax([candidate.chosen_on.mean_top1 for candidate in candidates]))


def _write_files(
    out: epath.Path,
    experiment: Experiment,
    predictions: Predictions,
    candidates: list[Candidate],
    chosen: ChosenRule | None,
    results: EvaluationResults,
    compared: list[Network],
) -> None:
    labels_N = predictions.labels_N
    stages = {"specialist": predictions.logits_NxK, "preview": predictions.preview_logits_NxK}
    bins = {
        name: calibration.reliability(logits_NxK, is_correct(logits_NxK, labels_N))
        for name, logits_NxK in stages.items()
        if logits_NxK is not None
    }
    plots.draw_reliability(out / "reliability.png", bins)
    files.write(out / "classes.csv", _class_table(experiment.data.classes, predictions))
    whole = Network("this network", experiment.cost().total, results.reported_half.top1)
    exits = _exits_in_use(candidates, chosen) if chosen else None
    data_set = re.split("[/:]", experiment.config.data.name)[0]
    plots.draw_accuracy(out / "accuracy_over_madds.png", whole, exits, compared, data_set)
    if exits is None or predictions.preview_logits_NxK is None or predictions.coefficients is None:
        return
    files.write(out / "early_termination.csv", _table(candidates))
    draw_coefficients(
        out / "coefficients.png", experiment.vector_names(), experiment.data.classes, predictions.coefficients.means()
    )
    confidence_N = exits[0].rule(0).confidence(predictions.preview_logits_NxK)
    order = np.argsort(-confidence_N, kind="stable")
    plots.draw_images(
        out / "first_and_last_exits.png",
        {
            "The preview is surest of these images": _pictures(experiment, predictions, order[:SHOWN]),
            "The preview is least sure of these": _pictures(experiment, predictions, order[::-1][:SHOWN]),
        },
    )


def _exits_in_use(candidates: list[Candidate], chosen: ChosenRule) -> tuple[Candidate, int]:
    """Returns the best criterion, and the index of the threshold for prediction."""
    best = candidates[_best(candidates)]
    return best, int(np.flatnonzero(best.chosen_on.threshold == chosen.rule.threshold)[0])


def _pictures(experiment: Experiment, predictions: Predictions, indices: np.ndarray) -> list[Picture]:
    """Returns images of the split at the specialist's resolution, with their class and both stages' answers."""
    data, pictures = experiment.data, []
    assert predictions.preview_logits_NxK is not None
    for index, example in zip(indices, data.eval.__getitems__([int(i) for i in indices]), strict=True):
        image = preprocess.load_eval(
            example, experiment.eval_side, data.channels, data.num_classes, eval_crop(experiment.config.data)
        )["image"]
        label = int(predictions.labels_N[index])
        stages = {"preview": predictions.preview_logits_NxK, "specialist": predictions.logits_NxK}
        answers = {name: int(logits_NxK[index].argmax()) for name, logits_NxK in stages.items()}
        pictures.append(plots.answered(image, label, answers, data.classes))
    return pictures


def _class_table(classes: Sequence[str], predictions: Predictions) -> str:
    """Returns CSV: each class with its number of images and both stages' top-1 on them."""
    text, labels_N = io.StringIO(), predictions.labels_N
    stages = {"specialist": predictions.logits_NxK, "preview": predictions.preview_logits_NxK}
    correct = {name: is_correct(logits_NxK, labels_N) for name, logits_NxK in stages.items() if logits_NxK is not None}
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "count", *correct])
    for label, name in enumerate(classes):
        of_class_N = labels_N == label
        top1 = [f"{correct_N[of_class_N].mean():.5g}" if of_class_N.any() else "" for correct_N in correct.values()]
        writer.writerow([name, of_class_N.sum(), *top1])
    return text.getvalue()


def _table(candidates: list[Candidate]) -> str:
    """Returns CSV: the threshold of each whole percent of exits on one half, and its figures on the other half."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["criterion", "temperature", *vars(candidates[0].reported_on)])
    for candidate in candidates:
        for percent in EXIT_PERCENT:
            index = int(np.argmax(candidate.chosen_on.exit_rate >= percent / 100))
            row = candidate.reported_on.point(index)
            writer.writerow([candidate.criterion, f"{candidate.temperature:.6g}", *(f"{x:.8g}" for x in row.values())])
    return text.getvalue()
