"""Information coefficients against scipy and the Newey-West error against a plain double sum."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from finjepa_pipeline.backtest.information import information, newey_west_error


def test_ic_and_rank_ic_agree_with_scipy():
    rng = np.random.default_rng(0)
    forecast_KN, outcome_KN = rng.standard_normal((2, 40, 8))
    outcome_KN[3, 2] = np.nan  # an asset without an outcome is left out of its decision only
    known = [np.isfinite(o) for o in outcome_KN]
    by_hand = [np.corrcoef(f[k], o[k])[0, 1] for f, o, k in zip(forecast_KN, outcome_KN, known, strict=True)]
    ranked = [spearmanr(f[k], o[k]).statistic for f, o, k in zip(forecast_KN, outcome_KN, known, strict=True)]
    assert information(forecast_KN, outcome_KN, ranks=False).mean == pytest.approx(np.mean(by_hand), rel=1e-12)
    result = information(forecast_KN, outcome_KN, ranks=True)
    assert result.mean == pytest.approx(np.mean(ranked), rel=1e-12)
    assert result.ratio == pytest.approx(np.mean(ranked) / np.std(ranked, ddof=1), rel=1e-12)
    assert result.t == pytest.approx(np.mean(ranked) / (np.std(ranked) / 40**0.5), rel=1e-12)


def test_overlap_widens_the_error():
    """Averages of four neighbours: the error of the mean is that of independent ones, and not four times too small."""
    rng = np.random.default_rng(1)
    overlapping_K = np.convolve(rng.standard_normal(4000), np.ones(4) / 4, "valid")
    assert newey_west_error(overlapping_K, 12) == pytest.approx(4000**-0.5, rel=0.15)
    assert newey_west_error(overlapping_K, 0) < 0.6 * newey_west_error(overlapping_K, 12)


def test_newey_west_agrees_with_the_double_sum():
    series_K, lags = np.random.default_rng(2).standard_normal(30), 5
    centred_K = series_K - series_K.mean()
    total = sum(
        (1 - abs(i - j) / (lags + 1)) * centred_K[i] * centred_K[j]
        for i in range(30)
        for j in range(30)
        if abs(i - j) <= lags
    )
    assert newey_west_error(series_K, lags) == pytest.approx(np.sqrt(total) / 30, rel=1e-12)


def test_a_planted_forecast_is_seen_and_noise_is_not():
    rng = np.random.default_rng(3)
    signal_KN, noise_KN = rng.standard_normal((2, 400, 20))
    planted = information(signal_KN, 0.1 * signal_KN + noise_KN, ranks=True)
    assert planted.low > 0.05
    assert information(signal_KN, noise_KN, ranks=True).low < 0
