"""Data sets: TFDS builders by name, an image folder, and the embedded digits; random access without TensorFlow."""

import contextlib
import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from basisnet_jax.data import folder, record_files
from basisnet_jax.data.digits import Digits
from basisnet_jax.data.glyphs import Glyphs
from basisnet_jax.data.pipeline import Source
from basisnet_jax.errors import UserError

# Files that TFDS cannot download, by data set. TFDS's own error says so only after minutes.
BY_HAND = {"imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")}

# Images in each split, from the data set's page in TFDS's catalog: TFDS itself knows only the sizes of prepared data.
SIZES = {
    "fashion_mnist": {"train": 60_000, "test": 10_000},
    "imagenet2012": {"train": 1_281_167, "validation": 50_000},
    # docs/examples/glyphs.md
    "glyphs": {"train": 141_312, "validation": 8_992, "unseen_fonts": 10_274, "sweep": 4_062},
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Two splits of encoded images: each example is {'image': PNG or JPEG bytes, 'label': int}."""

    train: Source
    eval: Source
    classes: tuple[str, ...]  # names of the classes; '0', '1', ... if the data set has none
    channels: int  # 1 or 3
    identity: str  # of the training split: equal for the same examples in the same order
    name: str = ""  # what people call the data set: TFDS's name, or the folder's
    # {integer feature: names of its values}, such as the glyphs' scripts
    values: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are 0 to num_classes - 1."""
        return len(self.classes)

    def number_of(self, feature: str, value: str) -> int:
        """Returns the number that stands for a value of a feature. Raises UserError if there is no such value."""
        if feature not in self.values:
            raise UserError(
                f"{self.name} has no feature {feature!r} whose values have names; it has {', '.join(self.values)}."
            )
        if value not in self.values[feature]:
            raise UserError(f"{feature} = {value!r} is not one of {', '.join(self.values[feature])}.")
        return self.values[feature].index(value)

    def facts(self) -> dict[str, Any]:
        """Returns, as JSON values, what a trained model needs of its data set where the data is missing."""
        return {
            "name": self.name,
            "classes": self.classes,
            "channels": self.channels,
            "train_examples": len(self.train),
            "identity": self.identity,
        }


@dataclasses.dataclass(frozen=True)
class SizeOnlySplit:
    """A split whose size alone is known: enough to compile a program for, nothing to train on."""

    size: int

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]:
        raise LookupError("the images of this split are not here")


@dataclasses.dataclass(frozen=True)
class _WithTask:
    """A source whose examples also have a 'task', copied from another of their features."""

    source: Source
    feature: str
    num_tasks: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]:
        return [{**example, "task": self._task(example)} for example in self.source.__getitems__(indices)]

    def _task(self, example: dict[str, Any]) -> int:
        task = example.get(self.feature)
        if not isinstance(task, int | np.integer):
            integers = [name for name, value in example.items() if isinstance(value, int | np.integer)]
            raise UserError(
                f"config.data.task = {self.feature!r} is not an integer feature of this data set; it has "
                f"{', '.join(integers)}."
            )
        if not 0 <= task < self.num_tasks:
            raise UserError(
                f"config.model.num_tasks = {self.num_tasks}, but an example has {self.feature} = {task}; raise it."
            )
        return int(task)


def with_tasks(data: Dataset, feature: str, num_tasks: int) -> Dataset:
    """Adds a 'task' to the examples of a data set: the value of an integer feature, 0 to num_tasks - 1.

    Raises:
      UserError: on reading, if an example lacks the feature or has another value.
    """
    train, evaluation = (
        source if isinstance(source, SizeOnlySplit) else _WithTask(source, feature, num_tasks)
        for source in (data.train, data.eval)
    )
    return dataclasses.replace(data, train=train, eval=evaluation)


def check_classes(name: str, classes: Sequence[str]) -> None:
    """Raises UserError if there are fewer than two classes."""
    if len(classes) < 2:
        raise UserError(
            f"data set {name!r} has {len(classes)} class ({', '.join(classes)}), but a classifier needs at least "
            "2 classes; choose a data set with more classes."
        )


