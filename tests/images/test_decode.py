"""Every kind of image file against Pillow's pixels, the orientation of EXIF, and files that cannot be used."""

import io
import os
import struct
import tempfile
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from basisnet_jax.data import preprocess
from basisnet_jax.images import decode, exif, load
from basisnet_jax.images.crop import EvalCrop
from basisnet_jax.images.decode import BadExampleError
from tests.data.test_preprocess import encode, ramps

ORIENTATION = 0x0112


def save(image, kind, orientation=None, **settings):
    """Pillow's file of an array or an image, perhaps with EXIF data."""
    if orientation is not None:
        found = Image.Exif()
        found[ORIENTATION] = orientation
        settings["exif"] = found
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **settings)
    return file.getvalue()


def pillow(encoded, mode="RGB", turned=False):
    """What Pillow makes of a file: uint8[H, W, C]."""
    image = Image.open(io.BytesIO(encoded))
    image = ImageOps.exif_transpose(image) if turned else image
    pixels = np.asarray(image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


def test_every_kind_of_image_becomes_rgb():
    image = ramps(40, 60)
    palette = cv2.imencode(".gif", image[..., ::-1])[1].tobytes()
    alpha = np.dstack([image, np.full((40, 60, 1), 128, np.uint8)])
    kinds = {
        "JPEG": encode(image),
        "PNG": encode(image, ".png"),
        "GIF": palette,
        "WebP": save(image, "WEBP", quality=95),
        "16 bits": cv2.imencode(".png", image[..., ::-1].astype(np.uint16) * 257)[1].tobytes(),
        "alpha": cv2.imencode(".png", alpha[..., [2, 1, 0, 3]])[1].tobytes(),
        "CMYK": save(Image.fromarray(image).convert("CMYK"), "JPEG", quality=95),
    }
    for kind, encoded in kinds.items():
        assert decode.read_header(encoded) == (40, 60, exif.UPRIGHT), kind
        got = decode.decode(encoded, 3)
        assert np.abs(got.astype(int) - image).mean() < 8, kind
    gray = encode(image[..., 0])
    got = decode.decode(gray, 3)
    np.testing.assert_array_equal(got, np.repeat(decode.decode(gray, 1), 3, axis=2))
    assert decode.decode(kinds["JPEG"], 1).shape == (40, 60, 1)
    assert decode.decode(encode(image[:1, :1]), 3).shape == (1, 1, 3)


def from_top_to_bottom(bmp):
    """A BMP with a negative height, whose first row is the uppermost."""
    (height,) = struct.unpack_from("<i", bmp, 22)
    rows = np.frombuffer(bmp[54:], np.uint8).reshape(height, -1)[::-1]
    return bmp[:22] + struct.pack("<i", -height) + bmp[26:54] + rows.tobytes()


def with_core_header(bmp):
    """OS/2's BMP: its header has 12 bytes, and its sides 16 bits each."""
    width, height = struct.unpack_from("<ii", bmp, 18)
    header = struct.pack("<IHHHH", 12, width, height, 1, 24)
    return b"BM" + struct.pack("<IHHI", 26 + len(bmp) - 54, 0, 0, 26) + header + bmp[54:]


IMAGE = ramps(40, 61)
EXACT = {
    "WebP without loss": save(IMAGE, "WEBP", lossless=True),
    "WebP with alpha": save(Image.fromarray(IMAGE).convert("RGBA"), "WEBP", lossless=True),
    "WebP with EXIF": save(IMAGE, "WEBP", lossless=True, orientation=1),
    "animated WebP": save(IMAGE, "WEBP", lossless=True, save_all=True, append_images=[Image.fromarray(255 - IMAGE)]),
    "BMP": save(IMAGE, "BMP"),
    "BMP from top to bottom": from_top_to_bottom(save(IMAGE, "BMP")),
    "BMP of OS/2": with_core_header(save(IMAGE, "BMP")),
    "BMP of 32 bits": save(Image.fromarray(IMAGE).convert("RGBA"), "BMP"),
    "BMP with a palette": save(Image.fromarray(IMAGE).convert("P"), "BMP"),
    "BMP of one bit": save(Image.fromarray(IMAGE).convert("1"), "BMP"),
    "PNG with a palette": save(Image.fromarray(IMAGE).convert("P"), "PNG"),
    "PNG with a transparent color": save(Image.fromarray(IMAGE).convert("P"), "PNG", transparency=3),
    "PNG of gray with a transparent value": save(Image.fromarray(IMAGE).convert("L"), "PNG", transparency=3),
    "PNG of one bit": save(Image.fromarray(IMAGE).convert("1"), "PNG"),
    "PNG with notes": save(IMAGE, "PNG", dpi=(72, 72), icc_profile=b"none", exif=b"II*\0none"),
    "animated PNG": save(IMAGE, "PNG", save_all=True, append_images=[Image.fromarray(255 - IMAGE)]),
}


@pytest.mark.parametrize("kind", EXACT)
def test_pixels_without_loss_are_pillows(kind):
    encoded = EXACT[kind]
    assert decode.read_header(encoded) == (40, 61, exif.UPRIGHT)
    np.testing.assert_array_equal(decode.decode(encoded, 3), pillow(encoded))
    gray = pillow(encoded, "L").astype(int)
    assert np.abs(decode.decode(encoded, 1) - gray).max() <= 1, "luma is rounded in other ways"


def test_lossy_webp_is_near_pillows():
    encoded = save(IMAGE, "WEBP", quality=80)
    assert np.abs(decode.decode(encoded, 3).astype(int) - pillow(encoded)).max() <= 2


# The upper rows of a JPEG


NOISE = np.random.default_rng(0).integers(0, 256, (203, 97, 3), np.uint8)
SEQUENTIAL = {
    **{f"colors at {s}": save(NOISE, "JPEG", subsampling=s) for s in ("4:4:4", "4:2:2", "4:2:0", "4:1:1")},
    "optimized": save(NOISE, "JPEG", optimize=True),
    "gray": save(NOISE[..., 0], "JPEG"),
    "CMYK": save(Image.fromarray(NOISE).convert("CMYK"), "JPEG"),
    "with a color profile": save(NOISE, "JPEG", icc_profile=b"none", exif=b"Exif\0\0none"),
}
OTHERS = {
    "progressive": save(NOISE, "JPEG", progressive=True),
    "with restart markers": save(NOISE, "JPEG", restart_marker_rows=1),
    "two images": save(NOISE, "MPO", save_all=True, append_images=[Image.fromarray(255 - NOISE)]),
    "bytes after its end": save(NOISE, "JPEG") + b"more",
}


@pytest.mark.parametrize("kind", [*SEQUENTIAL, *OTHERS])
def test_upper_rows_are_those_of_the_whole_image(kind):
    """To the last bit, at every reduction; and libjpeg has nothing to say about the rows that are left out."""
    encoded = {**SEQUENTIAL, **OTHERS}[kind]
    for reduction in (1, 2, 4, 8):
        whole = decode.decode(encoded, 3, reduction)
        for rows in (1, 7, 16, 33, 100, 140, 154, 155, 156, 187, 203):
            upper, said = said_on_stderr(lambda: decode.decode(encoded, 3, reduction, rows=rows))  # noqa: B023
            needed = -(-rows // reduction)
            assert len(upper) >= needed
            np.testing.assert_array_equal(upper[:needed], whole[:needed], err_msg=f"{rows} rows, at 1/{reduction}")
            assert said == b""
    upper = decode.decode(encoded, 3, rows=100)
    assert len(upper) == (203 if kind in OTHERS else 116), "a sequential JPEG is not decoded to its end"


def test_a_crop_of_the_upper_rows_has_the_same_pixels():
    """Where the image lies on its side, the crop's rows are columns of the file, which is decoded whole."""
    for orientation in (1, 6):
        encoded = save(NOISE, "JPEG", orientation)
        upright = exif.turn_upright(decode.decode(encoded, 3), orientation)
        got = load.decode_box(encoded, 32, 3, lambda *_: (10, 20, 40, 35), exif_orientation=True)
        np.testing.assert_array_equal(got, load.resize(upright[10:50, 20:55], 32))


def test_a_jpeg_that_is_cut_short_is_bad_whatever_its_crop():
    encoded = SEQUENTIAL["colors at 4:2:0"]
    for end in (*range(2, 700), len(encoded) // 2, len(encoded) - 2, len(encoded) - 1):
        with pytest.raises(BadExampleError, match=r"cut short"):
            decode.decode(encoded[:end], 3, rows=10)


# The orientation of EXIF


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_images_are_turned_as_pillow_turns_them(kind, orientation):
    settings = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}}[kind]
    encoded = save(IMAGE, kind, orientation, **settings)
    assert decode.read_header(encoded) == (40, 61, orientation)
    np.testing.assert_array_equal(decode.decode(encoded, 3), decode.decode(save(IMAGE, kind, **settings), 3))
    got = exif.turn_upright(decode.decode(encoded, 3), orientation)
    np.testing.assert_array_equal(got, pillow(encoded, turned=True))
    gray = decode.decode(encoded, 1)
    turned = exif.turn_upright(gray, orientation)
    assert turned.shape == (*got.shape[:2], 1)
    np.testing.assert_array_equal(turned, exif.turn_upright(np.repeat(gray, 3, axis=2), orientation)[..., :1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_evaluation_sees_a_turned_photograph_as_pillow_shows_it(orientation):
    """Both ways of cropping: as an image that was turned before it was stored."""
    encoded = save(np.random.default_rng(0).integers(0, 256, (40, 61, 3), np.uint8), "PNG", orientation)
    upright = save(pillow(encoded, turned=True), "PNG")
    for padding in (None, 3):
        got = load.load_image(encoded, 16, 3, EvalCrop(padding))
        np.testing.assert_array_equal(got, load.load_image(upright, 16, 3, EvalCrop(padding)))
        ignored = EvalCrop(padding, exif_orientation=False)
        stored = load.load_image(save(pillow(encoded), "PNG"), 16, 3, ignored)
        np.testing.assert_array_equal(load.load_image(encoded, 16, 3, ignored), stored)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("exif_orientation", [True, False])
def test_a_random_crop_is_one_of_the_turned_photograph(orientation, exif_orientation):
    """Training takes the same box of a turned photograph as of one that was stored upright."""
    encoded = save(IMAGE, "PNG", orientation)
    shown = save(pillow(encoded, turned=exif_orientation), "PNG")
    crop = preprocess.RandomCrop(0.1, 2.0)
    settings = preprocess.Augmentation(crop=crop, flip=True, exif_orientation=exif_orientation)
    for seed in range(5):
        got, expected = (
            preprocess.load_train({"image": x, "label": 0}, 12, 3, 1, settings, np.random.default_rng(seed))
            for x in (encoded, shown)
        )
        np.testing.assert_array_equal(got["image"], expected["image"])


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_box_of_a_turned_photograph_that_is_decoded_small(orientation):
    """A JPEG at a quarter: each pixel of the result shows its place, to a pixel of the result."""
    upright, box, side = Image.fromarray(ramps(801, 1203)), (150, 77, 300, 301), 64
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    stored = exif.turn_upright(np.asarray(upright), back)
    encoded = save(stored, "JPEG", orientation, quality=95)
    assert np.abs(pillow(encoded, turned=True).astype(int) - upright).max() < 8
    got = load.decode_box(encoded, side, 3, lambda *_: box, exif_orientation=True)
    places = (np.arange(1, side - 1) + 0.5) / side
    x, y = (77 + places * 301) / 1203 * 255, (150 + places * 300) / 801 * 255
    allowed = 255 / side * np.array([301 / 1203, 300 / 801]) + 3.0
    assert np.abs(got[1:-1, 1:-1, 0] - x).max() <= allowed[0]
    assert np.abs(got[1:-1, 1:-1, 1] - y[:, None]).max() <= allowed[1]


def tiff(order, entries, start=8):
    """EXIF data with entries of (tag, type, count, value) in its first directory."""
    directory = struct.pack(order + "H", len(entries)) + b"".join(struct.pack(order + "HHIHxx", *x) for x in entries)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "I", start) + bytes(start - 8) + directory + bytes(4)


def test_what_exif_data_says():
    other = (0x010F, 2, 4, 0)
    for order in "<>":
        for value in range(1, 9):
            assert exif.read_orientation(tiff(order, [other, (ORIENTATION, 3, 1, value), other])) == value
            assert exif.read_orientation(tiff(order, [(ORIENTATION, 3, 1, value)], start=30)) == value
        for entry in ((ORIENTATION, 3, 1, 0), (ORIENTATION, 3, 1, 9), (ORIENTATION, 2, 1, 6), (ORIENTATION, 3, 2, 6)):
            assert exif.read_orientation(tiff(order, [entry])) == exif.UPRIGHT
        whole = tiff(order, [other, (ORIENTATION, 3, 1, 6)])
        for length in range(len(whole)):
            assert exif.read_orientation(whole[:length]) in (exif.UPRIGHT, 6), "cut short anywhere"
    assert exif.read_orientation(b"II*\0" + b"\xff" * 100) == exif.UPRIGHT
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + tiff("<", [(ORIENTATION, 3, 1, 6)])
    jpeg = encode(IMAGE)
    app1 = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + jpeg[2:]
    assert decode.read_header(app1).orientation == exif.UPRIGHT, "APP1 holds other data too"


# Nothing is printed


def said_on_stderr(function):
    """(what it returns, what it wrote to file descriptor 2): libraries in C do not know sys.stderr."""
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            result = function()
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        file.seek(0)
        return result, file.read()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("name", ["iCCP", "gAMA", "cHRM", "sBIT", "eXIf", "tIME"])
def test_a_png_with_a_bad_note_is_decoded_in_silence(name):
    plain = save(IMAGE, "PNG")
    noted = plain[:33] + chunk(name.encode(), b"icc\0\0" + zlib.compress(b"no profile")) + plain[33:]
    pixels, said = said_on_stderr(lambda: decode.decode(noted, 3))
    assert said == b""
    np.testing.assert_array_equal(pixels, IMAGE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_a_file_that_is_cut_short_is_refused_in_silence(kind):
    encoded = save(IMAGE, kind)
    for length in (len(encoded) - 2, len(encoded) // 2, 40, 20, 10):

        def refused(some=encoded[:length]):
            with pytest.raises(BadExampleError):
                decode.decode(some, 3)
            return True

        if kind in ("JPEG", "GIF") and length == len(encoded) - 2:
            continue  # without the mark of its end it is decoded
        assert said_on_stderr(refused) == (True, b"")


# What cannot be used


def png_header(width, height):
    """A PNG that claims a size and ends there."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", width, height, 8, 2, 0, 0, 0)


def bmp_header(width, height):
    return b"BM" + struct.pack("<IHHIIii", 54, 0, 0, 54, 40, width, height) + bytes(28)


def webp_header(width, height):
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return b"RIFF" + bytes(4) + b"WEBPVP8X" + struct.pack("<II", 10, 0) + sides + bytes(20)


JPEG = encode(ramps(40, 60))


@pytest.mark.parametrize(
    ("encoded", "words"),
    [
        (b"", "0 bytes that are neither JPEG, PNG, GIF, WebP nor BMP"),
        (b"GIF8", "neither"),
        (b"BM" + bytes(60), "has 0 x 0 pixels"),
        (b"BM" + bytes(20), "cut short after 22 bytes"),
        (bmp_header(-40000, 30000), "has -40000 x 30000 pixels"),
        (bmp_header(40000, -30000), "has 40000 x 30000 pixels"),
        (webp_header(40000, 30000), "has 40000 x 30000 pixels"),
        (b"RIFF\0\0\0\0WEBPVP9 " + bytes(40), "a WebP file without image data"),
        (b"\xff\xd8", "cut short after 2 bytes"),
        (b"\xff\xd8\xff", "cut short after 3 bytes"),
        (JPEG[:100], "cut short after 100 bytes"),
        (JPEG[:-40], "cut short or corrupt"),
        (b"\x89PNG\r\n\x1a\n\0\0", "cut short after 10 bytes"),
        (encode(ramps(40, 60), ".png")[:-60], "cut short or corrupt"),
        (png_header(20000, 20000), "has 20000 x 20000 pixels, which is not in 1 to 67108864"),
        (png_header(0, 5), "has 0 x 5 pixels"),
        (png_header(40, 60), "cut short or corrupt"),
    ],
    ids=str,
)
def test_what_cannot_be_decoded_says_why(encoded, words):
    with pytest.raises(BadExampleError, match=words):
        decode.decode(encoded, 3)


def test_an_absurd_jpeg_is_refused_by_its_header():
    """Before any memory is taken for its pixels: the same bytes, with another size in the frame's header."""
    frame = JPEG.index(b"\xff\xc0")
    absurd = JPEG[: frame + 5] + struct.pack(">HH", 20000, 30000) + JPEG[frame + 9 :]
    with pytest.raises(BadExampleError, match="has 30000 x 20000 pixels"):
        decode.decode(absurd, 3)
