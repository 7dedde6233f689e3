"""Finds the font files of `glyphs`: those of the packages in glyphs.json, or all fonts of a folder.

glyphs.json lists the characters of each script, and the packages with version, licence and the SHA-256 of each font
file. `benchmarks/glyph_list.py` made the list.
"""

import dataclasses
import functools
import hashlib
import json
import logging as standard_logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging
from fontTools import ttLib
from fontTools.ttLib import TTFont

from basisnet_jax.errors import UserError

SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
INSTALL = "docs/examples/glyphs.md has the command that fetches the packages"


@dataclasses.dataclass(frozen=True)
class Face:
    """One face of a font file, with the characters that are taken from the face."""

    path: str  # of the font file
    index: int  # number of the face in a collection; 0 in other files
    name: str  # the file's path below its root, with '#index' in a collection: the same on every machine
    family: str
    package: str  # Debian package; in a folder of fonts, the folder that the file is in
    licence: str
    characters: str  # in the order of the classes
    absent: str  # a character that the face lacks: drawn as '.notdef'


@functools.cache
def listed() -> dict[str, Any]:
    """Reads glyphs.json: {'characters': {script: str}, 'merged': {...}, 'packages': {name: {...}}}."""
    return json.loads(pathlib.Path(__file__).with_name("glyphs.json").read_text())


def classes(scripts: Sequence[str]) -> list[tuple[str, str]]:
    """Returns (script, character) of each class; if `scripts` is empty, the classes of all scripts.

    Raises:
      UserError: a script is not in glyphs.json.
    """
    characters = listed()["characters"]
    for script in scripts:
        if script not in characters:
            raise UserError(f"script {script!r} is not one of {', '.join(characters)}; name one of these.")
    return [(script, character) for script in scripts or characters for character in characters[script]]


def listed_faces(root: str, scripts: Sequence[str]) -> list[Face]:
    """Opens the fonts of glyphs.json.

    Args:
      root: folder that the packages were unpacked in; '/' where they are installed.
      scripts: as for `classes`.

    Raises:
      UserError: a font is missing or has changed; the message names its package, with version and SHA-256.
    """
    wanted = {character for _, character in classes(scripts)}
    faces: list[Face] = []
    for package, entry in listed()["packages"].items():
        for file, (sha256, banned) in entry["fonts"].items():
            path = os.path.join(root, file)
            if not os.path.isfile(path):
                raise UserError(f"package {package} {entry['version']}: {file} is not in {root}; {INSTALL}.")
            digest = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
            if digest != sha256:
                raise UserError(
                    f"package {package} has changed: {path} has SHA-256 {digest}, but glyphs.json has {sha256}, "
                    f"of version {entry['version']}; fetch that version ({INSTALL})."
                )
            excluded = {character for script in banned for character in listed()["characters"][script]}
            faces += open_faces(path, file, package, entry["licence"], wanted - excluded)
    return faces


def folder_faces(folder: str, scripts: Sequence[str]) -> tuple[list[Face], list[str]]:
    """Opens all fonts of a folder and of the folders in it, in the order of their names.

    Returns:
      The faces that have a character of `scripts`; and the unreadable files, each with the reason.

    Raises:
      UserError: the folder does not exist, or none of its fonts has such a character.
    """
    root = pathlib.Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"fonts_dir = {folder!r} is not a folder; name one that holds .ttf, .otf or .ttc files.")
    wanted = {character for _, character in classes(scripts)}
    faces: list[Face] = []
    unreadable: list[str] = []
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        name = path.relative_to(root).as_posix()
        try:
            faces += open_faces(str(path), name, path.relative_to(root).parent.as_posix(), "", wanted)
        except (ttLib.TTLibError, OSError, ValueError, KeyError, AssertionError, EOFError, LookupError) as error:
            unreadable.append(f"{name} ({str(error).splitlines()[0] if str(error) else type(error).__name__})")
            logging.warning("font %s is unreadable and skipped", unreadable[-1])
    if not faces:
        raise UserError(
            f"fonts_dir = {folder!r} holds no font with a character of {', '.join(scripts) or 'any script'} "
            f"({len(unreadable)} unreadable); name a folder of .ttf, .otf or .ttc files."
        )
    return faces, unreadable


def open_faces(path: str, name: str, package: str, licence: str, wanted: set[str]) -> Iterator[Face]:
    """Yields the faces of a file that have any `wanted` characters; `licence` '' takes the font's own text."""
    standard_logging.getLogger("fontTools").setLevel(standard_logging.ERROR)  # fontTools warns about every odd table
    collection = path.lower().endswith("c")
    count = len(ttLib.TTCollection(path, lazy=True).fonts) if collection else 1
    for index in range(count):
        with TTFont(path, fontNumber=index if collection else -1, lazy=True) as font:
            mapped = font.getBestCmap() or {}
            family = _names(font, 16, 1) or pathlib.Path(name).stem
            words = licence or _names(font, 13, 14) or "unknown"
        characters = "".join(sorted(character for character in wanted if ord(character) in mapped))
        if characters:
            absent = next(chr(code) for code in range(0x10FFFD, 0xE000, -1) if code not in mapped)
            yield Face(
                path, index, f"{name}#{index}" if collection else name, family, package, words, characters, absent
            )


def _names(font: TTFont, *numbers: int) -> str:
    """Returns the first of some entries of a font's name table, on one line of at most 120 characters, or ''."""
    for number in numbers:
        text = " ".join((font["name"].getDebugName(number) or "").split()) if "name" in font else ""
        if text:
            return text[:120]
    return ""
