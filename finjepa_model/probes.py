"""Linear probes: what frozen latents know, read by a ridge that is fitted on training rows, chosen on validation rows and
reported on test rows.

Shapes: R rows, P inputs, D sessions or dates.
"""

from dataclasses import dataclass

import numpy as np

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)


@dataclass(frozen=True)
class LinearProbe:
    """y = level + (x - centre) / scale @ weights."""

    centre_P: np.ndarray
    scale_P: np.ndarray
    weights_P: np.ndarray  # or [P, K] for several targets at once
    level: np.ndarray

    @classmethod
    def fit(cls, train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray]) -> "LinearProbe":
        """Ridge on (inputs [R, P], targets [R] or [R, K]); the strength is the one with the least squared error on
        validation."""
        x_RP, y_R = (part.astype(np.float64) for part in train)
        centre_P, scale_P, level = x_RP.mean(0), np.maximum(x_RP.std(0), 1e-8), y_R.mean(0)
        x_RP = (x_RP - centre_P) / scale_P
        gram_PP, cross_P = x_RP.T @ x_RP / len(x_RP), x_RP.T @ (y_R - level) / len(x_RP)
        eye_PP = np.eye(len(gram_PP))
        probes = [
            cls(centre_P, scale_P, np.linalg.solve(gram_PP + strength * eye_PP, cross_P), level)
            for strength in STRENGTHS
        ]
        return min(probes, key=lambda probe: float(np.square(probe(validation[0]) - validation[1]).mean()))

    def __call__(self, x_RP: np.ndarray) -> np.ndarray:
        return self.level + (x_RP.astype(np.float64) - self.centre_P) / self.scale_P @ self.weights_P


def r_squared(predicted_R: np.ndarray, target_R: np.ndarray, reference: np.ndarray | float) -> float:
    """1 - squared error / squared error of always saying `reference`, the mean of the training rows."""
    return 1 - float(np.square(predicted_R - target_R).sum() / np.square(target_R - reference).sum())


def rank_ic(predicted_R: np.ndarray, target_R: np.ndarray, date_R: np.ndarray, least: int = 5) -> float:
    """Mean over dates of the rank correlation across the assets of a date; dates with fewer than `least` are left out."""
    values = []
    for date in np.unique(date_R):
        rows = date_R == date
        if rows.sum() >= least and np.ptp(predicted_R[rows]) > 0:
            values.append(np.corrcoef(_ranks(predicted_R[rows]), _ranks(target_R[rows]))[0, 1])
    return float(np.mean(values)) if values else float("nan")


def area_under_curve(score_D: np.ndarray, positive_D: np.ndarray) -> float:
    """Probability that a positive has a higher score than a negative (ROC AUC)."""
    positive_D = positive_D.astype(bool)
    positives, negatives = int(positive_D.sum()), int((~positive_D).sum())
    if not positives or not negatives:
        return float("nan")
    return float((_ranks(score_D)[positive_D].sum() - positives * (positives - 1) / 2) / (positives * negatives))


def _ranks(x_R: np.ndarray) -> np.ndarray:
    """0-based ranks; equal values share their mean rank."""
    _, inverse_R, counts = np.unique(x_R, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse_R]
