"""Pixels of a crop against what they must be, and images that cannot be used."""

import cv2
import numpy as np
import pytest

from basisnet_jax.data import preprocess
from basisnet_jax.images import decode, load
from basisnet_jax.images.crop import WHOLE_IMAGE, EvalCrop
from basisnet_jax.images.decode import BadExampleError


def encode(image, suffix=".jpg", quality=95):
    """RGB or gray -> bytes."""
    bgr = image[..., ::-1] if image.ndim == 3 else image
    return cv2.imencode(suffix, bgr, [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == ".jpg" else [])[1].tobytes()


def ramps(height, width):
    """Red says how far right a pixel is, green how far down, in 255ths of the image."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.rint((np.arange(width) + 0.5) / width * 255)
    image[..., 1] = np.rint((np.arange(height) + 0.5) / height * 255)[:, None]
    return image


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize(
    ("height", "width", "box", "reduction"),
    [
        (375, 500, (20, 30, 120, 100), 1),
        (375, 500, (7, 11, 45, 60), 1),  # grows
        (375, 501, (101, 3, 131, 130), 2),
        (801, 1203, (150, 77, 300, 301), 4),
        (801, 1203, (0, 0, 801, 1203), 8),
        (375, 500, (10, 10, 300, 65), 1),  # shrinks by area, one way
    ],
)
def test_a_crop_holds_the_pixels_of_its_box(height, width, box, reduction, suffix):
    """A pixel of the result lies where its place in the box says, to half a pixel of the result, whatever the scale."""
    side, encoded, (top, left, h, w) = 64, encode(ramps(height, width), suffix), box
    if suffix == ".jpg":
        assert decode.best_reduction(encoded, h, w, side) == reduction
    got = load.decode_box(encoded, side, 3, lambda *_: box, exif_orientation=True)
    assert got.dtype == np.uint8
    places = (np.arange(side) + 0.5) / side
    x, y = (left + places * w) / width * 255, (top + places * h) / height * 255
    half = 0.5 / side * 255 * np.array([w / width, h / height]) * (reduction > 1 and suffix == ".jpg")
    rounding = 3.0  # of the ramps, of JPEG, and of chroma at half resolution
    inner = slice(1, -1)  # the outermost pixels repeat the edge
    assert np.abs(got[inner, inner, 0] - x[None, inner]).max() <= half[0] + rounding
    assert np.abs(got[inner, inner, 1] - y[inner, None]).max() <= half[1] + rounding


def test_a_reduced_crop_is_near_a_full_decode_and_a_resize_by_area():
    """The picture, not only its place: mean error in 255ths, on smooth noise with an edge in it."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8), (1200, 900), interpolation=cv2.INTER_CUBIC)
    image[400:500, 300:700] = 255
    encoded, box = encode(image), (101, 202, 650, 777)
    whole = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    expected = cv2.resize(whole[101:751, 202:979], (160, 160), interpolation=cv2.INTER_AREA)
    got = load.decode_box(encoded, 160, 3, lambda *_: box, exif_orientation=True)
    assert decode.best_reduction(encoded, 650, 777, 160) == 4
    assert np.abs(got.astype(int) - expected).mean() < 2.0


def test_random_crops_are_inceptions():
    """Area and aspect fill their ranges, and nothing leaves the image."""
    crop, rng = preprocess.RandomCrop(min_area=0.08, max_aspect=4 / 3), np.random.default_rng(0)
    boxes = np.array([crop.box(375, 500, rng) for _ in range(2000)])
    top, left, height, width = boxes.T
    assert (boxes >= 0).all()
    assert (top + height).max() == 375
    assert (left + width).max() == 500
    area, aspect = height * width / (375 * 500), width / height
    assert (0.078 < area.min() < 0.09, 0.95 < area.max() <= 1.0) == (True, True)
    assert (0.74 < aspect.min() < 0.77, 1.31 < aspect.max() < 1.35) == (True, True)
    squares = np.array([preprocess.RandomCrop(0.08, 1.0).box(400, 400, rng) for _ in range(2000)])
    np.testing.assert_allclose(
        np.quantile(squares[:, 2] ** 2 / 400**2, [0.25, 0.5, 0.75]), [0.31, 0.54, 0.77], atol=0.04
    )


@pytest.mark.parametrize(
    ("height", "width", "box"), [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10)), (1, 1, (0, 0, 1, 1))]
)
def test_where_no_random_crop_fits_the_central_one_is_taken(height, width, box):
    crop = preprocess.RandomCrop(min_area=1.0, max_aspect=4 / 3)
    assert crop.box(height, width, np.random.default_rng(0)) == box


def test_the_central_crop_is_a_square_of_the_shorter_side():
    assert EvalCrop(32).box(512, 768, 224) == (32, 160, 448, 448)
    assert EvalCrop(0).box(300, 200, 224) == (50, 0, 200, 200)
    assert EvalCrop(32).box(1, 9, 224) == (0, 4, 1, 1)


def test_without_a_crop_all_of_the_image_is_seen():
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    got = preprocess.load_eval({"image": encode(image, ".png"), "label": 1}, 12, 3, 2, WHOLE_IMAGE)
    np.testing.assert_array_equal(got["image"], image)


JPEG = encode(ramps(40, 60))


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_out_of_range_is_bad(label):
    with pytest.raises(BadExampleError, match=f"has label {label}, which is not in 0 to 9"):
        preprocess.load_eval({"image": JPEG, "label": label}, 8, 3, 10, WHOLE_IMAGE)
