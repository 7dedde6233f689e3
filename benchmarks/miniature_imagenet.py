"""Makes a miniature of ImageNet's official archives for TFDS's own builder, to try ImageNet without the download.

    python benchmarks/miniature_imagenet.py DATA              # then prepare it as docs/guides/data.md says for ImageNet
    python benchmarks/miniature_imagenet.py PHOTOS --folder   # crops as PHOTOS/class/*.jpg, for configs/folder.py

It holds crops of photographs from scikit-learn, Matplotlib and scikit-image, under ImageNet's names and labels, and the
three odd files of ImageNet: a JPEG in CMYK, a gray one, and a PNG that is called JPEG.
"""

import argparse
import importlib.util
import io
import pathlib
import tarfile
from collections.abc import Callable

import numpy as np
from PIL import Image

# {synset: (package, file in it)}; those of packages that are not installed are left out
PHOTOGRAPHS = {
    "n03877845": ("sklearn", "datasets/images/china.jpg"),  # palace
    "n11939491": ("sklearn", "datasets/images/flower.jpg"),  # daisy
    "n03763968": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),  # military uniform
    "n02124075": ("skimage", "data/chelsea.png"),  # Egyptian cat
    "n07920052": ("skimage", "data/coffee.png"),  # espresso
    "n04266014": ("skimage", "data/rocket.jpg"),  # space shuttle
}
NAMES = {
    "n03877845": "palace",
    "n11939491": "daisy",
    "n03763968": "uniform",
    "n02124075": "cat",
    "n07920052": "espresso",
    "n04266014": "rocket",
}
ODD = {"n02447366_23489": "CMYK", "n02105855_1": "L", "n02105855_2933": "PNG"}


def write(folder: pathlib.Path, train: int, validation: int, side: int, seed: int = 0) -> tuple[int, int]:
    """Writes the two archives into folder/downloads/manual.

    Args:
      folder: TFDS's data folder.
      train: images a class.
      validation: images a class, at most 50.
      side: the shorter side of an image, in pixels.
      seed: of the crops.

    Returns:
      Images for training and for validation.
    """
    manual = folder / "downloads" / "manual"
    manual.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    photographs = {synset: _open(*place) for synset, place in PHOTOGRAPHS.items() if _installed(place[0])}
    draw = {synset: lambda x=photo: _crop(x, side, rng) for synset, photo in photographs.items()}
    count = _write_train(manual / "ILSVRC2012_img_train.tar", draw, train)
    return count, _write_validation(manual / "ILSVRC2012_img_val.tar", draw, validation)


def write_folder(folder: pathlib.Path, count: int, side: int, seed: int = 0) -> int:
    """Writes folder/class/*.jpg: crops of photographs, a fifth to two fifths of the photograph's sides long.

    Every fourth file is stored as a phone that is held upright stores it: turned, with the orientation in EXIF data.

    Args:
      folder: gets a folder for each class.
      count: images a class.
      side: the shorter side of an image, in pixels.
      seed: of the crops.

    Returns:
      The number of classes.
    """
    rng, sideways = np.random.default_rng(seed), Image.Exif()
    sideways[0x0112] = 6
    photographs = {NAMES[synset]: _open(*place) for synset, place in PHOTOGRAPHS.items() if _installed(place[0])}
    for name, photo in photographs.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            crop = _crop(photo, side, rng, 0.2, 0.4)
            if number % 4 == 3:
                crop.transpose(Image.Transpose.ROTATE_90).save(folder / name / f"{number:03d}.jpg", exif=sideways)
            else:
                crop.save(folder / name / f"{number:03d}.jpg")
    return len(photographs)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _open(package: str, file: str) -> Image.Image:
    return Image.open(_folder(package) / file).convert("RGB")


def _folder(package: str) -> pathlib.Path:
    return pathlib.Path(importlib.util.find_spec(package).submodule_search_locations[0])


def _crop(
    photo: Image.Image, side: int, rng: np.random.Generator, least: float = 0.5, most: float = 0.95
) -> Image.Image:
    """Crops a random part of a photograph, by default half to nearly all of each side, and perhaps mirrors it."""
    width, height = (round(size * rng.uniform(least, most)) for size in photo.size)
    left, top = rng.integers(photo.width - width + 1), rng.integers(photo.height - height + 1)
    crop = photo.crop((left, top, left + width, top + height))
    scale = side / min(crop.size)
    crop = crop.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def _write_train(path: pathlib.Path, draw: dict[str, Callable[[], Image.Image]], count: int) -> int:
    """Writes an archive that holds an archive for each class."""
    classes = {x: {f"{x}_{i + 1}": _encoded(crop(), "JPEG") for i in range(count)} for x, crop in draw.items()}
    for name, kind in ODD.items():
        image = next(iter(draw.values()))()
        odd = _encoded(image, "PNG") if kind == "PNG" else _encoded(image.convert(kind), "JPEG")
        classes.setdefault(name.split("_")[0], {})[name] = odd
    with tarfile.open(path, "w") as archive:
        for synset, files in sorted(classes.items()):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as part:
                for name, encoded in files.items():
                    _add(part, f"{name}.JPEG", encoded)
            _add(archive, f"{synset}.tar", inner.getvalue())
    return sum(map(len, classes.values()))


def _write_validation(path: pathlib.Path, draw: dict[str, Callable[[], Image.Image]], count: int) -> int:
    """Writes the validation archive. TFDS gives name i the official label i: empty folders fill the gaps."""
    labels = (_folder("tensorflow_datasets") / "datasets/imagenet2012/validation_labels.txt").read_text().split()
    left = dict.fromkeys(draw, count)
    with tarfile.open(path, "w") as archive:
        for number, synset in enumerate(labels, start=1):
            if not any(left.values()):
                break
            name = f"ILSVRC2012_val_{number:08d}.JPEG"
            if left.get(synset):
                _add(archive, name, _encoded(draw[synset](), "JPEG"))
                left[synset] -= 1
            else:
                entry = tarfile.TarInfo(name)
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
    return count * len(draw)


def _encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--folder", action="store_true", dest="as_folder", help="folder/class/*.jpg, not the archives")
    parser.add_argument("--train", type=int, default=20, help="images per class")
    parser.add_argument("--validation", type=int, default=5, help="images per class")
    parser.add_argument("--side", type=int, default=320, help="shorter side in pixels")
    flags = parser.parse_args()
    if flags.as_folder:
        classes = write_folder(flags.folder, flags.train, flags.side)
        print(f"{classes} classes of {flags.train} images in {flags.folder}")
        raise SystemExit
    written = write(flags.folder, flags.train, flags.validation, flags.side)
    print(f"{written[0]} images for training, {written[1]} for validation in {flags.folder}/downloads/manual")
