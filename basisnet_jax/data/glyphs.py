"""`glyphs`: a thousand characters of nineteen scripts, rendered from open fonts, as a TFDS builder.

Each example is one drawing of a character, distorted as scene text is: perspective, broken strokes, neighbours,
backgrounds, blur, noise. docs/examples/glyphs.md is the data card; `prepare_glyphs.py` renders the data set.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from absl import logging

# Images of a class at most. Training drawings are distorted again until the number is reached, others only once.
SIZES = {"train": 128, "sweep": 10, "validation": 20, "unseen_fonts": 20}


class Glyphs(tfds.core.GeneratorBasedBuilder):
    """A TFDS builder that renders the data set; the same fonts give the same bytes."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None  # no files beside the code to read

    def __init__(
        self,
        *,
        root: str = "/",
        fonts_dir: str = "",
        scripts: Sequence[str] = (),
        sizes: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        """Opens the data set, prepared or not.

        Args:
          root: folder that the packages of glyphs.json are unpacked in; '/' where they are installed.
          fonts_dir: a folder of font files to take in place of the packages.
          scripts: scripts of glyphs.json whose characters are the classes; empty for all scripts.
          sizes: replace some of `SIZES`.
          **kwargs: `data_dir` and the other arguments of TFDS's builders.
        """
        self._fonts = {"root": root, "fonts_dir": fonts_dir}
        self._scripts = tuple(scripts)
        self._sizes = {**SIZES, **(sizes or {})}
        kwargs.setdefault("file_format", "array_record")
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        from basisnet_jax.data import glyph_fonts
        from basisnet_jax.data.glyph_render import SIDE

        # A prepared data set keeps its own class names: it may have other scripts.
        prepared = self.data_path.exists()
        names = None if prepared else [character for _, character in glyph_fonts.classes(self._scripts)]
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIDE, SIDE, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=names),
                    "character": tfds.features.Text(),
                    "script": tfds.features.ClassLabel(names=list(glyph_fonts.listed()["characters"])),
                    "family": tfds.features.Text(),
                    "font": tfds.features.Text(),  # file below the root or fonts_dir
                    "package": tfds.features.Text(),
                    "licence": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        from basisnet_jax.data import glyph_designs, glyph_fonts

        classes = glyph_fonts.classes(self._scripts)
        skipped: list[str] = []
        if self._fonts["fonts_dir"]:
            faces, skipped = glyph_fonts.folder_faces(self._fonts["fonts_dir"], self._scripts)
        else:
            faces = glyph_fonts.listed_faces(self._fonts["root"], self._scripts)
        logging.info("drawing %d classes with %d faces", len(classes), len(faces))
        drawings, undrawn = glyph_designs.draw_all(faces, classes)
        examples = glyph_designs.split_all(drawings, faces, classes, self._sizes)
        self.info.metadata["skipped_fonts"] = skipped + undrawn
        return {split: self._generate_examples(split, chosen, faces) for split, chosen in examples.items() if chosen}

    def _generate_examples(self, split: str, examples: Sequence[Any], faces: Sequence[Any]) -> Iterator[Any]:
        from basisnet_jax.data import glyph_fonts, glyph_render

        logging.info("rendering %d images of split %s", len(examples), split)
        classes = glyph_fonts.classes(self._scripts)
        settings = glyph_render.Distortion()
        by_face = sorted(examples, key=lambda example: example.face)
        for number, group in itertools.groupby(by_face, key=lambda example: example.face):
            face = faces[number]
            ink_of = functools.cache(
                functools.partial(glyph_render.draw, glyph_render.load_font(face.path, face.index))
            )
            for example in group:
                script, character = classes[example.label]
                key = f"{character} {face.name} {example.version}"
                seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
                rng = np.random.Generator(np.random.PCG64(seed))
                ink = ink_of(character)
                if ink is None:  # impossible: `draw_all` leaves out empty drawings
                    raise AssertionError(f"{face.name} draws no {character}")
                others = (ink_of(face.characters[index]) for index in rng.integers(len(face.characters), size=2))
                neighbours = [ink if other is None else other for other in others]
                image = glyph_render.distort(ink, neighbours, rng, settings)
                yield (
                    key,
                    {
                        "image": cv2.imencode(".png", image)[1].tobytes(),  # TFDS would import TensorFlow to encode it
                        "label": example.label,
                        "character": character,
                        "script": script,
                        "family": face.family,
                        "font": face.name,
                        "package": face.package,
                        "licence": face.licence,
                    },
                )
