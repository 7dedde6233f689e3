"""Two-stage inference with an exported network: NumPy and LiteRT alone, no JAX (`pip install 'basisnet_jax[runtime]'`).

python -m basisnet_jax.runtime runs/digits/export pixels.npy
python -m basisnet_jax.runtime runs/digits/export 'photos/*.jpg'                          # with OpenCV or Pillow
python -m basisnet_jax.runtime runs/digits/export labelled/ --max_accuracy_drop=0.001     # chooses a threshold
"""

import argparse
import sys

import numpy as np

from basisnet_jax.errors import UserError
from basisnet_jax.host import noise
from basisnet_jax.host.command_line import exit_quietly_on_broken_pipe, on_one_line
from basisnet_jax.serving.exit_rule import NEVER
from basisnet_jax.serving.pipeline import TwoStagePipeline
from basisnet_jax.serving.two_stage import Answers, TwoStageClassifier

__all__ = ["Answers", "TwoStageClassifier", "TwoStagePipeline"]


def _pixels(path: str) -> np.ndarray:
    """Maps a .npy file, so that memory holds only the pixels in use. Raises UserError if it is not a .npy file."""
    try:
        images = np.load(path, mmap_mode="r")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from None
    except Exception:  # what NumPy's parsers of headers and archives raise for a damaged file is no fixed set
        images = None
    if not isinstance(images, np.ndarray):
        raise UserError(
            f"{path} is not a .npy file of pixels, although it is named like one; make it with np.save, or give image "
            "files."
        )
    return images


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m basisnet_jax.runtime", description="Classify images in two stages, or choose the threshold."
    )
    parser.add_argument("export", help="the folder that --mode=export wrote")
    parser.add_argument(
        "images",
        help="a folder of images, names as in 'photos/*.jpg', or a .npy file of uint8[B, side, side, channels]; to "
        "choose a threshold, a folder with a folder for each class, or a .csv file with the columns file and label",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="the preview answers alone if its largest probability is at least this; default: the manifest's rule",
    )
    parser.add_argument("--threads", type=int, default=1, help="threads that LiteRT uses")
    parser.add_argument("--suffix", help="kind of the files, such as int8.tflite; default: the manifest's first")
    parser.add_argument(
        "--isolated", action="store_true", help="run LiteRT in a process of its own, for an export of a stranger"
    )
    parser.add_argument("--top_k", type=int, default=1, help="classes an image, the most probable first")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    bound = parser.add_mutually_exclusive_group()
    bound.add_argument(
        "--max_accuracy_drop",
        type=float,
        help="choose the threshold that lets most images exit and loses at most this share of top-1, such as 0.001",
    )
    bound.add_argument(
        "--madds_target",
        type=float,
        help="choose the threshold that lets fewest images exit and needs at most so many multiply-adds on average",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Classifies images, or chooses a threshold. Returns the exit code: 1 if some file is not an image."""
    given = _parsed(arguments)
    try:
        if given.threads < 1:
            raise UserError(f"--threads={given.threads} is not a number of threads; give 1 or more.")
        chooses = given.max_accuracy_drop is not None or given.madds_target is not None
        threshold = NEVER if chooses else given.threshold
        classifier = TwoStageClassifier.from_export(
            given.export, threshold, given.threads, given.suffix, isolated=given.isolated
        )
        bad = _choose(classifier, given) if chooses else _classify(classifier, given)
    except UserError as error:
        print(f"error: {on_one_line(str(error))}", file=sys.stderr)
        return 2
    for sentence in bad:
        print(f"error: {on_one_line(sentence)}", file=sys.stderr)
    return int(bool(bad))


def _classify(classifier: TwoStageClassifier, given: argparse.Namespace) -> list[str]:
    """Prints the answers. Returns a sentence for each file that is not an image."""
    if given.images.endswith((".npy", ".npz")):
        answers = classifier.classify(_pixels(given.images), given.top_k)
        for labels, probabilities, early, _ in zip(*answers, strict=True):
            for label, probability in zip(labels, probabilities, strict=True):
                print(f"{classifier.classes[label]}  {probability:.4f}  {'preview' if early else 'specialist'}")
        return []
    from basisnet_jax.serving.image_files import predict_files, table  # needs OpenCV or Pillow

    rows, bad = predict_files(classifier, given.images, given.top_k)
    print(table(rows, given.format))
    return bad


def _choose(classifier: TwoStageClassifier, given: argparse.Namespace) -> list[str]:
    """Prints the threshold. Returns a sentence for each file that is not an image."""
    from basisnet_jax.serving.choose_threshold import choose_threshold, labelled_files

    choice, bad = choose_threshold(
        classifier,
        labelled_files(given.images, classifier.classes),
        max_accuracy_drop=given.max_accuracy_drop,
        madds_target=given.madds_target,
    )
    print(choice)
    print(f"next: python -m basisnet_jax.runtime {given.export} IMAGES --threshold={choice.threshold}")
    return bad


if __name__ == "__main__":
    noise.filter_native_stderr()
    with exit_quietly_on_broken_pipe():
        sys.exit(main())
