"""Writes basisnet_jax/data/glyphs.json: which characters are classes of `glyphs`, and which font files draw them.

    python benchmarks/glyph_list.py --debs=DEBS --root=FONTS --out=basisnet_jax/data/glyphs.json

DEBS is a folder of fonts-*.deb files, FONTS the folder that they are unpacked in. Needs dpkg-deb. Building the data set
does not need this program: it made the list that the builder reads, and can make a new list from newer packages.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import re
import subprocess
from collections.abc import Iterator

import numpy as np
from absl import logging

from basisnet_jax.data import glyph_designs, glyph_fonts
from basisnet_jax.data.glyph_designs import Drawing
from basisnet_jax.data.glyph_fonts import Face

FACES_PER_FAMILY = 2
FAMILIES_PER_PACKAGE = 8
MIN_FAMILIES = 10  # of a class
SAME_BITS = 16  # of 256 that differ: one face draws two characters alike
SAME_SHARE = 0.5  # of the faces that draw two characters alike: they are merged
FACES_TO_MERGE_BY = 16  # one face of so many is asked
MIN_RECOGNIZED = {"greek": 0.05, "cyrillic": 0.05}  # share of a face's characters whose like another package has,
MIN_RECOGNIZED_ELSE = 0.15  # and in other scripts
MANY_PACKAGES = 15  # only a script of so many is asked for that: in others a style may have but one package
# Drawn alike by design, apart from size, weight and width, which the distortions change anyway: measured, they
# differ in 30 to 60 bits. The first of each is the class.
# ruff: noqa: RUF001
SAME_FORM = (
    *("Cc", "Oo", "Ss", "Vv", "Ww", "Xx", "Zz", "Ιι", "Κκ", "Χχ", "vν", "3З", "KК", "YΥ", "Oഠ", "Oဝ"),
    *("Вв", "Гг", "Дд", "Жж", "Зз", "Ии", "Йй", "Кк", "Лл", "Мм", "Нн", "Оо", "Пп", "Сс", "Тт", "Хх", "Цц", "Чч", "Шш"),
    *("Щщ", "Ъъ", "Ыы", "Ьь", "Ээ", "Юю", "Яя", "Љљ", "Њњ", "Џџ", "べベ", "ぺペ", "りリ"),
    *("カ力", "ロ口", "ニ二", "エ工", "タ夕", "ハ八", "チ千", "ミ三"),
)
SKIPPED_WORDS = ("emoji", "symbol", "dingbat", "barcode", "icon", "ornament", "braille", "music", "stroke")


def span(first: int, last: int) -> str:
    """Returns the characters from one code point to another, both included."""
    return "".join(chr(code) for code in range(first, last + 1))


def without(characters: str, left_out: str) -> str:
    """Returns the characters that are not in `left_out`."""
    return "".join(character for character in characters if character not in left_out)


def rows(codec: str, first: int, last: int) -> list[str]:
    """Returns the characters of some rows of a 94 x 94 character set, in its order."""
    pairs = [bytes([row + 0xA0, cell + 0xA0]) for row in range(first, last + 1) for cell in range(1, 95)]
    return [text for text in (pair.decode(codec, "ignore") for pair in pairs) if text]


def spread(characters: list[str], count: int) -> str:
    """Returns `count` of the characters, evenly spread over their order."""
    return "".join(characters[index * len(characters) // count] for index in range(count))


def common_han() -> list[str]:
    """Returns the characters that are in the first level of the national character sets of China, Taiwan and Japan."""
    trails = [*range(0x40, 0x7F), *range(0xA1, 0xFF)]
    big5 = {bytes([lead, trail]).decode("big5", "ignore") for lead in range(0xA4, 0xC7) for trail in trails}
    return sorted(set(rows("gb2312", 16, 55)) & set(rows("euc_jp", 16, 47)) & big5)


def candidates() -> dict[str, str]:
    """Returns {script: characters}. Of two that are drawn alike, the earlier one becomes the class."""
    return {
        "digit": "0123456789",
        "latin": span(0x41, 0x5A) + span(0x61, 0x7A) + "ßæœøđłþð",
        "greek": without(span(0x391, 0x3C9), "\u03a2ΪΫάέήίΰ"),
        "cyrillic": span(0x410, 0x44F) + "ЂЄЉЊЋЏђєљњћџґ",
        "armenian": span(0x531, 0x556) + span(0x561, 0x586),
        "georgian": span(0x10D0, 0x10F0),
        "hebrew": span(0x5D0, 0x5EA),
        "arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهويءپچژگ",
        "devanagari": span(0x905, 0x90B) + "एऐऔ" + without(span(0x915, 0x939), "ऩऱऴ"),
        "bengali": span(0x985, 0x98B) + "এঐওঔ" + span(0x995, 0x9A8) + span(0x9AA, 0x9B0) + "লশষসহ",
        "gujarati": span(0xA85, 0xA8B) + "એઐઓઔ" + span(0xA95, 0xAA8) + span(0xAAA, 0xAB0) + "લળવશષસહ",
        "tamil": span(0xB85, 0xB8A) + "எஏஐஒஓஔகஙசஜஞடணதநனபமயரறலளழவஷஸஹ",
        "telugu": span(0xC05, 0xC0B) + "ఎఏఐఒఓఔ" + span(0xC15, 0xC28) + span(0xC2A, 0xC33) + span(0xC35, 0xC39),
        "malayalam": span(0xD05, 0xD0B) + "എഏഐഒഓഔ" + span(0xD15, 0xD28) + span(0xD2A, 0xD39),
        "thai": span(0xE01, 0xE2E),
        "tibetan": without(span(0xF40, 0xF68), "\u0f43\u0f48\u0f4d\u0f52\u0f57\u0f5c"),
        "myanmar": span(0x1000, 0x1021) + "ဣဤဥဧဩ",
        "khmer": without(span(0x1780, 0x17A2), "\u179d\u179e") + "ឥឦឧឩឪឫឬឭឮឯឰឱឳ",
        "hiragana": without(span(0x3042, 0x3093), "ぃぅぇぉっゃゅょゎ"),
        "katakana": without(span(0x30A2, 0x30F3), "ィゥェォッャュョヮ"),
        "hangul": spread(rows("euc_kr", 16, 40), 150),
        "han": spread(common_han(), 250),
    }


def read_packages(debs: str, root: str) -> dict[str, dict]:
    """Returns {package: version, licence, font files below the root}."""
    packages = {}
    for deb in sorted(pathlib.Path(debs).glob("*.deb")):
        words = subprocess.run(["dpkg-deb", "--show", deb], capture_output=True, text=True, check=True).stdout.split()
        listing = subprocess.run(["dpkg-deb", "--contents", deb], capture_output=True, text=True, check=True).stdout
        files = [line.split(None, 5)[5].removeprefix("./") for line in listing.splitlines() if line.startswith("-")]
        fonts = sorted(file for file in files if file.lower().endswith(glyph_fonts.SUFFIXES))
        copyright_file = pathlib.Path(root, "usr/share/doc", words[0], "copyright")
        text = copyright_file.read_text(errors="replace") if copyright_file.is_file() else ""
        packages[words[0]] = {"version": words[1], "licence": licence(text), "fonts": fonts}
    return packages


def licence(text: str) -> str:
    """Returns the licences that a package's copyright file names, those of its Debian packaging included."""
    fields = re.findall(r"^License: *(\S[^\n]*)$", text, re.MULTILINE)
    if fields:
        return ", ".join(dict.fromkeys(" ".join(field.split()) for field in fields))[:120]
    known = {
        "OFL": r"SIL Open Font License|Open Font Licen[cs]e",
        "Apache-2.0": r"Apache License",
        "GPL": r"General Public License",
        "LPPL": r"LaTeX Project Public License",
        "GUST": r"GUST Font",
        "public-domain": r"public domain",
        "Bitstream-Vera": r"Bitstream Vera",
        "Arphic": r"Arphic Public License",
        "IPA": r"IPA Font License",
        "MIT": r"Permission is hereby granted, free of charge",
    }
    found = [name for name, pattern in known.items() if re.search(pattern, re.sub(r"\s+", " ", text), re.IGNORECASE)]
    return ", ".join(found) or "see the package's copyright file"


