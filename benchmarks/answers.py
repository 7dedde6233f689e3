"""Draws the README's picture: images of the glyphs, what the preview said, and what the specialist made of it.

    python benchmarks/answers.py --data_dir=DATA --fonts=FONTS --out=docs/examples/answers.png

The model is the one that comes along. Images are taken in a random order from seed 0. The first row has the first image
of each script that the preview answers alone and rightly; the second row the first image of each script of which the
preview is unsure and wrong, and the specialist right.
"""

import argparse
import pathlib

import matplotlib.font_manager
import numpy as np
import tensorflow_datasets as tfds
from matplotlib import pyplot

from basisnet_jax.runtime import TwoStageClassifier
from basisnet_jax.serving.zoo import folder_of

COUNT = 6  # images of a row
FONT = "Noto*CJK*-Regular.*"  # has Latin, Greek, kana, Han, Hangul, and Cyrillic but for rare letters
SCRIPTS = ("latin", "greek", "cyrillic", "hiragana", "katakana", "hangul", "han")


Answer = tuple[np.ndarray, str, str]  # pixels uint8[32, 32], the preview's answer, the answer of both stages


def chosen(data_dir: str) -> tuple[list[Answer], list[Answer]]:
    """Returns the answers of the first row and those of the second, at most COUNT each."""
    builder = tfds.builder("glyphs", data_dir=data_dir)
    examples = list(builder.as_data_source("validation"))
    rng = np.random.default_rng(0)
    examples = [examples[i] for i in rng.permutation(len(examples))]
    scripts = builder.info.features["script"]
    script_of = {example["label"]: scripts.int2str(example["script"]) for example in examples}
    images, labels = (np.array([example[name] for example in examples]) for name in ("image", "label"))
    folder = folder_of("glyphs")
    classifier, preview = (TwoStageClassifier.from_export(folder, threshold) for threshold in (None, 0.0))
    names, two, one = classifier.classes, classifier.classify(images), preview.classify(images)
    sure, mended = {}, {}  # by script
    for i, label in enumerate(labels):
        script, answer = script_of[label], (images[i, ..., 0], names[one.labels[i]], names[two.labels[i]])
        if not {script, script_of.get(one.labels[i])} <= set(SCRIPTS) or two.labels[i] != label:
            continue
        if two.exited_early[i]:
            sure.setdefault(script, answer)
        elif one.labels[i] != label:
            mended.setdefault(script, answer)
    return list(sure.values())[:COUNT], list(mended.values())[:COUNT]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="where the glyphs were prepared")
    parser.add_argument("--fonts", type=pathlib.Path, required=True, help=f"a folder with a font {FONT} in it")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    font = min(options.fonts.rglob(FONT))
    matplotlib.font_manager.fontManager.addfont(font)
    # DejaVu Sans, which comes with Matplotlib, has the letters that this font has not.
    families = [matplotlib.font_manager.FontProperties(fname=font).get_name(), "DejaVu Sans"]
    pyplot.rcParams["font.size"] = 13
    figure, axes = pyplot.subplots(2, COUNT, figsize=(10, 5))
    titles = "The preview is sure, and answers:", "The preview is unsure, and wrong; the specialist is right:"
    for row, title, answers in zip(axes, titles, chosen(options.data_dir), strict=True):
        row[0].set_title(title, loc="left", pad=12)
        for axis, (image, preview, both) in zip(row, answers, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(both if preview == both else f"{preview}  \u2192  {both}", family=families, fontsize=19)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.1, top=0.91, wspace=0.08, hspace=0.62)
    figure.savefig(options.out, dpi=100)


if __name__ == "__main__":
    main()
