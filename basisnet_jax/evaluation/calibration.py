"""Whether a network is as often right as it is sure. NumPy, in float64."""

import dataclasses

import numpy as np
from scipy import optimize, special

BINS = 15  # of confidence, as in Guo et al. 2017 (arXiv 1706.04599)
LARGEST_TEMPERATURE = 100.0  # and the smallest is its inverse


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Images by the largest softmax probability, in BINS bins of equal width."""

    count: np.ndarray  # int64[BINS]
    confidence: np.ndarray  # mean largest probability of each bin; 0 where it is empty
    accuracy: np.ndarray  # share of each bin that is right; 0 where it is empty

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean over images of |accuracy - confidence| of their bin."""
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
    """Mean over the images."""
    log_probability_BxK = special.log_softmax(logits_BxK.astype(np.float64), axis=-1)
    return -float(np.mean(np.take_along_axis(log_probability_BxK, labels_B[:, None], axis=-1)))


def fit_temperature(logits_BxK: np.ndarray, labels_B: np.ndarray) -> float:
    """The temperature that the logits, divided by it, have the least cross entropy at (Guo et al. 2017).

    Args:
      logits_BxK: of images that the network was not trained on.
      labels_B: their classes.
    """
    bound = np.log(LARGEST_TEMPERATURE)
    found = optimize.minimize_scalar(
        lambda log_temperature: cross_entropy(logits_BxK / np.exp(log_temperature), labels_B),
        bounds=(-bound, bound),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(found.x))
