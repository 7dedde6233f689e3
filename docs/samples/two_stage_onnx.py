"""Classifies pixels in two stages with an export's .onnx files: NumPy and ONNX Runtime alone.

python two_stage_onnx.py runs/digits/export pixels.npy
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime


def softmax(logits_K: np.ndarray) -> np.ndarray:
    """Returns float64[K]: the probabilities."""
    exponentials_K = np.exp(logits_K.astype(np.float64) - logits_K.max())
    return exponentials_K / exponentials_K.sum()


def confidence(logits_K: np.ndarray, criterion: str, temperature: float) -> float:
    """Returns how sure the preview is, from 0 to 1, as manifest.json's rule measures it."""
    probability_K = np.sort(softmax(logits_K.astype(np.float64) / temperature))[::-1]
    if len(probability_K) == 1:
        return 1.0
    if criterion == "margin":
        return probability_K[0] - probability_K[1]
    if criterion == "entropy":
        positive = probability_K[probability_K > 0]
        return 1 + (positive * np.log(positive)).sum() / np.log(len(probability_K))
    return probability_K[0]


class TwoStage:
    """The preview answers if it is sure enough, else the specialist does."""

    def __init__(self, export: str) -> None:
        """Loads the files of an export that has a preview and a rule."""
        folder = pathlib.Path(export)
        self.rule = json.loads((folder / "manifest.json").read_text())["rule"]
        self.classes = (folder / "labels.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
        self.preview = onnxruntime.InferenceSession(folder / "preview.onnx")
        self.specialist = onnxruntime.InferenceSession(folder / "specialist.onnx")

    def classify(self, image_HxWxC: np.ndarray) -> tuple[str, float, bool]:
        """Classifies one image.

        Args:
          image_HxWxC: pixels from 0 to 255, cropped and resized as manifest.json says.

        Returns:
          The class, its probability, and whether the preview answered alone.
        """
        pixels = image_HxWxC[None].astype(np.float32)
        logits, coefficients = self.preview.run(["logits", "coefficients"], {"image": pixels})
        sure = confidence(logits[0], self.rule["criterion"], self.rule["temperature"])
        exits = bool(sure >= self.rule["threshold"])
        if not exits:
            (logits,) = self.specialist.run(["logits"], {"image": pixels, "coefficients": coefficients})
        probability_K = softmax(logits[0])
        return self.classes[probability_K.argmax()], float(probability_K.max()), exits


if __name__ == "__main__":
    two_stage = TwoStage(sys.argv[1])
    for image in np.load(sys.argv[2]):  # uint8[B, side, side, channels]
        label, probability, early = two_stage.classify(image)
        print(f"{label}  {probability:.4f}  {'preview' if early else 'specialist'}")
