"""Draws a BasisNet's mean coefficients by group of classes, such as the glyphs' scripts.

    python benchmarks/coefficients_by_group.py --workdir=RUN --study=glyphs --split=validation --data_dir=DATA \
      --out=coefficients.png

The classes of a group count by their images. An evaluation draws the same picture class by class.
"""

import argparse
import dataclasses
import json
import pathlib

import jax
import numpy as np
from etils import epath

from basisnet_jax.config import with_defaults
from basisnet_jax.evaluation.coefficient_plot import draw_coefficients, similar_classes
from basisnet_jax.evaluation.coefficients import CoefficientSums
from basisnet_jax.evaluation.whole_split import predict
from basisnet_jax.experiment.run import make_experiment
from basisnet_jax.workdir.checkpoint import restore_model
from benchmarks.studies import load, path_of


def by_group(sums: CoefficientSums, groups: list[str]) -> tuple[list[str], CoefficientSums]:
    """Adds up the sums of the classes of each group.

    Args:
      sums: by class.
      groups: the group of each class.

    Returns:
      The names of the groups, sorted, and the sums by group.
    """
    names, number_K = np.unique(groups, return_inverse=True)
    classes_GxLxN, images_G = np.zeros((len(names), *sums.classes.shape[1:])), np.zeros(len(names))
    np.add.at(classes_GxLxN, number_K, sums.classes)
    np.add.at(images_G, number_K, sums.images)
    return names.tolist(), dataclasses.replace(sums, classes=classes_GxLxN, images=images_G)


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--study", required=True, help="whose groups are taken")
    parser.add_argument("--data_dir", help="where TFDS keeps its data, if not where the run had it")
    parser.add_argument("--split", help="the split to evaluate on; default: the run's")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()

    config = with_defaults(json.loads(pathlib.Path(options.workdir, "config.json").read_text()))
    config.data.dir = config.data.dir if options.data_dir is None else options.data_dir
    config.data.eval_split = options.split or config.data.eval_split
    experiment = make_experiment(config, jax.devices()[:1], training=False)
    step, variables = restore_model(epath.Path(options.workdir), "best", ema=True, like=experiment.abstract_variables)
    sums = predict(experiment, experiment.stages.of(variables, experiment.warm_start_left(step))).coefficients
    assert sums is not None, "a network without a preview has no coefficients to draw"
    group_of = load(path_of(options.study)).group_of
    assert group_of is not None, "this study has no groups"
    of_class = group_of()
    names, grouped = by_group(sums, [of_class[name] for name in experiment.data.classes])
    means = grouped.means()
    similar = similar_classes(means["by_class"])
    draw_coefficients(epath.Path(options.out), experiment.vector_names(), names, means, similar)


if __name__ == "__main__":
    main()