def open_all(packages: dict[str, dict], root: str, wanted: set[str]) -> Iterator[Face]:
    """Returns the faces of all packages that are not symbols; of each family the first few."""
    for package, entry in packages.items():
        families: dict[str, list[Face]] = collections.defaultdict(list)
        for file in sorted(
            entry["fonts"], key=lambda file: (not re.search(r"regular|book|medium", file.lower()), file)
        ):
            path = os.path.join(root, file)
            try:
                faces = list(glyph_fonts.open_faces(path, file, package, entry["licence"], wanted))
            except Exception as error:  # any of fontTools' own: the file is left out of the list
                logging.warning("%s is left out: %s", file, error)
                continue
            for face in faces:
                if not any(word in f"{face.family} {file}".lower() for word in SKIPPED_WORDS):
                    families[face.family].append(face)
        for family in sorted(families)[:FAMILIES_PER_PACKAGE]:
            yield from families[family][:FACES_PER_FAMILY]


def differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns float32[len(a), len(b)]: bits that differ."""
    return a.sum(axis=1)[:, None] + b.sum(axis=1)[None, :] - 2 * a @ b.T


def merge(faces: list[Face], classes: list[tuple[str, str]]) -> dict[str, str]:
    """Returns {character: the earlier character that is drawn like it}, by one face of `FACES_TO_MERGE_BY`.

    Only characters of different scripts and the two cases of a letter are compared: within a script, characters that
    differ by a dot are none the less different.
    """
    script_of = {character: script for script, character in classes}
    order = {character: number for number, (_, character) in enumerate(classes)}
    common, alike = np.zeros((2, len(classes), len(classes)), np.int32)
    for face in faces[::FACES_TO_MERGE_BY]:
        try:
            pictures = glyph_designs.pictures_of(face)
        except OSError:
            continue
        drawn = [(order[c], glyph_designs.bits_of(picture)) for picture, shared in pictures.items() for c in shared]
        if not drawn:
            continue
        numbers, bits = np.array([n for n, _ in drawn]), np.array([b for _, b in drawn], np.float32)
        at = np.ix_(numbers, numbers)
        common[at] += 1
        alike[at] += differences(bits, bits) <= SAME_BITS
    share = alike / np.maximum(common, 1)
    like: dict[str, str] = {}
    for later, (script, character) in enumerate(classes):
        for earlier in range(later):
            first = classes[earlier][1]
            comparable = script_of[first] != script or first.lower() == character.lower() or first + character == "Il"
            measured = comparable and common[earlier, later] >= 3 and share[earlier, later] >= SAME_SHARE
            if measured or first + character in SAME_FORM:
                like[character] = like.get(first, first)
                break
    return like


def unrecognized(
    faces: list[Face], classes: list[tuple[str, str]], drawings: list[list[Drawing]]
) -> dict[tuple[int, str], float]:
    """Returns {(face, script): share of characters that another package's nearest drawing tells}, where too small."""
    bits, labels, packages = [], [], []
    for label, found in enumerate(drawings):
        step = max(1, len(found) // 8)
        for drawing in found[::step][:8]:
            bits.append(drawing.bits)
            labels.append(label)
            packages.append(faces[drawing.face].package)
    known, label_of, package_of = np.array(bits, np.float32), np.array(labels), np.array(packages)
    packages_of = collections.defaultdict(set)
    by_face: dict[tuple[int, str], list[tuple[int, np.ndarray]]] = collections.defaultdict(list)
    for label, found in enumerate(drawings):
        for drawing in found:
            packages_of[classes[label][0]].add(faces[drawing.face].package)
            by_face[drawing.face, classes[label][0]].append((label, drawing.bits))
    bad = {}
    for (face, script), pairs in by_face.items():
        pairs = pairs[:: max(1, len(pairs) // 8)][:8]
        apart = differences(np.array([b for _, b in pairs], np.float32), known)
        apart[:, package_of == faces[face].package] = 1e9
        nearest = label_of[np.argpartition(apart, 3, axis=1)[:, :3]]
        share = np.mean([label in row for (label, _), row in zip(pairs, nearest, strict=True)])
        if share < MIN_RECOGNIZED.get(script, MIN_RECOGNIZED_ELSE) and len(packages_of[script]) >= MANY_PACKAGES:
            bad[face, script] = float(share)
    return bad


def write(
    out: str,
    root: str,
    packages: dict[str, dict],
    faces: list[Face],
    kept: dict[str, str],
    like: dict[str, str],
    bad: dict[tuple[int, str], float],
    drawn: list[int],
) -> None:
    """Writes the list: one line a font file."""
    used = {character for characters in kept.values() for character in characters}
    banned = collections.defaultdict(set)
    of_file: dict[tuple[str, str], set[int]] = collections.defaultdict(set)
    for number in drawn:
        face = faces[number]
        if used & set(face.characters):
            of_file[face.package, face.name.split("#")[0]].add(number)
    for (face_number, script), _ in bad.items():
        if kept[script]:
            banned[faces[face_number].name.split("#")[0]].add(script)
    listed: dict[str, dict] = {}
    for (package, file), _ in sorted(of_file.items()):
        covered = {script for script, characters in kept.items() for face in of_file[package, file]
                   if set(characters) & set(faces[face].characters)}  # fmt: skip
        if covered <= banned[file]:
            continue
        entry = packages[package]
        at = listed.setdefault(package, {"version": entry["version"], "licence": entry["licence"], "fonts": {}})
        sha256 = hashlib.sha256(pathlib.Path(root, file).read_bytes()).hexdigest()
        at["fonts"][file] = [sha256, sorted(banned[file] & covered)]
    merged = {character: first for character, first in like.items() if first in used}
    lines = [
        "{",
        ' "characters": ' + _json(kept, 2) + ",",
        ' "merged": ' + json.dumps(merged, ensure_ascii=False) + ",",
    ]
    entries = [
        f'  {json.dumps(name)}: {{"version": {json.dumps(entry["version"])}, '
        f'"licence": {json.dumps(entry["licence"])}, "fonts": {_json(entry["fonts"], 3)}}}'
        for name, entry in listed.items()
    ]
    lines += [' "packages": {', ",\n".join(entries), " }", "}"]
    pathlib.Path(out).write_text("\n".join(lines) + "\n")
    print(f"{len(used)} classes, {len(listed)} packages, {sum(len(x['fonts']) for x in listed.values())} font files")


def _json(values: dict, indent: int) -> str:
    """Returns a JSON object with one line a key."""
    lines = [f"{' ' * indent}{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in values.items() if v]
    return "{\n" + ",\n".join(lines) + "\n" + " " * (indent - 1) + "}"


def main() -> None:
    """Reads the packages, draws everything once, and writes the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debs", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    characters = candidates()
    classes = [(script, character) for script in characters for character in characters[script]]
    packages = read_packages(given.debs, given.root)
    faces = list(open_all(packages, given.root, {character for _, character in classes}))
    print(f"{len(packages)} packages, {len(faces)} faces, {len(classes)} candidates")
    like = merge(faces, classes)
    classes = [(script, character) for script, character in classes if character not in like]
    print(f"merged: {like}")
    drawings, unreadable = glyph_designs.draw_all(faces, classes)
    print(f"{sum(map(len, drawings))} drawings, unreadable: {unreadable}")
    drawn = sorted({drawing.face for found in drawings for drawing in found})
    bad = unrecognized(faces, classes, drawings)
    drawings = [[d for d in found if (d.face, classes[label][0]) not in bad] for label, found in enumerate(drawings)]
    kept: dict[str, str] = dict.fromkeys(characters, "")
    for (script, character), found in zip(classes, drawings, strict=True):
        if len({faces[d.face].family for d in found}) >= MIN_FAMILIES:
            kept[script] += character
    write(given.out, given.root, packages, faces, kept, like, bad, drawn)


if __name__ == "__main__":
    main()
