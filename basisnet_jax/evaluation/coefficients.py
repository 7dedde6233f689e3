"""Sums coefficients over a split: their means by class, and what the classes explain."""

import dataclasses
from typing import Any

import numpy as np
from scipy import special


@dataclasses.dataclass
class CoefficientSums:
    """Sums of coefficients over images: only tables by class are in memory; float64."""

    classes: np.ndarray  # [K, L, N], by the image's class
    guesses: np.ndarray  # [K, L, N], by the class that the preview guesses
    squares: np.ndarray  # [L], squared coefficients
    entropy: np.ndarray  # [L], entropy of the coefficients over log N
    wins: np.ndarray  # [L, N], images for which the basis has the largest coefficient
    images: np.ndarray  # [K], images by class
    guessed: np.ndarray  # [K], images by the class that the preview guesses

    @classmethod
    def zero(cls, num_classes: int, vectors: int, bases: int) -> "CoefficientSums":
        """Returns empty sums."""
        by_class, by_vector = (num_classes, vectors, bases), (vectors,)
        shapes = (by_class, by_class, by_vector, by_vector, (vectors, bases), (num_classes,), (num_classes,))
        return cls(*map(np.zeros, shapes))

    def add(self, coefficients_BxLxN: np.ndarray, labels_B: np.ndarray, guesses_B: np.ndarray) -> None:
        """Adds one batch."""
        coefficients_BxLxN = coefficients_BxLxN.astype(np.float64)
        bases = coefficients_BxLxN.shape[-1]
        np.add.at(self.classes, labels_B, coefficients_BxLxN)
        np.add.at(self.images, labels_B, 1)
        np.add.at(self.guesses, guesses_B, coefficients_BxLxN)
        np.add.at(self.guessed, guesses_B, 1)
        self.squares += np.square(coefficients_BxLxN).sum(axis=(0, -1))
        self.entropy += special.entr(coefficients_BxLxN).sum(axis=(0, -1)) / np.log(max(bases, 2))
        self.wins += (coefficients_BxLxN.argmax(axis=-1)[..., None] == np.arange(bases)).sum(axis=0)

    def means(self) -> dict[str, np.ndarray]:
        """Returns means: 'by_class' [K, L, N] (0 for a class without images), 'entropy' [L], 'wins' [L, N]."""
        count = self.images.sum()
        by_class = self.classes / np.maximum(self.images, 1)[:, None, None]
        return {"by_class": by_class, "entropy": self.entropy / count, "wins": self.wins / count}

    def class_share(self) -> dict[str, Any]:
        """Returns the share of the coefficients' variance that lies between the classes that the preview guesses.

        With c[b] the coefficients of image b, m their mean, k(b) the class that the preview guesses, and m[k] the mean
        over the n[k] images of class k, the share is sum_k n[k] |m[k] - m|^2 / sum_b |c[b] - m|^2. Coefficients that
        are unrelated to the K classes get (K - 1) / (B - 1).

        Returns:
          'all' vectors' share together, and each of 'vectors'; 0 where all images have the same coefficients.
        """
        count = self.guessed.sum()
        of_mean_L = np.square(self.guesses.sum(axis=0)).sum(axis=-1) / count
        of_means_L = (np.square(self.guesses).sum(axis=-1) / np.maximum(self.guessed, 1)[:, None]).sum(axis=0)
        between_L, total_L = of_means_L - of_mean_L, self.squares - of_mean_L
        # Rounding to float32 alone makes a variance of less than a billionth.
        least = 1e-9 * count
        vectors_L = np.where(total_L > least, between_L / np.maximum(total_L, least), 0.0)
        everything = between_L.sum() / total_L.sum() if total_L.sum() > least else 0.0
        return {"all": float(everything), "vectors": vectors_L.tolist()}