def open_dataset(name: str, data_dir: str, train_split: str, eval_split: str, eval_share: float = 0.0) -> Dataset:
    """Opens a prepared data set; prepares the embedded digits, and no other, if need be. Starts no device.

    Args:
      name: 'digits', 'folder', or a TFDS name whose examples have an 'image' and a 'label'.
      data_dir: where TFDS keeps prepared data; '' for its default (TFDS_DATA_DIR, or tensorflow_datasets in the home).
        For 'folder', the folder of images itself.
      train_split: in TFDS's syntax, such as 'train[:90%]'; for 'folder', the name of a folder.
      eval_split: as `train_split`.
      eval_share: for a 'folder' without splits, the share of each class's images to evaluate.

    Raises:
      UserError: the name or split is unknown, the data is not prepared (the message has the command), or the examples
        have other features.
    """
    if name == "folder":
        train, evaluation, classes = folder.open_splits(data_dir, train_split, eval_split, eval_share)
        shown = folder.name_of(data_dir)
        return Dataset(train, evaluation, classes, channels=3, identity=train.identity(), name=shown)
    builder = _prepared(_builder(name, data_dir), data_dir)
    classes, channels = _classes_and_channels(builder)
    train_source = _source(builder, train_split, "data.train_split")
    return Dataset(
        train=train_source,
        eval=_source(builder, eval_split, "data.eval_split"),
        classes=classes,
        channels=channels,
        identity=f"{builder.info.full_name}, {train_split}, {len(train_source)} examples",
        name=builder.name,
        values={
            name: tuple(feature.names)
            for name, feature in builder.info.features.items()
            if isinstance(feature, tfds.features.ClassLabel) and feature.names
        },
    )


def describe_dataset(name: str, data_dir: str, train_split: str, eval_split: str, eval_share: float = 0.0) -> Dataset:
    """Describes a data set that need not be there, as `open_dataset` does; its splits may be `SizeOnlySplit`.

    Raises:
      UserError: as `open_dataset`, but unprepared data is refused only if its size is not in `SIZES`.
    """
    if name in ("digits", "folder"):
        return open_dataset(name, data_dir, train_split, eval_split, eval_share)
    builder = _builder(name, data_dir)
    if builder.is_prepared() or name not in SIZES:
        splits = _prepared(builder, data_dir).info.splits
    else:
        files = tfds.core.ShardedFileTemplate(builder.data_path, "array_record", dataset_name=name)
        splits = tfds.core.SplitDict(
            [
                tfds.core.SplitInfo(name=x, shard_lengths=[n], num_bytes=0, filename_template=files)
                for x, n in SIZES[name].items()
            ]
        )
    classes, channels = _classes_and_channels(builder)
    return Dataset(
        train=SizeOnlySplit(_size(name, splits, train_split, "data.train_split")),
        eval=SizeOnlySplit(_size(name, splits, eval_split, "data.eval_split")),
        classes=classes,
        channels=channels,
        identity="unread",
        name=name,
    )


def classes_and_channels(
    name: str, data_dir: str, train_split: str, eval_split: str, eval_share: float = 0.0
) -> tuple[tuple[str, ...], int]:
    """Returns (class names, image channels) of a data set, which TFDS need not have prepared."""
    if name == "folder":
        return folder.open_splits(data_dir, train_split, eval_split, eval_share)[2], 3
    return _classes_and_channels(_builder(name, data_dir))


def _classes_and_channels(builder: tfds.core.DatasetBuilder) -> tuple[tuple[str, ...], int]:
    features = dict(builder.info.features or {})
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise UserError(
            f"data.name = {builder.name!r} has no features 'image' and 'label'; choose an image classification set."
        )
    return tuple(label.names), 1 if image.shape[-1] == 1 else 3  # None means any number of channels: decoded to RGB


def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    where = os.path.expanduser(data_dir) or None
    with record_files.reading_description(where or "TFDS's folder", _again(name, data_dir)):
        return _opened_builder(name, where)


