"""--mode=evaluate: fills a trained run's `evaluation/` folder. `docs/guides/evaluation.md` explains the figures."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from basisnet_jax import runtime
from basisnet_jax.config import Config
from basisnet_jax.data.folder import data_name
from basisnet_jax.errors import UserError
from basisnet_jax.evaluation import early_exit
from basisnet_jax.evaluation.coefficients import CoefficientSums
from basisnet_jax.evaluation.early_exit import Candidate
from basisnet_jax.evaluation.output_files import write_files
from basisnet_jax.evaluation.plots import Network
from basisnet_jax.evaluation.results import Best, Criterion, EarlyTermination, EvaluationResults, ExitPoint, Half
from basisnet_jax.evaluation.whole_split import Predictions, predict, summarize
from basisnet_jax.experiment.run import Experiment, make_experiment
from basisnet_jax.export import package
from basisnet_jax.host import compilation_cache, distributed, files, installed, terminal, trackers
from basisnet_jax.inference import trained_run
from basisnet_jax.models.stages import Stages
from basisnet_jax.serving import exit_curve
from basisnet_jax.serving.exit_rule import FILE, NEVER, ChosenRule, Provenance
from basisnet_jax.serving.export import Export
from basisnet_jax.settings.declare import as_json, fail
from basisnet_jax.settings.groups import Settings
from basisnet_jax.training.metrics import is_correct
from basisnet_jax.workdir.checkpoint import restore_model
from basisnet_jax.workdir.run_folder import is_export, open_run


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
            write_files(folder, experiment, predictions, candidates, results, compared)
            if chosen:
                files.write_json(out / FILE, chosen.to_json())
                if is_export(workdir):
                    package.write_rule(folder, chosen)
        except OSError as error:
            raise UserError(f"cannot write to {out} ({error.strerror}); make it writable.") from None
        if not is_export(workdir):
            with trackers.opened(config.log.trackers, config.log.project, folder) as tracked:
                tracked.log_files(*sorted(path for path in out.iterdir() if path.is_file()))
    return results


def _stages_of_export(folder: epath.Path, experiment: Experiment) -> tuple[Provenance, Stages]:
    """Opens the first kind of LiteRT files of an export; returns the weights' provenance and the stages."""
    if jax.process_count() > 1:
        raise UserError(f"{folder} is an export, which only one process can evaluate; start a single process.")
    classifier = runtime.TwoStageClassifier.from_export(os.fspath(folder), NEVER, os.cpu_count() or 1)
    if (experiment.model.preview is None) != (classifier.first_stage is None):
        raise UserError(
            f"{folder} has no file for the preview: it was made by --specialize or with export.early_exit=False; "
            "evaluate the run, or an export with both stages."
        )
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
    half_N = exit_curve.reported_half(len(labels_N))
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
    chosen = {"max_accuracy_drop": exit_curve.at_most_drop(candidate.chosen_on, config.eval.max_accuracy_drop)}
    if config.eval.madds_target:
        chosen["madds_target"] = exit_curve.at_most_madds(
            candidate.chosen_on, config.eval.madds_target, "config.eval.madds_target"
        )
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
