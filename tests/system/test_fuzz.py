"""Whatever is given to it: one sentence and a code, never a traceback, a hang or half a file.

A few examples of each kind here, always the same. A campaign, with other ones each time:

    FUZZ_EXAMPLES=2000 python -m pytest -n0 tests/system/test_fuzz.py --hypothesis-show-statistics
"""

import io
import os
import pickle
import shutil
import struct
import zipfile

import cv2
import h5py
import numpy as np
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from basisnet_jax.data import preprocess
from basisnet_jax.errors import UserError
from basisnet_jax.images import decode, exif
from basisnet_jax.weights import readers

CAMPAIGN = int(os.environ.get("FUZZ_EXAMPLES", 0))


def fuzz(examples):
    return settings(
        max_examples=CAMPAIGN or examples,
        derandomize=not CAMPAIGN,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def one_sentence(error):
    return "\n" not in str(error) and str(error).endswith(".")


@st.composite
def damaged(draw, originals):
    """One of the originals, cut off, with bits turned, bytes put in or over others, or a part of it twice."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        match draw(st.sampled_from(["cut", "flip", "over", "in", "out", "twice"])):
            case "cut":
                del content[at:]
            case "flip" if content:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "over":
                patch = draw(st.binary(max_size=8) | st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"]))
                content[at : at + len(patch)] = patch
            case "in":
                content[at:at] = draw(st.binary(max_size=8))
            case "out":
                del content[at : at + draw(st.integers(1, 40))]
            case "twice":
                content[at:at] = content[at : at + draw(st.integers(1, 40))]
    return bytes(content)


def encoded_images():
    pixels = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)
    kinds = {
        "jpeg": (".jpg", pixels, []),
        "progressive": (".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
        "restarts": (".jpg", pixels, [cv2.IMWRITE_JPEG_RST_INTERVAL, 1]),
        "gray": (".jpg", pixels[..., 0], []),
        "png": (".png", pixels, []),
        "palette": (".gif", pixels, []),
        "16 bits": (".png", pixels.astype(np.uint16) * 257, []),
        "lossy": (".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, 80]),
        "lossless": (".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, 101]),
        "bitmap": (".bmp", pixels, []),
        "bitmap with a palette": (".bmp", pixels[..., 0], []),
    }
    turned = [with_exif(kind, order) for kind in ("JPEG", "PNG", "WEBP") for order in "<>"]
    return [cv2.imencode(*arguments)[1].tobytes() for arguments in kinds.values()] + turned


def with_exif(kind, order):
    """A photograph that lies on its side, and says so in either byte order."""
    data = Image.Exif()
    data.endian = order
    data[0x0112], data[0x010F] = 6, "a camera"
    file = io.BytesIO()
    Image.fromarray(np.zeros((13, 17, 3), np.uint8)).save(file, kind, exif=data)
    return file.getvalue()


IMAGES = encoded_images()
MAGIC = st.sampled_from(
    [
        *(b"", b"\xff\xd8", b"\xff\xd8\xff\xc0", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"GIF89a", b"GIF87a"),
        *(b"\xff\xd8\xff\xe1\0\x40Exif\0\0II*\0", b"\xff\xd8\xff\xe1\xff\xffExif\0\0MM\0*\0\0\0\x08"),
        *(b"RIFF\0\0\0\0WEBP" + x for x in (b"VP8 ", b"VP8L", b"VP8X")),
        *(b"BM" + bytes(12) + size for size in (b"\x0c\0\0\0", b"\x28\0\0\0", b"\x6c\0\0\0")),
    ]
)


@fuzz(150)
@given(
    damaged(IMAGES) | st.builds(bytes.__add__, MAGIC, st.binary(max_size=80)), st.sampled_from([1, 3]), st.booleans()
)
def test_any_image(content, channels, crop):
    settings = preprocess.Augmentation(crop=preprocess.RandomCrop(0.08, 4 / 3) if crop else None)
    example = {"image": content, "label": 0}
    try:
        loaded = preprocess.load_train(example, 4, channels, 1, settings, np.random.default_rng(0))
    except decode.BadExampleError:
        return
    assert loaded["image"].shape == (4, 4, channels)
    assert loaded["image"].dtype == np.uint8


EXIF_STARTS = st.sampled_from([b"II*\0", b"MM\0*", b"II*\0\x08\0\0\0\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"])
EXIF_DATA = [
    mark + struct.pack(order + "IHHHIHH", 8, 1, 0x0112, 3, 1, 6, 0)
    for order, mark in (("<", b"II*\0"), (">", b"MM\0*"))
]


@st.composite
def absurd_header(draw):
    """An image that says that it has other sides than it has."""
    content, sides = draw(st.sampled_from(IMAGES)), st.integers(0, 2**16 - 1)
    height, width = draw(sides), draw(sides)
    if content.startswith(b"\x89"):
        return content[:16] + struct.pack(">II", width * draw(st.sampled_from([1, 2**15])), height) + content[24:]
    if content.startswith(b"GIF"):
        return content[:6] + struct.pack("<HH", width, height) + content[10:]
    if content.startswith(b"BM"):
        sign = draw(st.sampled_from([-1, 1, 2**15]))
        return content[:18] + struct.pack("<ii", width, height * sign) + content[26:]
    if content.startswith(b"RIFF"):
        at = {b"VP8 ": 26, b"VP8L": 21, b"VP8X": 24}[content[12:16]]
        return content[:at] + struct.pack("<HH", width, height) + content[at + 4 :]
    frame = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
    return content[: frame + 5] + struct.pack(">HH", height, width) + content[frame + 9 :]


@fuzz(50)
@given(absurd_header())
def test_any_size_in_a_header(content):
    try:
        pixels = decode.decode(content, 3)
    except decode.BadExampleError:
        return
    assert pixels.shape[:2] == decode.read_header(content)[:2]


@fuzz(200)
@given(damaged(EXIF_DATA) | st.binary(max_size=80) | st.builds(bytes.__add__, EXIF_STARTS, st.binary(max_size=80)))
def test_any_exif_data(content):
    assert exif.read_orientation(content) in range(1, 9)


# Weights


def weights_files():
    """What torch.save writes, in both layouts, byte by byte: PyTorch is not needed."""
    numbers = np.arange(12, dtype="<f4").tobytes()
    opcodes = (
        b"\x80\x02ccollections\nOrderedDict\n)R(X\x06\0\0\0weightctorch._utils\n_rebuild_tensor_v2\n"
        b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x0cVIEWtQK\0K\x03K\x04\x86K\x04K\x01"
        b"\x86\x89ccollections\nOrderedDict\n)RtRu."
    )
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr("tiny/data.pkl", opcodes.replace(b"VIEW", b""))
        members.writestr("tiny/byteorder", "little")
        members.writestr("tiny/data/0", numbers)
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    pickles = [*(pickle.dumps(x, 2) for x in head), opcodes.replace(b"VIEW", b"N"), pickle.dumps(["0"], 2)]
    return [archive.getvalue(), b"".join(pickles) + struct.pack("<q", 12) + numbers]


def keras_file():
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        opened["layers/dense/vars/0"] = np.arange(12, dtype="<f4").reshape(3, 4)
    return file.getvalue()


WEIGHTS = {
    ".pth": weights_files(),
    ".safetensors": [safetensors.numpy.save({"weight": np.arange(12, dtype="<f4").reshape(3, 4)})],
    ".h5": [keras_file()],
}
GADGETS = (
    *(
        b"cposix\nsystem\n",
        b"cbuiltins\neval\n",
        b"c__builtin__\nexec\n",
        b"\x8c\x02os\x8c\x06system\x93",
        b"(",
        b"t",
        b"R",
    ),
    *(
        b"o",
        b"b",
        b"\x81",
        b"\x92",
        b"0",
        b"2",
        b"1",
        b"Q",
        b"Pid\n",
        b"d",
        b"}",
        b"]",
        b"a",
        b"e",
        b"u",
        b"s",
        b")",
        b"N",
    ),
    *(
        b"q\0",
        b"h\0",
        b"r\xff\xff\xff\x7f",
        b"\x94",
        b"X\xff\xff\xff\x7f",
        b"\x8a\x08" + b"\xff" * 8,
        b"I99999999999999999999\n",
    ),
    *(
        b"\x8b\xff\xff\xff\x7f",
        b"\x8e" + b"\xff" * 7 + b"\x7f",
        b"\x95" + b"\xff" * 8,
        b"\x82\x01",
        b"V\\u000a\n",
        b"S'a\\nb'\n",
    ),
    *(
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nFloatStorage\n",
        b"ccollections\nOrderedDict\n",
        b"X\x01\0\0\0a",
    ),
    *(
        b"imath\n",
        b"cnumpy.core.multiarray\n_reconstruct\n",
        b"crafted\n.x\n",
        b"c.\n\n",
        b"G\x7f\xf0\0\0\0\0\0\0",
        b"\x96" + b"\xff" * 8,
    ),
)


@st.composite
def hostile_zip(draw):
    """A well-made archive around any pickle, with any members."""
    pickled = (
        b"\x80\x02"
        + b"".join(draw(st.lists(st.sampled_from(GADGETS), max_size=12)))
        + draw(st.sampled_from([b".", b""]))
    )
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as members:
        members.writestr(draw(st.sampled_from(["tiny/data.pkl", "data.pkl", "../../x/data.pkl", "/data.pkl"])), pickled)
        for name in draw(st.sets(st.sampled_from(["tiny/data/0", "tiny/byteorder", "../y", "a\nb", "tiny/data/"]))):
            members.writestr(name, draw(st.binary(max_size=16)))
    return archive.getvalue()


CONTENTS = {suffix: damaged(originals) | st.binary(max_size=60) for suffix, originals in WEIGHTS.items()}
CONTENTS[".pth"] |= hostile_zip()


@fuzz(300)
@given(st.sampled_from(list(CONTENTS)).flatmap(lambda suffix: st.tuples(st.just(suffix), CONTENTS[suffix])))
def test_any_weights_file(tmp_path_factory, file):
    suffix, content = file
    folder = tmp_path_factory.mktemp("weights")
    path = folder / f"tiny{suffix}"
    path.write_bytes(content)
    refused, arrays = None, {}
    try:
        arrays = readers.read(path)
    except UserError as error:
        refused = error
    assert refused is None or one_sentence(refused)
    assert all(isinstance(array, np.ndarray) and array.dtype != object for array in arrays.values())
    assert list(folder.iterdir()) == [path]
    shutil.rmtree(folder)


def test_the_weights_files_are_read_when_they_are_not_damaged(tmp_path):
    for suffix, contents in WEIGHTS.items():
        for content in contents:
            (tmp_path / f"tiny{suffix}").write_bytes(content)
            (array,) = readers.read(tmp_path / f"tiny{suffix}").values()
            np.testing.assert_array_equal(array, np.arange(12).reshape(3, 4))
