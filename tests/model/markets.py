"""Random observations, batches and portfolios for the tests of the world model."""

from dataclasses import replace

import torch

from finjepa_model import FinJEPA
from finjepa_model.actions import PortfolioAction
from finjepa_model.config import FinJEPAConfig, LossConfig, ModelConfig, preset
from finjepa_model.data.batches import PAST, MarketBatch, Observation, Windows
from finjepa_model.training.behaviour import sample_path
from finjepa_model.world_model import PortfolioPath


def small_config(**loss) -> FinJEPAConfig:
    tiny = preset("tiny")
    model = ModelConfig(
        channels=("channel_0", "channel_1", "channel_2"), window=16, patch=4, stride=2, dim=16, heads=2, time_layers=1,
        predictor_layers=2, market_channels=("d", "e"),
    )  # fmt: skip
    return replace(tiny, model=model, loss=LossConfig(**({"sigreg_slices": 32} | loss)))


def model_of(config: FinJEPAConfig | None = None) -> FinJEPA:
    """A model with the weights of seed 0, in evaluation mode."""
    torch.manual_seed(0)
    return FinJEPA(config or small_config()).eval()


def in_double(observation: Observation) -> Observation:
    tensors = {name: value for name, value in vars(observation).items() if value is not None}
    floats = {name: value.double() for name, value in tensors.items() if value.is_floating_point()}
    return replace(observation, **floats)


def random_observation(
    config: FinJEPAConfig, dates: int = 8, steps: int = 5, assets: int = 4, seed: int = 0
) -> Observation:
    """Each asset has eight factors that stay what they are from step to step, and noise on top."""
    shape = (dates, steps, assets, config.model.window)
    width = config.model.window * len(config.model.channels)
    mixing = torch.randn(8, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(dates, 1, assets, 8, generator=generator) @ mixing / 8**0.5
    noise = 0.5 * torch.randn(dates, steps, assets, width, generator=generator)
    past = torch.Generator().manual_seed(seed)
    market_past_BR = 0.01 * torch.randn(dates, PAST, generator=past)
    return Observation(
        features_BSNTF=(factors + noise).view(*shape, -1),
        observed_BSNT=torch.ones(shape, dtype=torch.bool),
        market_BSTQ=torch.randn(*shape[:2], shape[-1], len(config.model.market_channels), generator=generator),
        present_BN=torch.ones(dates, assets, dtype=torch.bool),
        volatility_BSN=torch.full(shape[:-1], 0.01),
        market_volatility_BS=torch.full(shape[:2], 0.01),
        beta_BSN=torch.ones(shape[:-1]),
        past_BNR=market_past_BR.unsqueeze(1) + 0.002 * torch.randn(dates, assets, PAST, generator=past),
        market_past_BR=market_past_BR,
    )


def random_batch(
    config: FinJEPAConfig, dates: int = 8, assets: int = 4, seed: int = 0
) -> tuple[MarketBatch, PortfolioPath]:
    steps = config.model.context_steps + config.loss.rollout_steps
    held = (dates, config.loss.rollout_steps + 1, config.model.stride)
    generator = torch.Generator().manual_seed(seed)
    seen = random_observation(config, dates, steps, assets, seed)
    batch = MarketBatch(
        observation=seen,
        ahead=Windows(seen.features_BSNTF[:, 1:], seen.observed_BSNT[:, 1:], seen.market_BSTQ[:, 1:], seen.present_BN),
        returns_BKTN=0.01 * torch.randn(*held, assets, generator=generator),
        market_returns_BKT=0.01 * torch.randn(held, generator=generator),
        tradable_BKTN=torch.ones(*held, assets, dtype=torch.bool),
    )
    torch.manual_seed(seed)
    return batch, sample_path(batch, config.portfolio)


def random_actions(shape: tuple[int, ...], seed: int = 0) -> PortfolioAction:
    """`shape` is (*X, N)."""
    generator = torch.Generator().manual_seed(seed)
    return PortfolioAction(
        torch.randn(shape, generator=generator).softmax(-1),
        torch.randint(0, 2, shape, generator=generator).float(),
        torch.randint(0, 2, shape[:-1], generator=generator).float(),
    )
