"""The rendered characters: which drawings become examples, and that the same fonts give the same bytes."""

import hashlib
import json
import logging
import pathlib
import shutil

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.recordingPen import DecomposingRecordingPen
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from basisnet_jax.data import datasets, glyph_designs, glyph_fonts, glyph_render, glyphs, prepare_glyphs
from basisnet_jax.errors import UserError

WHEEL = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # fonts that are surely here
FOLDERS = {
    "sans": ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
    "mono": ("DejaVuSansMono.ttf",),
    "serif": ("DejaVuSerif.ttf", "DejaVuSerif-Italic.ttf"),
    "stix": ("STIXGeneral.ttf", "STIXGeneralBol.ttf"),
    "cmr": ("cmr10.ttf",),
    "cmss": ("cmss10.ttf",),
    "cmtt": ("cmtt10.ttf",),
    "sister": ("DejaVuSans.ttf", "cmr10.ttf"),  # designs that another folder has too
}
SIZES = {"train": 12, "sweep": 3, "validation": 3, "unseen_fonts": 3}


@pytest.fixture(scope="module")
def fonts(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("fonts")
    for folder, names in FOLDERS.items():
        (root / folder).mkdir()
        for name in names:
            shutil.copy(WHEEL / name, root / folder / name)
    return root


def prepare(fonts: pathlib.Path, data_dir: pathlib.Path) -> glyphs.Glyphs:
    builder = glyphs.Glyphs(fonts_dir=str(fonts), scripts=("digit",), sizes=SIZES, data_dir=str(data_dir))
    prepare_glyphs.prepare(builder)
    return builder


@pytest.fixture(scope="module")
def built(fonts, tmp_path_factory) -> glyphs.Glyphs:
    return prepare(fonts, tmp_path_factory.mktemp("data"))


def examples(builder, split):
    return [
        {name: value.decode() if isinstance(value, bytes) else value for name, value in example.items()}
        for example in builder.as_data_source(split=split)
    ]


def test_two_builds_give_the_same_bytes(fonts, built, tmp_path):
    again = prepare(fonts, tmp_path)
    files = sorted(path.name for path in built.data_path.iterdir())
    assert sum("array_record" in name for name in files) == 4
    for name in files:
        assert (again.data_path / name).read_bytes() == (built.data_path / name).read_bytes(), name
    for split in built.info.splits:
        assert prepare_glyphs.digest(again.as_data_source(split=split)) == prepare_glyphs.digest(
            built.as_data_source(split=split)
        )


def test_another_font_gives_another_digest(fonts, built, tmp_path):
    changed = shutil.copytree(fonts, tmp_path / "fonts")
    shutil.copy(WHEEL / "DejaVuSerif-Bold.ttf", changed / "serif" / "DejaVuSerif.ttf")
    other = prepare(changed, tmp_path / "data")
    source = other.as_data_source(split="train")
    assert prepare_glyphs.digest(source) != prepare_glyphs.digest(built.as_data_source(split="train"))


def test_every_example_says_what_it_is(fonts, built):
    for split in glyph_designs.SPLITS:
        for example in examples(built, split):
            assert example["image"].shape == (32, 32, 1)
            assert example["image"].std() > 1
            assert example["character"] == "0123456789"[example["label"]]
            assert built.info.features["script"].int2str(example["script"]) == "digit"
            assert (fonts / example["font"]).is_file()
            assert example["package"] == example["font"].split("/")[0]
            assert example["licence"]
            assert example["family"]
    train = examples(built, "train")
    assert np.bincount([example["label"] for example in train]).tolist() == [12] * 10
    assert any("Bitstream" in example["licence"] for example in train)


def test_unseen_fonts_are_of_no_package_that_is_seen(built):
    packages = {split: {example["package"] for example in examples(built, split)} for split in glyph_designs.SPLITS}
    assert packages["unseen_fonts"]
    assert not packages["unseen_fonts"] & (packages["train"] | packages["sweep"] | packages["validation"])
    assert packages["validation"] <= packages["train"]  # designs that are seen in other characters


def drawn(path: pathlib.Path, character: str) -> bytes:
    """A large drawing, cropped: by other code than the builder's."""
    image = Image.new("L", (600, 600))
    ImageDraw.Draw(image).text((150, 100), character, fill=255, font=ImageFont.truetype(str(path), 200))
    return image.crop(image.getbbox()).tobytes()


def test_no_drawing_is_in_two_splits(fonts, built):
    """Though `sister` holds copies of two fonts of other folders."""
    drawings = {
        split: {
            hashlib.sha256(drawn(fonts / example["font"], example["character"])).digest()
            for example in examples(built, split)
        }
        for split in glyph_designs.SPLITS
    }
    together = [drawing for found in drawings.values() for drawing in found]
    assert len(together) == len(set(together))
    distinct = {(example["font"], example["character"]) for example in examples(built, "validation")}
    assert len(distinct) == len(drawings["validation"]) == len(examples(built, "validation"))  # each once


def outline(font: TTFont, character: str) -> tuple:
    """What a character is drawn of, moved to its own corner."""
    pen = DecomposingRecordingPen(font.getGlyphSet())
    font.getGlyphSet()[font.getBestCmap()[ord(character)]].draw(pen)
    points = [point for _, group in pen.value for point in group]
    if not points:
        return ()
    left, bottom = min(x for x, _ in points), min(y for _, y in points)
    return tuple((name, tuple((x - left, y - bottom) for x, y in group)) for name, group in pen.value)


@pytest.mark.parametrize("name", ["DejaVuSans.ttf", "DejaVuSerif.ttf"])
def test_no_two_classes_have_the_same_outline(name):
    """By the outlines in the font file, where the list's merging compared pictures of many fonts."""
    font = TTFont(WHEEL / name)
    first_of: dict[tuple, str] = {}
    for script, character in glyph_fonts.classes(()):
        if ord(character) in font.getBestCmap():
            first = first_of.setdefault(outline(font, character), character)
            assert first == character, f"{script} {character!r} is drawn as {first!r}: merge them in glyphs.json"
    assert outline(font, "A") == outline(font, "\u0410")  # the comparison sees what is merged
    assert not {"\u0391", "\u0410"} & {character for _, character in glyph_fonts.classes(())}


def write_font(path: pathlib.Path, boxes: dict[str, int], notdef: int = 0) -> None:
    """A font whose glyphs are frames of a given width; as much as .notdef's where they are to be the same."""

    def frame(width: int):
        pen = TTGlyphPen(None)
        for inset in (0, 60):
            corners = [(inset, inset), (inset, 700 - inset), (width - inset, 700 - inset), (width - inset, inset)]
            corners = corners if inset == 0 else corners[::-1]
            pen.moveTo(corners[0])
            for corner in corners[1:]:
                pen.lineTo(corner)
            pen.closePath()
        return pen.glyph()

    names = {character: f"box{ord(character)}" for character in boxes}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap({ord(character): name for character, name in names.items()})
    drawings = {names[character]: frame(width) for character, width in boxes.items()}
    builder.setupGlyf({".notdef": frame(notdef or 350), **drawings})
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names.values()], (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def test_boxes_for_what_is_missing_are_no_drawings(tmp_path):
    widths = {"0": 350, "1": 200, "2": 500, "3": 500, "4": 600, "5": 600, "6": 600, "7": 700}
    write_font(tmp_path / "boxes.ttf", widths)
    classes = glyph_fonts.classes(("digit",))
    faces, _ = glyph_fonts.folder_faces(str(tmp_path), ("digit",))
    assert faces[0].characters == "01234567"
    drawings, _ = glyph_designs.draw_all(faces, classes)
    # 0 is drawn as .notdef; 2 and 3 are the same, and the first keeps it; 4, 5, 6 are the same: none does.
    assert [len(found) for found in drawings] == [0, 1, 1, 0, 0, 0, 0, 1, 0, 0]


def test_an_unreadable_font_is_named_skipped_and_counted(fonts, tmp_path, caplog):
    damaged = shutil.copytree(fonts, tmp_path / "fonts")
    (damaged / "sans" / "broken.ttf").write_bytes((WHEEL / "DejaVuSans.ttf").read_bytes()[:3000])
    (damaged / "sans" / "empty.otf").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        builder = prepare(damaged, tmp_path / "data")
    skipped = builder.info.metadata["skipped_fonts"]
    assert [name.split(" ")[0] for name in skipped] == ["sans/broken.ttf", "sans/empty.otf"]
    assert "sans/broken.ttf" in caplog.text
    assert json.loads((builder.data_path / "metadata.json").read_text())["skipped_fonts"] == skipped


def test_mistakes_are_answered_with_a_sentence(fonts, tmp_path):
    with pytest.raises(UserError, match=r"'nowhere' is not a folder"):
        glyph_fonts.folder_faces("nowhere", ())
    (tmp_path / "notes.txt").write_text("no font")
    with pytest.raises(UserError, match=r"holds no font with a character of digit \(0 unreadable\)"):
        glyph_fonts.folder_faces(str(tmp_path), ("digit",))
    with pytest.raises(UserError, match=r"script 'klingon' is not one of digit, latin, "):
        glyphs.Glyphs(scripts=("klingon",), data_dir=str(tmp_path))
    few = tmp_path / "few"
    shutil.copytree(fonts / "sans", few / "sans")
    with pytest.raises(UserError, match=r"class '0' of script 'digit' has 1 designs .* but needs 3"):
        prepare(few, tmp_path / "data")


@pytest.fixture
def small_list(fonts, monkeypatch):
    """glyphs.json with the packages 'sans' and 'serif' alone."""

    def entry(package: str) -> dict:
        files = {f"{package}/{name}": fonts / package / name for name in FOLDERS[package]}
        hashes = {name: [hashlib.sha256(path.read_bytes()).hexdigest(), []] for name, path in files.items()}
        return {"version": "1.2-3", "licence": "Bitstream-Vera", "fonts": hashes}

    listed = {"characters": {"digit": "0123456789"}, "packages": {name: entry(name) for name in ("sans", "serif")}}
    monkeypatch.setattr(glyph_fonts, "listed", lambda: listed)
    return listed


def test_listed_fonts_are_checked_by_their_hash(fonts, small_list, tmp_path):
    faces = glyph_fonts.listed_faces(str(fonts), ("digit",))
    assert [face.name for face in faces] == [f"{x}/{name}" for x in ("sans", "serif") for name in FOLDERS[x]]
    assert {face.licence for face in faces} == {"Bitstream-Vera"}
    other = shutil.copytree(fonts, tmp_path / "fonts")
    shutil.copy(WHEEL / "DejaVuSerif-Bold.ttf", other / "serif" / "DejaVuSerif.ttf")
    with pytest.raises(UserError, match=r"package serif has changed: .*DejaVuSerif.ttf has SHA-256 [0-9a-f]{64}"):
        glyph_fonts.listed_faces(str(other), ("digit",))
    (other / "serif" / "DejaVuSerif.ttf").unlink()
    with pytest.raises(UserError, match=r"package serif 1.2-3: serif/DejaVuSerif.ttf is not in "):
        glyph_fonts.listed_faces(str(other), ("digit",))


def test_a_font_gives_no_characters_of_scripts_that_the_list_bans(fonts, small_list):
    small_list["packages"]["sans"]["fonts"]["sans/DejaVuSans.ttf"][1].append("digit")
    assert "sans/DejaVuSans.ttf" not in [face.name for face in glyph_fonts.listed_faces(str(fonts), ("digit",))]


def test_the_list_is_whole():
    listed = glyph_fonts.listed()
    for name, package in listed["packages"].items():
        assert package["version"], name
        assert package["licence"], name
        for file, (sha256, banned) in package["fonts"].items():
            assert file.startswith("usr/share/"), file
            assert len(bytes.fromhex(sha256)) == 32
            assert set(banned) < set(listed["characters"])
    characters = "".join(listed["characters"].values())
    assert len(characters) == len(set(characters))
    assert not set(listed["merged"]) & set(characters)
    assert set(listed["merged"].values()) <= set(characters)


def test_it_is_a_data_set_like_any_other(built):
    data = datasets.open_dataset("glyphs", built._data_dir_root, "train[:50%]", "validation")
    assert data.classes == tuple("0123456789")
    assert data.channels == 1
    example = data.train.__getitems__([0])[0]
    assert example["image"].startswith(b"\x89PNG")
    tasks = datasets.with_tasks(data, "script", 30)
    assert tasks.eval.__getitems__([0])[0]["task"] == example["script"]


def test_data_that_is_not_prepared_names_the_command(tmp_path):
    with pytest.raises(UserError, match=r"`python -m basisnet_jax\.data\.prepare_glyphs --data_dir="):
        datasets.open_dataset("glyphs", str(tmp_path), "train", "validation")


def test_distortion_keeps_the_character_and_never_repeats():
    font = glyph_render.load_font(str(WHEEL / "DejaVuSans-Bold.ttf"), 0)
    ink = glyph_render.draw(font, "R")
    rng = np.random.Generator(np.random.PCG64(0))
    images = [glyph_render.distort(ink, [ink, ink], rng, glyph_render.Distortion()) for _ in range(40)]
    assert len({image.tobytes() for image in images}) == 40
    calm = glyph_render.Distortion(
        *(1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        min_contrast=150, gradient=0, texture=0, blur=0.0, noise=0,
    )  # fmt: skip
    image = glyph_render.distort(ink, [ink, ink], rng, calm).astype(float)
    mask = glyph_render.fit(ink, glyph_render.SIDE).astype(float)
    assert abs(np.corrcoef(image.ravel(), mask.ravel())[0, 1]) > 0.98
