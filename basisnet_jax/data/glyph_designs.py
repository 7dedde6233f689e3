"""Decides which drawing of which font goes into which split of `glyphs`.

A drawing is one character of one face. Its picture is the drawing scaled to a square. Splits are filled in the order of
`SPLITS`, and a drawing that looks like one of an earlier split is left out, so no drawing is in two splits.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from absl import logging
from PIL import ImageFont

from basisnet_jax.data import glyph_render
from basisnet_jax.data.glyph_fonts import Face
from basisnet_jax.errors import UserError

SPLITS = ("train", "sweep", "validation", "unseen_fonts")

MIN_DESIGNS = 3  # of a class, besides unseen fonts: one each for training, the sweep and the validation
VALIDATION_SHARE, SWEEP_SHARE = 0.16, 0.07  # shares of a class's designs
UNSEEN_SHARE = 0.2  # share of a script's packages
MANY_SCRIPTS = 8  # a package with more of them is never unseen: it would be the test of every script
NEAR = 4  # drawings are copies if at most this many of the 256 bits of their pictures differ


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A character as one face draws it."""

    face: int  # index in the list of faces
    bits: np.ndarray  # bool[256]: 16 x 16 cells, True where there is ink
    picture: bytes  # SHA-256 of the picture of 32 x 32 gray levels


@dataclasses.dataclass(frozen=True)
class Example:
    """An image to render."""

    face: int
    label: int
    version: int  # number of the distortion: a drawing may be distorted several times


def draw_all(faces: Sequence[Face], classes: Sequence[tuple[str, str]]) -> tuple[list[list[Drawing]], list[str]]:
    """Draws every class with every face.

    Empty drawings and copies of '.notdef' are left out. If two characters of a face share a drawing, only the first
    class keeps it (small letters drawn as capitals); if three or more share it, none does (boxes for missing glyphs).

    Returns:
      The drawings of each class, in the order of the faces; and the faces that FreeType cannot read.
    """
    labels = {character: label for label, (_, character) in enumerate(classes)}
    drawings: list[list[Drawing]] = [[] for _ in classes]
    unreadable = []
    for number, face in enumerate(faces):
        try:
            pictures = pictures_of(face)
        except OSError as error:
            unreadable.append(f"{face.name} ({error})")
            logging.warning("font %s is unreadable and skipped", unreadable[-1])
            continue
        for picture, characters in pictures.items():
            if len(characters) <= 2:
                label = min(labels[character] for character in characters)
                drawings[label].append(Drawing(number, bits_of(picture), hashlib.sha256(picture).digest()))
    return drawings, unreadable


def pictures_of(face: Face) -> dict[bytes, list[str]]:
    """Returns {picture: its characters} of a face, without characters that are drawn as '.notdef'.

    Raises:
      OSError: FreeType cannot read the face.
    """
    font = glyph_render.load_font(face.path, face.index)
    missing = _picture(font, face.absent)
    pictures = collections.defaultdict(list)
    for character in face.characters:
        picture = _picture(font, character)
        # FreeType's hinting moves the edges of one outline, so the picture of a copy of '.notdef' differs slightly.
        if picture and not (missing and np.count_nonzero(bits_of(picture) != bits_of(missing)) <= NEAR):
            pictures[picture].append(character)
    return pictures


def _picture(font: ImageFont.FreeTypeFont, character: str) -> bytes | None:
    """Returns uint8[32, 32] as bytes: the drawing scaled to the square; None if the drawing is empty."""
    ink = glyph_render.draw(font, character)
    return None if ink is None else glyph_render.fit(ink, 32).tobytes()


def bits_of(picture: bytes) -> np.ndarray:
    """Returns bool[256]: which of 16 x 16 cells of a picture have ink."""
    cells = np.frombuffer(picture, np.uint8).reshape(16, 2, 16, 2).astype(np.int32).sum(axis=(1, 3))
    return (cells > 4 * 96).reshape(-1)


def unseen_packages(faces: Sequence[Face], scripts_of: dict[str, str]) -> set[str]:
    """Chooses the packages whose fonts are never trained on.

    They are a fifth of each script's packages, and at least one where a script has three or more.

    Args:
      faces: all faces.
      scripts_of: {character: script}.
    """
    packages = collections.defaultdict(set)
    for face in faces:
        for script in {scripts_of[character] for character in face.characters}:
            packages[script].add(face.package)
    count = collections.Counter(package for names in packages.values() for package in names)
    unseen: set[str] = set()
    for script in sorted(packages, key=lambda script: (len(packages[script]), script)):
        names = packages[script]
        wanted = max(1, round(UNSEEN_SHARE * len(names))) if len(names) >= 3 else 0
        candidates = [name for name in names - unseen if count[name] <= MANY_SCRIPTS]
        already = len(names & unseen)
        missing = max(0, min(wanted, len(names) - 2) - already)
        unseen.update(sorted(candidates, key=_hash)[:missing])
    return unseen


