"""Compares a specialist frozen for one place with other static networks of the same bases, on images of that place.

    python benchmarks/frozen.py --workdir=runs/fashion_mnist [--classes 3] [--data_dir=DIR] [--json frozen.json]
    python benchmarks/frozen.py --workdir=runs/glyphs --study=glyphs --split=validation --data_dir=DIR

A place is a set of --classes classes; all such sets are tried. Or, with --study, the groups of classes that a study of
benchmarks/studies/ has are the places: the glyphs' scripts. The coefficients of a place are the average of those
that the preview predicts, without labels, for its images in one half of the evaluation split
(`reported_half`). All figures are of its images in the other half: top-1 among all classes, and top-1 among
the classes of the place, for a user who knows these.
"""

import argparse
import itertools
import json
import pathlib

import jax
import numpy as np

from basisnet_jax.config import with_defaults
from basisnet_jax.experiment.run import make_experiment
from basisnet_jax.export.checks import by_jax, joined
from basisnet_jax.export.freeze import frozen
from basisnet_jax.export.package import open_network
from basisnet_jax.models.stages import normalize
from basisnet_jax.serving.exit_curve import reported_half
from benchmarks.studies import load, path_of

BATCH = 250


def main() -> None:
    """Prints a table; writes the same as JSON, place by place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--data_dir", help="where TFDS keeps its data, if not where the run had it")
    parser.add_argument("--split", help="the split to evaluate on; default: the run's")
    parser.add_argument("--classes", type=int, default=3, help="classes per place")
    parser.add_argument("--study", help="take the groups of this study as places")
    parser.add_argument("--json", type=pathlib.Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()

    config = with_defaults(json.loads(pathlib.Path(arguments.workdir, "config.json").read_text()))
    config.data.dir = config.data.dir if arguments.data_dir is None else arguments.data_dir
    config.data.eval_split = arguments.split or config.data.eval_split
    opened, network = open_network(config, arguments.workdir)
    found = list(make_experiment(config, jax.devices()[:1], training=False).eval_batches())
    good_N = np.concatenate([np.asarray(batch["mask"]) for batch in found]) > 0
    images, labels_N = (np.concatenate([np.asarray(batch[x]) for batch in found])[good_N] for x in ("image", "label"))
    reported_N = reported_half(len(labels_N))

    def batches(images):
        return (images[start : start + BATCH] for start in range(0, len(images), BATCH))

    first = jax.jit(
        lambda images: network.model.apply(network.variables, normalize(images), train=False, method="first_stage")[1]
    )
    chosen_labels_M = labels_N[~reported_N]
    chosen_MxLxN = np.concatenate([first(piece) for piece in batches(images[~reported_N])])
    images, labels_N = images[reported_N], labels_N[reported_N]
    uniform_LxN = np.full_like(chosen_MxLxN[0], 1 / chosen_MxLxN.shape[-1])

    static = frozen(network, uniform_LxN).model
    apply = jax.jit(lambda variables, images: static.apply(variables, normalize(images), train=False).logits_BxK)

    def logits_of(coefficients_LxN, images):
        variables = frozen(network, coefficients_LxN).variables
        # Every piece of one size, so that the program is compiled once.
        padded = np.concatenate([images, np.zeros((-len(images) % BATCH, *images.shape[1:]), np.uint8)])
        return np.concatenate([apply(variables, piece) for piece in batches(padded)])[: len(images)]

    whole = joined(list(map(by_jax(network), batches(images))))
    everywhere = {
        "both stages": whole.specialist,
        "preview": whole.preview,
        "frozen for all classes": logits_of(chosen_MxLxN.mean(axis=0), images),
        "uniform average": logits_of(uniform_LxN, images),
    }
    places = []
    for place, classes in places_of(opened.classes, arguments):
        here_N = np.isin(labels_N, classes)
        coefficients_LxN = chosen_MxLxN[np.isin(chosen_labels_M, classes)].mean(axis=0)
        answers = {"frozen here": logits_of(coefficients_LxN, images[here_N])}
        answers.update({name: logits[here_N] for name, logits in everywhere.items()})
        top1 = _top1(answers, labels_N[here_N], classes)
        places.append({"place": place, "images": int(here_N.sum()), **top1})
    print(table(places, len(labels_N)))
    if arguments.study:
        print(by_place(places))
    if arguments.json:
        arguments.json.write_text(json.dumps(places, indent=2) + "\n")


def places_of(names, arguments) -> list[tuple[str, tuple[int, ...]]]:
    """Returns (name of the place, its classes) for each place."""
    if not arguments.study:
        chosen = itertools.combinations(range(len(names)), arguments.classes)
        return [(", ".join(names[x] for x in classes), classes) for classes in chosen]
    group_of, groups = load(path_of(arguments.study)).group_of(), {}
    for number, name in enumerate(names):
        groups.setdefault(group_of[name], []).append(number)
    return [(name, tuple(classes)) for name, classes in groups.items()]


def by_place(places) -> str:
    """Returns Markdown: a row for each place, top-1 among all classes and, in brackets, among the place's."""
    networks = list(places[0]["top1"])
    lines = [f"| place | images | {' | '.join(networks)} |", "|---" * (len(networks) + 2) + "|"]
    for place in places:
        cells = [f"{place['top1'][x]:.4f} ({place['top1_among_place'][x]:.4f})" for x in networks]
        lines.append(f"| {place['place']} | {place['images']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _top1(answers, labels_N, classes):
    among = np.isin(np.arange(next(iter(answers.values())).shape[1]), classes)
    return {
        "top1": {name: float((x.argmax(-1) == labels_N).mean()) for name, x in answers.items()},
        "top1_among_place": {
            name: float((np.where(among, x, -np.inf).argmax(-1) == labels_N).mean()) for name, x in answers.items()
        },
    }


def table(places, count) -> str:
    """Returns the mean over places of each network, and in how many places the one frozen there is better."""
    lines = [f"{len(places)} places, {count} images reported on"]
    lines.append(f"{'':24}{'top-1':>10}{'frozen here better, worse':>28}{'among its classes':>20}{'better, worse':>16}")
    for name in places[0]["top1"]:
        cells = [f"{name:24}"]
        for kind, width in (("top1", 10), ("top1_among_place", 20)):
            values = np.array([place[kind][name] for place in places])
            here = np.array([place[kind]["frozen here"] for place in places])
            against = "" if name == "frozen here" else f"{(here > values).sum()}, {(here < values).sum()}"
            cells.append(f"{values.mean():{width}.4f}{against:>{28 if kind == 'top1' else 16}}")
        lines.append("".join(cells).rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    main()
