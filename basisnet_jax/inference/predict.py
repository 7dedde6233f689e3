"""Two-stage inference: the preview sees every image, and the specialist those that the preview is unsure of."""

import csv
import dataclasses
import functools
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from jax.flatten_util import ravel_pytree

from basisnet_jax import runtime
from basisnet_jax.config import eval_resolution, fail, is_export, open_run, with_defaults
from basisnet_jax.data import preprocess
from basisnet_jax.data.decode import BadExampleError
from basisnet_jax.data.folder import as_text, find_images
from basisnet_jax.errors import UserError
from basisnet_jax.evaluation.early_exit import provenance_of
from basisnet_jax.experiment.networks import eval_crop, make_model, model_cost
from basisnet_jax.experiment.plan import derive
from basisnet_jax.host import tables, terminal
from basisnet_jax.inference import batching
from basisnet_jax.models.basisnet import FIRST_STAGE, BasisNet, Variables
from basisnet_jax.models.stages import Stages, make_stages
from basisnet_jax.serving.exit_rule import ChosenRule, ExitRule, threshold_rule
from basisnet_jax.serving.manifest import Manifest
from basisnet_jax.training.schedule import warm_start
from basisnet_jax.workdir.checkpoint import restore_model

READ_AT_ONCE = 256  # images of which the pixels are held


@dataclasses.dataclass(frozen=True)
class OpenedRun:
    """A trained run on the first device; its data need not be there."""

    folder: epath.Path
    config: ml_collections.ConfigDict  # the run's; the model may compute otherwise
    model: BasisNet
    step: int  # after which the variables were saved
    variables: Variables  # float32 arrays of NumPy
    data_name: str  # what people call the data set that it was trained on
    warm_start_left: float  # at that step, from 1 to 0
    classes: tuple[str, ...]
    side: int  # of the images, in pixels
    channels: int


def open_trained(workdir: str, config: ml_collections.ConfigDict | None = None, **of_the_model: Any) -> OpenedRun:
    """Restores a run.

    Args:
      workdir: of the run.
      config: as in `TwoStageClassifier.from_checkpoint`.
      of_the_model: fields of config.model that change how it computes, and none of its parameters.

    Raises:
      UserError: no run, no checkpoint, another model, or a routing that asks for more than an image.
    """
    folder, config = open_run(workdir, config)
    if config.model.routing == "task":
        fail("model.routing", "task", "asks for each image's task, which a classifier of images does not know")
    computing = config.copy_and_resolve_references()
    computing.mesh.fsdp = 1
    computing.model.update(of_the_model)
    facts = _read_json(folder / "data.json", "the names of the classes; the run's --mode=train writes it")
    model = make_model(computing.model, len(facts["classes"]))
    plan = derive(
        computing, train_examples=facts["train_examples"], eval_examples=1, devices=1, processes=1, training=False
    )
    step, variables = restore_model(folder, config.eval.checkpoint, ema=config.eval.ema)
    return OpenedRun(
        folder=folder,
        config=config,
        model=model,
        step=step,
        variables=variables,
        warm_start_left=float(warm_start(step, plan.warm_start_steps)),
        data_name=facts.get("name") or config.data.name,
        classes=tuple(facts["classes"]),
        side=eval_resolution(config),
        channels=facts["channels"],
    )


@dataclasses.dataclass(frozen=True)
class TwoStageClassifier(runtime.TwoStageClassifier):
    """A trained model that runs no more of itself than each image needs.

    Its stages are any functions that can be called with b in `buckets.SIZES`: jitted ones, or one that was exported.

    Attributes:
      crop: the part of an image file that is classified.
    """

    crop: preprocess.EvalCrop = preprocess.WHOLE_IMAGE

    @classmethod
    def from_folder(
        cls, workdir: str, threshold: float | None = None, config: ml_collections.ConfigDict | None = None
    ) -> "TwoStageClassifier":
        """Opens an export by `from_export`, and a run by `from_checkpoint`."""
        if not is_export(workdir):
            return cls.from_checkpoint(workdir, threshold, config)
        open_run(workdir, config, or_export=True)
        return cls.from_export(workdir, threshold)

    @classmethod
    def from_checkpoint(
        cls, workdir: str, threshold: float | None = None, config: ml_collections.ConfigDict | None = None
    ) -> "TwoStageClassifier":
        """The trained model of a run, on the first device. The data that it was trained on is not needed.

        Args:
          workdir: of the run.
          threshold: of the largest softmax probability at which an image exits; None takes the rule that
            --mode=evaluate chose.
          config: the run's with other `data.eval_crop`, `eval.checkpoint`, `eval.ema` or `eval.resolution`; None is
            the run's own.

        Raises:
          UserError: no run, no checkpoint, another model, no rule or one that was chosen with other weights, or a
            routing that asks for more than an image.
        """
        opened = open_trained(workdir, config)
        model, config = opened.model, opened.config
        stages = jit_stages(model, opened.variables, opened.warm_start_left)
        return cls(
            first_stage=stages.first,
            second_stage=stages.second,
            rule=rule_of(opened, threshold).rule if model.preview else ExitRule(),
            cost=model_cost(model, opened.side, opened.channels),
            classes=opened.classes,
            side=opened.side,
            channels=opened.channels,
            crop=eval_crop(config.data),
        )

    @classmethod
    def from_export(
        cls, folder: str, threshold: float | None = None, threads: int = 1, suffix: str | None = None
    ) -> Self:
        """As `runtime.TwoStageClassifier.from_export`, and it knows how image files are cropped."""
        found = super().from_export(folder, threshold, threads, suffix)
        return dataclasses.replace(found, crop=eval_crop(with_defaults(Manifest.load(folder).config).data))

    def _run(self, function: Callable[..., Any], *arrays_Bx: np.ndarray) -> list[np.ndarray]:
        return batching.run(function, *arrays_Bx)


