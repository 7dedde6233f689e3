"""What the campaign of bad inputs gives bad inputs to: one function for each reader of outside data.

Each function makes the input that its random generator draws, gives it to the reader, and returns 'read' or 'refused'.
It raises if the reader broke its promise: anything but a value of the right kind, or one sentence (`UserError`; for an
image `BadExampleError`).
"""

import contextlib
import functools
import io
import json
import pathlib
import random
import shutil
import struct
from collections.abc import Callable

import bad_run_targets
import numpy as np
from damage import damaged, damaged_json, refusing

from basisnet_jax import runtime
from basisnet_jax.data import preprocess
from basisnet_jax.host.command_line import on_one_line
from basisnet_jax.images import decode, exif, library, load, pillow
from basisnet_jax.images.crop import WHOLE_IMAGE
from basisnet_jax.serving import zoo
from basisnet_jax.serving.manifest import file_facts
from basisnet_jax.weights import readers
from tests.system import test_fuzz as small

EXPORT = pathlib.Path(zoo.FOLDER, "digits")
STAGES = ("preview.int8_weights.tflite", "specialist.int8_weights.tflite")


def image(rng: random.Random, _: pathlib.Path) -> str:
    """Image files, in training and in evaluation."""
    content = damaged(rng, small.IMAGES)
    crop = preprocess.RandomCrop(0.08, 4 / 3) if rng.random() < 0.5 else None
    settings, channels = preprocess.Augmentation(crop=crop), rng.choice((1, 3))
    return image_bytes(content, channels, settings, rng.randrange(2**32))


def image_bytes(content: bytes, channels: int, settings: preprocess.Augmentation, seed: int) -> str:
    """Decodes one image in both ways."""
    example, outcome = {"image": content, "label": 0}, "read"
    loads = (
        lambda: preprocess.load_train(example, 4, channels, 1, settings, np.random.default_rng(seed)),
        lambda: preprocess.load_eval(example, 4, channels, 1, WHOLE_IMAGE),
    )
    for loading in loads:
        try:
            pixels = loading()["image"]
            assert pixels.shape == (4, 4, channels)
            assert pixels.dtype == np.uint8
        except decode.BadExampleError:
            outcome = "refused"
    return outcome


def image_by_pillow(rng: random.Random, _: pathlib.Path) -> str:
    """Reads damaged image files with Pillow, as the runtime does where OpenCV is missing."""
    encoded, channels = damaged(rng, small.IMAGES), rng.choice((1, 3))
    by_opencv = library.decode, library.resize
    library.decode, library.resize = pillow.decode, pillow.resize
    try:
        assert load.load_image(encoded, 4, channels, WHOLE_IMAGE).shape == (4, 4, channels)
        return "read"
    except decode.BadExampleError:
        return "refused"
    finally:
        library.decode, library.resize = by_opencv


def exif_data(rng: random.Random, _: pathlib.Path) -> str:
    """EXIF data: an orientation, whatever it is."""
    assert exif.read_orientation(damaged(rng, small.EXIF_DATA)) in range(1, 9)
    return "read"


def weights(rng: random.Random, folder: pathlib.Path, suffix: str) -> str:
    """Weights files of other libraries."""
    path = folder / f"tiny{suffix}"
    path.write_bytes(hostile_zip(rng) if suffix == ".pth" and rng.random() < 0.3 else damaged(rng, _weights(suffix)))
    with refusing(printed=on_one_line) as outcome:
        arrays = readers.read(path)
        assert all(isinstance(x, np.ndarray) and x.dtype.kind in "fiub" for x in arrays.values())
    assert list(folder.iterdir()) == [path]
    return outcome[0]


@functools.cache
def _weights(suffix: str) -> list[bytes]:
    return [*small.WEIGHTS[suffix], *([keras_2_file()] if suffix == ".h5" else ())]


def keras_2_file() -> bytes:
    """Returns an .h5 file in the older layout."""
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        opened["dense/dense/kernel:0"] = np.arange(12, dtype="<f4").reshape(3, 4)
        opened.attrs["layer_names"] = [b"dense"]
        opened["dense"].attrs["weight_names"] = [b"dense/kernel:0"]
    return file.getvalue()


def hostile_zip(rng: random.Random) -> bytes:
    """Returns an archive, laid out as PyTorch's, around any pickle."""
    import zipfile

    gadgets = b"".join(rng.choice(small.GADGETS) for _ in range(rng.randrange(12)))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as members:
        members.writestr(rng.choice(("tiny/data.pkl", "../../x/data.pkl", "/data.pkl")), b"\x80\x02" + gadgets + b".")
        for name in rng.sample(("tiny/data/0", "tiny/byteorder", "../y", "a\nb", "tiny/data/"), rng.randrange(4)):
            members.writestr(name, rng.randbytes(rng.randrange(16)))
    return archive.getvalue()


def npy(rng: random.Random, folder: pathlib.Path) -> str:
    """Files of pixels that the runtime classifies."""
    path, classifier = folder / "pixels.npy", _classifier()
    path.write_bytes(damaged(rng, _npy_files()))
    with refusing() as outcome:
        answers = classifier.classify(runtime._pixels(str(path)))
        assert {*answers.labels.tolist()} <= {*range(10)}
    return outcome[0]


@functools.cache
def _npy_files() -> list[bytes]:
    files = []
    for array in (np.zeros((2, 24, 24, 1), np.uint8), np.asfortranarray(np.ones((3, 24, 24, 1), np.uint8))):
        for version in ((1, 0), (2, 0), (3, 0)):
            file = io.BytesIO()
            np.lib.format.write_array(file, array, version)
            files.append(file.getvalue())
    file = io.BytesIO()
    np.savez(file, np.zeros((2, 24, 24, 1), np.uint8))
    return [*files, file.getvalue()]