def _opened_builder(name: str, where: str | None) -> tfds.core.DatasetBuilder:
    if name == "digits":
        return Digits(data_dir=where, file_format="array_record")
    if name == "glyphs":
        return Glyphs(data_dir=where)
    logging.get_absl_logger().addFilter(_not_about_variants)
    try:
        return tfds.builder(name, data_dir=where, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        raise UserError(
            f"data.name = {name!r} is not a data set of TFDS; `tfds.list_builders()` and TFDS's catalog list the names."
        ) from None
    except ValueError as error:
        raise UserError(f"data.name = {name!r} cannot be opened: {str(error).splitlines()[0]}") from None


def _prepared(builder: tfds.core.DatasetBuilder, data_dir: str) -> tfds.core.DatasetBuilder:
    """Returns the builder if its data is there; prepares the embedded digits if need be."""
    if not builder.is_prepared():
        if builder.name != "digits":
            raise UserError(
                f"data set {builder.name!r} is not prepared in {builder.data_dir}; {_by_hand(builder)}prepare it with "
                f"`{_command(builder.name, data_dir)}`, or give its folder with --config.data.dir."
            )
        _prepare(builder)
        builder = _builder(builder.name, data_dir)  # another process may have prepared the data
    if not builder.info.splits:
        raise UserError(
            f"{builder.data_dir} has no splits: its preparation did not end, or its dataset_info.json is gone; "
            f"{_again(builder.name, data_dir)}."
        )
    return builder


def _by_hand(builder: tfds.core.DatasetBuilder) -> str:
    """Returns which files to put where before preparing; '' if TFDS downloads all, or all are there."""
    manual = builder.data_dir_root / "downloads" / "manual"
    missing = [name for name in BY_HAND.get(builder.name, ()) if not (manual / name).exists()]
    if missing:
        return f"put {' and '.join(missing)} (see {builder.info.homepage}) into {manual} and "
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and builder.name not in BY_HAND:
        return f"put the files from its page ({builder.info.homepage}) into {manual} and "
    return ""


def _command(name: str, data_dir: str) -> str:
    """Returns the command that prepares a data set. `tfds build` would need Apache Beam for every data set."""
    if name == "glyphs":
        return f"python -m basisnet_jax.data.prepare_glyphs{f' --data_dir={data_dir}' if data_dir else ''}"
    place = f'data_dir="{data_dir}", ' if data_dir else ""
    call = f'tfds.builder("{name}", {place}file_format="array_record").download_and_prepare()'
    return f"python -c 'import tensorflow_datasets as tfds; {call}'"


def _again(name: str, data_dir: str) -> str:
    """Returns how to prepare a data set again, as the end of a sentence."""
    if name == "digits":
        return "remove its folder, and the same command prepares it again"
    return f"remove its folder and prepare it again with `{_command(name, data_dir)}`"


def _not_about_variants(record: Any) -> bool:
    """Drops TFDS's warning about a data set that is not there: the UserErrors here say it better."""
    return "Variant folder" not in record.getMessage()


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    tfds.disable_progress_bar()
    logging.info("preparing %s in %s", builder.name, builder.data_dir)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints what the log line above says
            builder.download_and_prepare()
    except (OSError, RuntimeError) as error:  # RuntimeError: of the records' writer, where the disk is full
        if builder.is_prepared():  # by another process in the meantime
            return
        said = (error.strerror if isinstance(error, OSError) else None) or record_files.reason(error)
        raise UserError(
            f"cannot prepare {builder.name!r} in {builder.data_dir} ({said}); make room, or give another folder with "
            "--config.data.dir."
        ) from None


def _size(name: str, splits: tfds.core.SplitDict, split: str, field: str) -> int:
    """Returns the number of images in a split. Raises UserError if the split does not exist or is empty."""
    try:
        size = splits[split].num_examples
    except (ValueError, KeyError, AssertionError) as error:
        raise UserError(
            f"config.{field} = {split!r} is not a split of {name!r} ({str(error).splitlines()[0]}); "
            f"it has {', '.join(splits)}."
        ) from None
    # array_record's own message for an empty slice does not name the setting.
    if not size:
        raise UserError(f"config.{field} = {split!r} holds no examples of {name!r}; take a larger slice.")
    return size


def _source(builder: tfds.core.DatasetBuilder, split: str, field: str) -> Source:
    _size(builder.name, builder.info.splits, split, field)
    # Every image feature stays encoded: to decode an unused mask would cost as much as to decode the image.
    images = [name for name, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image)]
    try:
        records = builder.as_data_source(split=split, decoders={name: tfds.decode.SkipDecoding() for name in images})
        return record_files.RecordFiles(records, str(builder.data_dir), _again(builder.name, ""))
    except (ValueError, NotImplementedError):
        raise UserError(
            f"{builder.data_dir} holds a file format other than array_record; remove it and prepare it again with "
            f"`{_command(builder.name, '')}`."
        ) from None