def jit_stages(model: BasisNet, variables: Variables, warm_start: float) -> Stages:
    """Jits a model's stages and gives them their variables and the warm start that is left.

    A call takes a microsecond or two for every array that it hands on. So each stage is given only the variables that
    the stage reads, and all vectors, which are most of the arrays, packed into one.

    Returns:
      first(uint8[B, H, W, C]) -> (logits_BxK, coefficients_BxLxN), None without a preview, and second(those images and
      coefficients) -> logits_BxK; float32.
    """
    first, second = make_stages(model)

    def given(stage: Callable[..., Any], reads: Callable[[str], bool]) -> functools.partial[Any]:
        read = {
            collection: {name: tree[name] for name in tree if reads(name)} for collection, tree in variables.items()
        }
        vectors, others = (
            jax.tree.map(lambda leaf, wanted=wanted: leaf if (leaf.ndim == 1) == wanted else None, read)
            for wanted in (True, False)
        )
        packed, unpack = ravel_pytree(vectors)

        def of_packed(weights: Any, *arrays_Bx: jax.Array) -> Any:
            warm_start, packed, others = weights
            unpacked = jax.tree.map(
                lambda vector, other: other if vector is None else vector,
                unpack(packed),
                others,
                is_leaf=lambda leaf: leaf is None,
            )
            return stage(unpacked, warm_start, *arrays_Bx)

        return functools.partial(jax.jit(of_packed), jax.device_put((jnp.float32(warm_start), packed, others)))

    return Stages(
        given(first, FIRST_STAGE.__contains__) if first else None, given(second, lambda name: name not in FIRST_STAGE)
    )


def rule_of(opened: OpenedRun, threshold: float | None = None) -> ChosenRule:
    """Returns the rule to use with a run that has a preview.

    Args:
      opened: the run.
      threshold: that a user gave; None takes the rule that --mode=evaluate chose.

    Raises:
      UserError: there is no rule, it was chosen with other weights, or the threshold is not a probability.
    """
    if threshold is not None:
        return ChosenRule(threshold_rule(threshold))
    folder = opened.folder / "evaluation"
    chosen = ChosenRule.load(folder)
    chosen.check_fits(provenance_of(opened.config, opened.data_name, opened.step), folder)
    return chosen


def _read_json(path: epath.Path, what: str) -> Any:
    if not path.exists():
        raise UserError(f"there is no {path}, which has {what}.")
    return json.loads(path.read_text())


class Row(NamedTuple):
    """What is said of one image file."""

    file: str
    label: str
    probability: float
    stage: str  # 'preview' or 'specialist'
    madds: int


def predict_files(classifier: TwoStageClassifier, pattern: str) -> tuple[list[Row], list[str]]:
    """Classifies image files.

    Args:
      classifier: a trained model.
      pattern: a folder, or a pattern of names such as 'photos/*.jpg'; see `folder.find_images`.

    Returns:
      A row for each image in the order of their names, and a sentence for each file that is none.

    Raises:
      UserError: there is no such image.
    """
    files = find_images(pattern, "images")
    rows: list[Row] = []
    bad: list[str] = []
    with terminal.Progress() as progress:
        progress.stage("classifying", len(files))
        for start in range(0, len(files), READ_AT_ONCE):
            some = files[start : start + READ_AT_ONCE]
            images = dict(read_images(some, classifier.side, classifier.channels, classifier.crop, bad))
            if images:
                rows += _rows(classifier, images)
            progress.advance(len(some))
    return rows, bad


def _rows(classifier: TwoStageClassifier, images: dict[str, np.ndarray]) -> Iterator[Row]:
    """Yields the answers on images, {file: pixels}."""
    answers = classifier.classify(np.stack(list(images.values())))
    for file, label, probability, early, madds in zip(images, *answers, strict=True):
        stage = "preview" if early else "specialist"
        yield Row(as_text(file), classifier.classes[label], float(probability), stage, int(madds))


def read_images(
    files: Iterable[str], side: int, channels: int, crop: preprocess.EvalCrop, bad: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """(file, its pixels as evaluation sees them); of each file that is no image, `bad` gets a sentence."""
    for file in files:
        try:
            with open(file, "rb") as opened:
                encoded = opened.read()
            yield file, preprocess.load_image(encoded, side, channels, crop)
        except BadExampleError as error:
            bad.append(f"{file} {error}")
        except OSError as error:
            bad.append(f"{file} cannot be read ({error.strerror})")


def table(rows: Sequence[Row], style: str) -> str:
    """The rows as 'table' (for eyes), 'csv' or 'json'."""
    if style == "json":
        return json.dumps([row._asdict() for row in rows], indent=2)
    if style == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([Row._fields, *rows])
        return text.getvalue().rstrip("\n")
    cells = [Row._fields, *((x.file, x.label, f"{x.probability:.4f}", x.stage, f"{x.madds:,}") for x in rows)]
    return "\n".join(tables.align(cells, left=(0, 1, 3)))
