"""Pillow and NumPy in place of OpenCV: the same pixels, but for rounding."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from basisnet_jax.images import decode, library, load, opencv, pillow
from basisnet_jax.images.crop import EvalCrop
from tests.data.test_preprocess import encode, ramps
from tests.images.test_decode import EXACT, OTHERS, SEQUENTIAL, save
from tests.system.test_fuzz import IMAGES, MAGIC, damaged, fuzz


@pytest.fixture
def without_opencv(monkeypatch):
    monkeypatch.setattr(library, "decode", pillow.decode)
    monkeypatch.setattr(library, "resize", pillow.resize)


SIXTEEN = io.BytesIO()
Image.fromarray((np.arange(40 * 61, dtype=np.uint16) * 26).reshape(40, 61)).save(SIXTEEN, "PNG")


@pytest.mark.parametrize("kind", [*EXACT, "gray of 16 bits", "JPEG", "gray JPEG", *SEQUENTIAL, *OTHERS])
def test_every_kind_of_file_has_opencvs_pixels(kind):
    image = ramps(40, 61)
    more = {"gray of 16 bits": SIXTEEN.getvalue(), "JPEG": encode(image), "gray JPEG": encode(image[..., 0])}
    encoded = {**EXACT, **SEQUENTIAL, **OTHERS, **more}[kind]
    for channels in (1, 3):
        expected = opencv.decode(encoded, channels, 1)
        got = pillow.decode(encoded, channels, 1)
        assert got.dtype == np.uint8
        assert got.shape == expected.shape
        difference = np.abs(got.astype(int) - expected)
        # A CMYK image is converted by other formulas.
        assert difference.max() <= (1 if channels == 1 else 0) or (kind == "CMYK" and difference.mean() < 2)


@pytest.mark.parametrize("size", [(9, 17), (8, 8), (15, 16), (64, 33), (97, 203)])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_jpeg_is_decoded_small_as_by_opencv(size, reduction):
    """Only JPEGs whose sides have at least `reduction` pixels are."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for encoded in (encode(image), encode(image[..., 0])):
        for channels in (1, 3):
            expected = opencv.decode(encoded, channels, reduction)
            got = pillow.decode(encoded, channels, reduction)
            assert got.shape == expected.shape
            assert np.abs(got.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "shape",
    [(48, 48), (60, 50), (24, 30), (25, 90), (10, 90), (90, 10), (5, 7), (24, 48), (47, 30), (1, 1), (500, 333)],
)
def test_resizing_is_opencvs_to_one(shape, channels):
    """By area and bilinear, and where one side grows while the other shrinks."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, channels), np.uint8)
    for by_area in (False, True):
        expected = opencv.resize(image, 24, by_area=by_area)
        got = pillow.resize(image, 24, by_area=by_area)
        assert (got.shape, got.dtype) == ((24, 24, channels), np.uint8)
        assert np.abs(got.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_photograph_is_seen_as_with_opencv(orientation, without_opencv, monkeypatch):
    smooth = np.asarray(Image.fromarray(ramps(16, 12)).resize((413, 301), Image.Resampling.BICUBIC))
    encoded = save(smooth, "JPEG", orientation, quality=90)
    for crop in (EvalCrop(), EvalCrop(32), EvalCrop(3, exif_orientation=False)):
        got = load.load_image(encoded, 48, 3, crop)
        with monkeypatch.context() as patched:
            patched.setattr(library, "decode", opencv.decode)
            patched.setattr(library, "resize", opencv.resize)
            expected = load.load_image(encoded, 48, 3, crop)
        assert np.abs(got.astype(int) - expected).max() <= 1


def test_what_is_not_an_image_is_bad_too(without_opencv):
    whole = save(ramps(40, 61), "PNG")
    for encoded in (whole[:60], whole[: len(whole) // 2], b"\xff\xd8 no image", b"", encode(ramps(40, 61))[:300]):
        with pytest.raises(decode.BadExampleError):
            load.load_image(encoded, 8, 3, EvalCrop())


@fuzz(200)
@given(damaged(IMAGES) | st.builds(bytes.__add__, MAGIC, st.binary(max_size=80)), st.sampled_from([1, 3]))
def test_any_file_is_an_image_or_bad(content, channels):
    with pytest.MonkeyPatch.context() as patched, contextlib.suppress(decode.BadExampleError):
        patched.setattr(library, "decode", pillow.decode)
        patched.setattr(library, "resize", pillow.resize)
        assert load.load_image(content, 4, channels, EvalCrop(3)).shape == (4, 4, channels)


@pytest.mark.parametrize(("module", "bound"), [(pillow, "MAX_PIXELS"), (Image, "MAX_IMAGE_PIXELS")])
def test_no_more_pixels_are_decoded_than_are_allowed(module, bound, monkeypatch):
    """Whatever our own reader of headers made of the file: by our bound, and by Pillow's."""
    encoded = EXACT["BMP"]
    assert pillow.decode(encoded, 3, 1).shape == (40, 61, 3)
    monkeypatch.setattr(module, bound, 1000)
    assert pillow.decode(encoded, 3, 1) is None


def test_pillow_warns_of_no_file(recwarn):
    """EXIF data that states a thousand entries and ends: Pillow warns, unless it is told not to."""
    encoded = save(ramps(40, 61), "JPEG", 6, quality=90)
    at = encoded.index(b"Exif\0\0MM") + 14  # the number of entries
    damaged_exif = encoded[:at] + b"\x04\0" + encoded[at + 2 :]
    pillow._configure.cache_clear()
    assert pillow.decode(damaged_exif, 3, 1).shape == (40, 61, 3)
    assert not recwarn.list
