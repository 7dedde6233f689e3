"""Calibration: whether a network is right as often as it is confident. NumPy, in float64."""

import dataclasses

import numpy as np
from scipy import optimize, special

BINS = 15  # of confidence, as in Guo et al. 2017 (arXiv 1706.04599)
LARGEST_TEMPERATURE = 100.0  # the smallest is its inverse


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Images binned by the largest softmax probability, in BINS bins of equal width."""

    count: np.ndarray  # int64[BINS]: images in each bin
    confidence: np.ndarray  # mean largest probability in each bin; 0 if empty
    accuracy: np.ndarray  # top-1 in each bin; 0 if empty

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean over images of |accuracy - confidence| of the image's bin."""
        return float(self.count @ np.abs(self.accuracy - self.confidence) / self.count.sum())


def reliability(logits_BxK: np.ndarray, correct_B: np.ndarray) -> Reliability:
    """Bins images by confidence; `correct_B` is 1.0 where the largest logit is the label's."""
    confidence_B = special.softmax(logits_BxK.astype(np.float64), axis=-1).max(axis=-1)
    bin_B = np.minimum((confidence_B * BINS).astype(int), BINS - 1)
    count = np.bincount(bin_B, minlength=BINS)

    def mean(value_B: np.ndarray) -> np.ndarray:
        return np.bincount(bin_B, weights=value_B, minlength=BINS) / np.maximum(count, 1)

    return Reliability(count, mean(confidence_B), mean(correct_B))


def cross_entropy(logits_BxK: np.ndarray, labels_B: np.ndarray) -> float:
    """Returns the cross entropy, averaged over the images."""
    log_probability_BxK = special.log_softmax(logits_BxK.astype(np.float64), axis=-1)
    return -float(np.mean(np.take_along_axis(log_probability_BxK, labels_B[:, None], axis=-1)))


def fit_temperature(logits_BxK: np.ndarray, labels_B: np.ndarray) -> float:
    """Fits the temperature: logits / temperature have the least cross entropy (Guo et al. 2017).

    Args:
      logits_BxK: logits of images that the network was not trained on.
      labels_B: the images' classes.
    """
    bound = np.log(LARGEST_TEMPERATURE)
    optimum = optimize.minimize_scalar(
        lambda log_temperature: cross_entropy(logits_BxK / np.exp(log_temperature), labels_B),
        bounds=(-bound, bound),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(optimum.x))