@functools.cache
def _classifier() -> runtime.TwoStageClassifier:
    return runtime.TwoStageClassifier.from_export(str(EXPORT))


def _copy(folder: pathlib.Path) -> pathlib.Path:
    """Copies the export, once for each scratch folder, and makes its manifest whole again."""
    if not (folder / "export").exists():
        shutil.copytree(EXPORT, folder / "export")
    for name in ("manifest.json", "labels.txt", "config.json", *STAGES):
        shutil.copyfile(EXPORT / name, folder / "export" / name)
    return folder / "export"


def _serves(folder: pathlib.Path) -> str:
    with refusing() as outcome:
        classifier = runtime.TwoStageClassifier.from_export(str(folder))
        images = np.zeros((2, classifier.side, classifier.side, classifier.channels), np.uint8)
        answers = classifier.classify(images)
        assert all(classifier.classes[label].isprintable() for label in answers.labels), (
            "a class's name has control characters"
        )
        assert ((answers.probabilities >= 0) & (answers.probabilities <= 1 + 1e-9)).all(), answers.probabilities
        assert (answers.madds >= 0).all()
    return outcome[0]


def manifest(rng: random.Random, folder: pathlib.Path) -> str:
    """An export's manifest: JSON of other values, or damaged bytes."""
    export, content = _copy(folder), (EXPORT / "manifest.json").read_bytes()
    if rng.random() < 0.7:
        content = json.dumps(damaged_json(rng, json.loads(content))).encode("utf-8", "surrogatepass")
    else:
        content = damaged(rng, [content])
    (export / "manifest.json").write_bytes(content)
    return _serves(export)


def _with_facts(export: pathlib.Path, name: str, content: bytes) -> None:
    """Writes a file, and its true hash into the manifest, as whoever made the export can."""
    (export / name).write_bytes(content)
    parsed = json.loads((export / "manifest.json").read_text())
    facts = {"bytes": len(content), "sha256": file_facts(content).sha256, "worst_relative_error": None}
    if name == "labels.txt":
        parsed["labels"] = facts
    else:
        parsed["files"][name] = facts
        parsed["rule"] = {**parsed["rule"], "provenance": None}
    (export / "manifest.json").write_text(json.dumps(parsed))


def labels(rng: random.Random, folder: pathlib.Path) -> str:
    """An export's names of classes, with their true hash."""
    export = _copy(folder)
    names = [str(number) for number in range(10)]
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(10)
        names[at] = rng.choice(
            ("", "a\rb", "\x1b[31mred", "\u2028", "x" * 5000, "\ud800", "a\nb", "é", names[at - 1], "\0")
        )
    content = "\n".join(names).encode("utf-8", "surrogatepass") + rng.choice((b"\n", b"", b"\n\n"))
    _with_facts(export, "labels.txt", damaged(rng, [content], 1) if rng.random() < 0.3 else content)
    return _serves(export)


def tflite(rng: random.Random, folder: pathlib.Path) -> str:
    """An export's .tflite file, damaged: the manifest's hash tells."""
    export, name = _copy(folder), rng.choice(STAGES)
    content = damaged(rng, [(EXPORT / name).read_bytes()])
    (export / name).write_bytes(content)
    outcome = _serves(export)
    assert outcome == "refused" or content == (EXPORT / name).read_bytes()
    return outcome


def stranger_tflite(rng: random.Random, folder: pathlib.Path) -> str:
    """The same with its true hash, as whoever made the export can: LiteRT's own parser has to refuse it."""
    export, name = _copy(folder), rng.choice(STAGES)
    _with_facts(export, name, damaged(rng, [(EXPORT / name).read_bytes()]))
    with contextlib.suppress(AssertionError):  # its numbers may be anything
        return _serves(export)
    return "read"


def image_header(rng: random.Random, _: pathlib.Path) -> str:
    """Images whose header states another size."""
    content = bytearray(rng.choice(small.IMAGES))
    sides = [rng.choice((0, 1, 2, 255, 4096, 8192, 65535, rng.randrange(65536))) for _ in range(2)]
    if content.startswith(b"\x89"):
        content[16:24] = struct.pack(">II", *(side * rng.choice((1, 2**15)) for side in sides))
    elif content.startswith(b"GIF"):
        content[6:10] = struct.pack("<HH", *sides)
    elif content.startswith(b"BM"):
        content[18:26] = struct.pack("<ii", sides[0], sides[1] * rng.choice((-1, 1)))
    elif content.startswith(b"RIFF"):
        at = {b"VP8 ": 26, b"VP8L": 21, b"VP8X": 24}[bytes(content[12:16])]
        content[at : at + 4] = struct.pack("<HH", *sides)
    else:
        at = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
        content[at + 5 : at + 9] = struct.pack(">HH", *sides)
    try:
        pixels = decode.decode(bytes(content), 3)
        assert pixels.shape[:2] == decode.read_header(bytes(content))[:2]
    except decode.BadExampleError:
        return "refused"
    return "read"


TARGETS: dict[str, Callable[[random.Random, pathlib.Path], str]] = {
    "image": image,
    "image_by_pillow": image_by_pillow,
    "image_header": image_header,
    "exif": exif_data,
    **{name: functools.partial(weights, suffix=f".{name}") for name in ("pth", "safetensors", "h5")},
    "npy": npy,
    "manifest": manifest,
    "labels": labels,
    "tflite": tflite,
    "stranger_tflite": stranger_tflite,
    **bad_run_targets.TARGETS,
}
