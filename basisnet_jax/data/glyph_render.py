"""Draws characters from font files, and distorts the drawings as photographs distort writing.

Everything is integer arithmetic, or float arithmetic without functions of the C library, so that the same fonts give
the same bytes on every machine that has the same versions of Pillow and NumPy.
"""

import dataclasses

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 32  # pixels of an example
_FONT_PIXELS = 48  # size that a character is drawn at, before it is scaled
_CANVAS = 2 * SIDE  # pixels of the canvas that strokes are broken on
_MIN_INK = 6  # pixels: a drawing whose longer side has fewer is empty or a dot


@dataclasses.dataclass(frozen=True)
class Distortion:
    """The limits of a drawing's distortion. A field `..._share` is the probability of that distortion in an image."""

    min_size: float = 0.65  # longer side of the character over the image's side, at least
    max_size: float = 0.9
    stretch: float = 0.25  # width over height is changed by at most this share
    slant: float = 0.3  # shear, each way
    turn: float = 0.14  # tangent of half of the largest angle: 16 degrees
    corners: float = 0.1  # perspective: each corner moves by at most this share of the character's size
    neighbour_share: float = 0.3  # characters of the same font reach into the image from the left and the right
    thinner_share: float = 0.15
    thicker_share: float = 0.2
    break_share: float = 0.4  # one to three gaps cross the strokes
    coarse_share: float = 0.25  # the image is scaled down and up again
    min_contrast: int = 64  # gray levels between character and background, at least
    gradient: int = 48  # gray levels across the background, at most
    texture: int = 40  # gray levels of the background's spots, at most
    blur: float = 1.0  # pixels, at most
    noise: int = 28  # gray levels, each way, at most


def load_font(path: str, index: int) -> ImageFont.FreeTypeFont:
    """Opens one face of a font file. Raises OSError where FreeType cannot."""
    return ImageFont.truetype(path, _FONT_PIXELS, index=index, layout_engine=ImageFont.Layout.BASIC)


