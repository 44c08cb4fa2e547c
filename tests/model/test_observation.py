"""What an observation says of risk, beside the truth of markets that were made up."""

import numpy as np
import pytest
import torch

from finjepa_model.data.batches import volatility
from finjepa_pipeline.prices.synthetic import SyntheticConfig, generate

WINDOW = 32


@pytest.mark.parametrize("seed", [60, 61, 62])
def test_recent_returns_tell_more_of_the_next_session_than_old_ones(seed: int):
    """Closer to the true volatility of the next session than the plain deviation of the same window: GARCH in the assets,
    regimes in the market."""
    market = generate(SyntheticConfig(seed=seed))
    listed_A = market.alive_DA.all(0)
    truth_DA = np.sqrt(np.einsum("daa->da", market.covariance()[:, listed_A][:, :, listed_A]))
    share_A = np.full(int(listed_A.sum()), 1 / listed_A.sum())
    proxy_D = np.sqrt(share_A @ market.covariance()[:, listed_A][:, :, listed_A] @ share_A)
    returns_DA = market.returns_DA[:, listed_A]
    for returns_DX, truth_DX in ((returns_DA, truth_DA), (returns_DA @ share_A[:, None], proxy_D[:, None])):
        windows_DXT = np.lib.stride_tricks.sliding_window_view(returns_DX, WINDOW, axis=0)
        known_DX = volatility(torch.from_numpy(windows_DXT.copy())).numpy()
        plain_DX = windows_DXT.std(-1)

        def error(guess_DX: np.ndarray, truth_DX: np.ndarray = truth_DX) -> float:
            return float(np.log(guess_DX / truth_DX[WINDOW - 1 :]).std())

        assert error(known_DX) < error(plain_DX)


def test_a_steady_market_has_the_volatility_that_it_has():
    returns_XT = 0.01 * torch.randn(2000, WINDOW, generator=torch.Generator().manual_seed(0))
    assert volatility(returns_XT).square().mean().sqrt().item() == pytest.approx(0.01, rel=0.02)