def split_all(
    drawings: Sequence[Sequence[Drawing]],
    faces: Sequence[Face],
    classes: Sequence[tuple[str, str]],
    sizes: dict[str, int],
) -> dict[str, list[Example]]:
    """Distributes the drawings of each class over the splits.

    Args:
      drawings: of each class, as `draw_all` returns them.
      faces: all faces.
      classes: (script, character) of each class.
      sizes: {split: images of a class at most}. Training drawings are distorted several times to reach that number.

    Raises:
      UserError: a class has fewer than `MIN_DESIGNS` designs besides those of the unseen fonts.
    """
    unseen = unseen_packages(faces, {character: script for script, character in classes})
    examples: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for label, (script, character) in enumerate(classes):
        by_split = _split_class(drawings[label], faces, character, unseen)
        if by_split is None:
            designs = {_design(faces[drawing.face]) for drawing in drawings[label]}
            raise UserError(
                f"class {character!r} of script {script!r} has {len(designs)} designs (with those of unseen fonts), "
                f"but needs {MIN_DESIGNS} without them; add fonts, or name the scripts without {script!r}."
            )
        for split, chosen in by_split.items():
            total = sizes[split] if split == "train" else min(sizes[split], len(chosen))
            examples[split] += [
                Example(chosen[number % len(chosen)].face, label, number // len(chosen)) for number in range(total)
            ]
    return examples


def _split_class(
    drawings: Sequence[Drawing], faces: Sequence[Face], character: str, unseen: set[str]
) -> dict[str, list[Drawing]] | None:
    """Returns one class's drawings in each split, the most different first; None if there are too few designs."""
    designs = collections.defaultdict(list)
    for drawing in drawings:
        designs[_design(faces[drawing.face])].append(drawing)
    order = sorted(designs, key=lambda design: _hash(f"{character} {design}"))
    is_unseen = {design: faces[designs[design][0].face].package in unseen for design in order}
    seen_designs = [design for design in order if not is_unseen[design]]
    if len(seen_designs) < MIN_DESIGNS:
        return None
    validation, sweep = (max(1, round(share * len(seen_designs))) for share in (VALIDATION_SHARE, SWEEP_SHARE))
    parts = {
        "train": seen_designs[validation + sweep :],
        "sweep": seen_designs[validation : validation + sweep],
        "validation": seen_designs[:validation],
        "unseen_fonts": [design for design in order if is_unseen[design]],
    }
    chosen: dict[str, list[Drawing]] = {}
    for split, names in parts.items():
        rounds = sorted((turn, place) for place, name in enumerate(names) for turn in range(len(designs[name])))
        candidates = [designs[names[place]][turn] for turn, place in rounds]
        chosen[split] = _without_copies(candidates, [drawing for earlier in chosen.values() for drawing in earlier])
    return chosen


def _without_copies(candidates: Sequence[Drawing], earlier: Sequence[Drawing]) -> list[Drawing]:
    """Leaves out drawings that are like one of an earlier split, or the same as one of their own split."""
    near = _differences(candidates, earlier).min(axis=1, initial=256) <= NEAR
    kept_pictures: set[bytes] = set()
    kept = []
    for drawing, copy in zip(candidates, near, strict=True):
        if not copy and drawing.picture not in kept_pictures:
            kept_pictures.add(drawing.picture)
            kept.append(drawing)
    return kept


def _differences(first: Sequence[Drawing], second: Sequence[Drawing]) -> np.ndarray:
    """Returns float32[len(first), len(second)]: the number of bits in which two pictures differ."""
    a = np.array([drawing.bits for drawing in first], np.float32).reshape(len(first), 256)
    b = np.array([drawing.bits for drawing in second], np.float32).reshape(len(second), 256)
    return a.sum(axis=1)[:, None] + b.sum(axis=1)[None, :] - 2 * a @ b.T


def _design(face: Face) -> str:
    """Returns a face's design: a package's faces whose family names begin alike share it, and stay in one split."""
    return f"{face.package}/{' '.join(face.family.split()[:2])}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