def draw(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray | None:
    """Draws a character and crops it to its ink.

    Returns:
      uint8[H, W], 255 where the ink is; None if the drawing is empty, no larger than a dot, or absurdly large.

    Raises:
      OSError: FreeType cannot draw this glyph.
    """
    left, top, right, bottom = (round(edge) for edge in font.getbbox(character))
    width, height = right - left + 4, bottom - top + 4
    if not 0 < width <= 16 * _FONT_PIXELS or not 0 < height <= 16 * _FONT_PIXELS:
        return None
    image = Image.new("L", (width, height), 0)
    ImageDraw.Draw(image).text((2 - left, 2 - top), character, font=font, fill=255)
    box = image.getbbox()
    if box is None or max(box[2] - box[0], box[3] - box[1]) < _MIN_INK:
        return None
    return np.asarray(image.crop(box))


def fit(ink: np.ndarray, side: int) -> np.ndarray:
    """Scales a drawing to touch two opposite edges of a square: uint8[H, W] -> uint8[side, side]."""
    height, width = ink.shape
    longer = max(height, width)
    # In integers: rounded half up, at least one pixel.
    size = (max(1, (2 * width * side + longer) // (2 * longer)), max(1, (2 * height * side + longer) // (2 * longer)))
    square = Image.new("L", (side, side), 0)
    scaled = Image.fromarray(ink).resize(size, Image.Resampling.BOX)
    square.paste(scaled, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(square)


def distort(
    ink: np.ndarray, neighbours: list[np.ndarray], rng: np.random.Generator, settings: Distortion
) -> np.ndarray:
    """Renders a drawing as a photograph would show it.

    Args:
      ink: uint8[H, W], as from `draw`.
      neighbours: two drawings of the same font, for the left and the right side.
      rng: the source of all randomness.
      settings: limits of the distortion.

    Returns:
      uint8[SIDE, SIDE].
    """
    canvas = _warp(ink, neighbours, rng, settings)
    canvas = _break_strokes(canvas, rng, settings)
    mask = np.asarray(canvas.reduce(_CANVAS // SIDE), np.float64) / 255
    return _photograph(mask, rng, settings)


def _warp(ink: np.ndarray, neighbours: list[np.ndarray], rng: np.random.Generator, settings: Distortion) -> Image.Image:
    """Puts the drawing into perspective, with parts of its neighbours."""
    height, width = ink.shape
    longer = _CANVAS * _between(rng, settings.min_size, settings.max_size)
    stretch = 1 + _between(rng, -settings.stretch, settings.stretch)
    wide, high = width * stretch, float(height)
    wide, high = longer * wide / max(wide, high), longer * high / max(wide, high)
    slant, half = _between(rng, -settings.slant, settings.slant), _between(rng, -settings.turn, settings.turn)
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    room_x, room_y = max(0.0, _CANVAS - wide) / 2, max(0.0, _CANVAS - high) / 2
    middle_x = _CANVAS / 2 + _between(rng, -0.5, 0.5) * room_x
    middle_y = _CANVAS / 2 + _between(rng, -0.5, 0.5) * room_y
    corners = []
    for x, y in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)):
        across, down = x * wide - y * high * slant, y * high
        across += _between(rng, -settings.corners, settings.corners) * longer
        down += _between(rng, -settings.corners, settings.corners) * longer
        corners.append((middle_x + cosine * across - sine * down, middle_y + sine * across + cosine * down))
    # Neighbours stand on the character's own line, so that the same perspective applies to them.
    strip, offset = ink, 0
    if rng.random() < settings.neighbour_share:
        strip, offset = _beside(ink, neighbours, rng)
    source = [(offset, 0), (offset + width, 0), (offset + width, height), (offset, height)]
    coefficients = _perspective(corners, source)
    padded = Image.fromarray(np.pad(strip, 1))
    # The padding is one pixel on each side, so the source's coordinates move by one.
    a, b, c, d, e, f, g, h = coefficients
    moved = (a + g, b + h, c + 1, d + g, e + h, f + 1, g, h)
    return padded.transform((_CANVAS, _CANVAS), Image.Transform.PERSPECTIVE, moved, Image.Resampling.BILINEAR)


def _beside(ink: np.ndarray, neighbours: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Puts a neighbour, scaled to the same height, on each side; returns the strip and the column of `ink`."""
    height = ink.shape[0]
    parts = []
    for neighbour in neighbours:
        width = max(1, neighbour.shape[1] * height // neighbour.shape[0])
        width = min(width, 2 * max(ink.shape))
        parts.append(np.asarray(Image.fromarray(neighbour).resize((width, height), Image.Resampling.BILINEAR)))
    gaps = [np.zeros((height, max(1, int(max(ink.shape) * _between(rng, 0.06, 0.3)))), np.uint8) for _ in parts]
    strip = np.concatenate([parts[0], gaps[0], ink, gaps[1], parts[1]], axis=1)
    return strip, parts[0].shape[1] + gaps[0].shape[1]


def _perspective(target: list[tuple[float, float]], source: list[tuple[int, int]]) -> tuple[float, ...]:
    """Returns Pillow's eight coefficients, which map a target's point to its point in the source, a rectangle."""
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = target
    # Heckbert's map from the unit square to a quadrilateral, then its inverse by the adjugate.
    sum_x, sum_y = x0 - x1 + x2 - x3, y0 - y1 + y2 - y3
    dx1, dx2, dy1, dy2 = x1 - x2, x3 - x2, y1 - y2, y3 - y2
    area = dx1 * dy2 - dx2 * dy1
    g, h = (sum_x * dy2 - dx2 * sum_y) / area, (dx1 * sum_y - sum_x * dy1) / area
    a, b, c = x1 - x0 + g * x1, x3 - x0 + h * x3, x0
    d, e, f = y1 - y0 + g * y1, y3 - y0 + h * y3, y0
    u = (e - f * h, c * h - b, b * f - c * e)
    v = (f * g - d, a - c * g, c * d - a * f)
    w = (d * h - e * g, b * g - a * h, a * e - b * d)
    left, top = source[0]
    width, height = source[1][0] - left, source[2][1] - top
    x = [width * u[k] + left * w[k] for k in range(3)]
    y = [height * v[k] + top * w[k] for k in range(3)]
    return tuple(value / w[2] for value in (*x, *y, w[0], w[1]))


def _break_strokes(canvas: Image.Image, rng: np.random.Generator, settings: Distortion) -> Image.Image:
    """Makes strokes thinner or thicker, and cuts gaps into them."""
    draw_width = rng.random()
    if draw_width < settings.thinner_share:
        thinner = canvas.filter(ImageFilter.MinFilter(3))
        if 3 * np.asarray(thinner, np.int64).sum() > np.asarray(canvas, np.int64).sum():  # else hairlines vanish
            canvas = thinner
    elif draw_width < settings.thinner_share + settings.thicker_share:
        canvas = canvas.filter(ImageFilter.MaxFilter(3))
    if rng.random() < settings.break_share:
        pen = ImageDraw.Draw(canvas)
        for _ in range(int(rng.integers(1, 4))):
            x, y, across, down = (int(n) for n in rng.integers(0, _CANVAS, size=4))
            ends = (x - across, y - down, x + across, y + down)
            pen.line(ends, fill=0, width=int(rng.integers(2, 6)))
    return canvas


def _photograph(mask: np.ndarray, rng: np.random.Generator, settings: Distortion) -> np.ndarray:
    """Lays a mask in [0, 1] over a background in gray levels, blurs the image and adds noise."""
    background, contrast = int(rng.integers(24, 232)), int(rng.integers(settings.min_contrast, 160))
    lighter = background + contrast <= 255 and (background < contrast or rng.random() < 0.5)
    ink = background + contrast if lighter else background - contrast
    place = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    slopes = [_between(rng, -settings.gradient, settings.gradient) for _ in range(2)]
    spots = rng.integers(0, 256, size=(int(rng.integers(2, 9)),) * 2).astype(np.uint8)
    texture = np.asarray(Image.fromarray(spots).resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64) / 255 - 0.5
    shade = place[None, :] * slopes[0] + place[:, None] * slopes[1]
    behind = background + shade + texture * _between(rng, 0.0, settings.texture)
    pixels = behind + (ink + shade / 2 - behind) * mask
    image = Image.fromarray(_gray(pixels))
    if rng.random() < settings.coarse_share:
        side = int(rng.integers(SIDE // 2, SIDE * 7 // 8))
        small = image.resize((side, side), Image.Resampling.BILINEAR)
        image = small.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    image = image.filter(ImageFilter.GaussianBlur(_between(rng, 0.0, settings.blur)))
    level = int(rng.integers(settings.noise + 1))
    # The sum of two uniform draws is close to a bell curve, and needs no logarithms.
    noise = rng.integers(-level, level + 1, size=(2, SIDE, SIDE)).sum(axis=0) // 2
    return _gray(np.asarray(image, np.int64) + noise)


def _gray(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()
