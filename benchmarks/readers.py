"""Compares the pixels and answers that OpenCV and Pillow give for 1,000 photographs.

    python benchmarks/readers.py [--photographs 1000] [--json readers.json]

The photographs are cut from those of scikit-image (the extra `pretrained`) at random: sizes of 40 to 400 pixels,
JPEG, PNG or WebP, any quality, any EXIF orientation. They are read at 224 pixels in color with Inception's central
crop, and in gray for the model `glyphs`, which is no judge of photographs, but whose answers must be the same.
"""

import argparse
import importlib.util
import io
import pathlib
from collections.abc import Iterator

import numpy as np
import timing
from PIL import Image

from basisnet_jax.images import library, opencv, pillow
from basisnet_jax.images.crop import EvalCrop
from basisnet_jax.images.load import load_image
from basisnet_jax.runtime import TwoStageClassifier
from basisnet_jax.serving import zoo

ORIENTATION = 0x0112  # the tag of EXIF
NAMES = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "ihc.png", "motorcycle_left.png")


def photographs(count: int) -> Iterator[bytes]:
    """Yields image files."""
    rng, spec = np.random.default_rng(0), importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None, "pip install 'basisnet_jax[pretrained]'"
    wholes = [np.asarray(Image.open(pathlib.Path(spec.origin).parent / "data" / name).convert("RGB")) for name in NAMES]
    for number in range(count):
        whole = wholes[rng.integers(len(wholes))]
        height, width = (int(rng.integers(40, min(size, 400))) for size in whole.shape[:2])
        top, left = (int(rng.integers(a - b)) for a, b in zip(whole.shape, (height, width), strict=False))
        exif = Image.Exif()
        exif[ORIENTATION] = int(rng.integers(1, 9))
        file = io.BytesIO()
        kind, settings = (("JPEG", {"quality": int(rng.integers(40, 100))}), ("PNG", {}), ("WEBP", {"lossless": True}))[
            0 if number % 4 else 1 + number // 4 % 2
        ]
        Image.fromarray(whole[top : top + height, left : left + width]).save(file, kind, exif=exif, **settings)
        yield file.getvalue()


def main() -> None:
    """Prints the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=int, default=1000)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    classifier = TwoStageClassifier.from_export(zoo.folder_of("glyphs"))
    pixels: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"OpenCV": [], "Pillow": []}
    for encoded in photographs(options.photographs):
        for name, module in (("OpenCV", opencv), ("Pillow", pillow)):
            library.decode, library.resize = module.decode, module.resize
            color = load_image(encoded, 224, 3, EvalCrop(32))
            pixels[name].append((color, load_image(encoded, classifier.side, 1, classifier.crop)))
    answers = {name: classifier.classify(np.stack([gray for _, gray in both])) for name, both in pixels.items()}
    differences = [np.abs(a[0].astype(int) - b[0]) for a, b in zip(pixels["OpenCV"], pixels["Pillow"], strict=True)]
    report = {
        "photographs": len(differences),
        "largest_difference": int(max(x.max() for x in differences)),
        "share_of_pixels_that_differ": float(np.mean([np.mean(x > 0) for x in differences])),
        "same_label": int((answers["OpenCV"].labels == answers["Pillow"].labels).sum()),
        "same_stage": int((answers["OpenCV"].exited_early == answers["Pillow"].exited_early).sum()),
    }
    print(report)
    timing.write_json(options.json, {"machine": timing.machine(), **report})


if __name__ == "__main__":
    main()
