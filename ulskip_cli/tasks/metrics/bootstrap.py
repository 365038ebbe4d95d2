"""Paired bootstrap for metrics that are means over segments."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 1000
SEED = 12345


def compare(own: NDArray[np.float64], full: NDArray[np.float64]) -> dict[str, Any]:
    """Compute the difference of two systems' means over segments, with a 95% interval and a
    two-sided p-value.
    """
    drawn = np.random.default_rng(SEED).integers(len(own), size=(NUM_RESAMPLES, len(own)))
    differences = (own - full)[drawn].mean(axis=1)
    low, high = np.quantile(differences, [0.025, 0.975])
    beyond = min((differences <= 0).sum(), (differences >= 0).sum())
    return {
        "full": float(full.mean()),
        "delta": float((own - full).mean()),
        "delta_low": float(low),
        "delta_high": float(high),
        "p_value": min(
            1.0, 2 * float(beyond + 1) / (NUM_RESAMPLES + 1)
        ),  # the sample itself is one of the resamples
    }


def mean_interval(
    sums: NDArray[np.float64], counts: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Compute the mean over all positions of segments with these sums and numbers of positions,
    with a 95% interval that draws segments.
    """
    drawn = np.random.default_rng(SEED).integers(len(sums), size=(NUM_RESAMPLES, len(sums)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.025, 0.975])
    return float(sums.sum() / counts.sum()), float(low), float(high)
