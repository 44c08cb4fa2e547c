"""Several checkpoints that imagine the same market, for a utility that prices their disagreement."""

from collections.abc import Sequence
from pathlib import Path

import torch

from finjepa_model.checkpoint import resolve_checkpoint
from finjepa_model.errors import FinJEPAError
from finjepa_model.planning import Ensemble
from finjepa_model.planning.goals import goal_latent, target_latent
from finjepa_model.planning.utility import parse_goal
from finjepa_pipeline.backtest.market_imagination import Imagined, MarketImagination
from finjepa_pipeline.backtest.market_view import MarketView


class EnsembleImagination:
    """Plans in the mixture of its members; the first one gives the rules of trading."""

    def __init__(self, members: Sequence[MarketImagination]):
        self.members = members
        self.config, self.simulator = members[0].config, members[0].simulator

    def at(self, view: MarketView) -> tuple[Ensemble, torch.Tensor]:
        """The imagined market, and the latent of its goal in all members side by side."""
        ensemble = Ensemble([member.at(view)[0] for member in self.members])
        return ensemble, goal_latent(ensemble, self.simulator, self.config.model.stride)

    def goal(self, name: str, view: MarketView) -> torch.Tensor:
        """See `MarketImagination.goal`; the latents of all members side by side."""
        target = parse_goal(name)
        if target is None:
            return torch.cat([member.goal(name, view) for member in self.members], dim=-1)
        return target_latent(self.at(view)[0], self.simulator, self.config.model.stride, target)


def checkpoint_beside(checkpoint: Path, name: str) -> Path:
    """The folder of another checkpoint: an id beside this one in its home, a folder, or a Hub repository."""
    beside = checkpoint.parent / name
    return beside if beside.is_dir() else resolve_checkpoint(name)


def ensemble_of(imagination: Imagined, others: Sequence[str]) -> EnsembleImagination:
    """A checkpoint and others: ids beside it in its home, folders, or Hub repositories.

    Raises:
        FinJEPAError: if one is not there, or reads other channels or steps than the first.
    """
    if not isinstance(imagination, MarketImagination):
        raise FinJEPAError("a control has no checkpoint, so there is nothing to disagree with")
    members = [imagination]
    for name in others:
        other = MarketImagination(checkpoint_beside(imagination.folder, name))
        mine, its = imagination.config.model, other.config.model
        for part in ("channels", "market_channels", "stride"):
            if getattr(mine, part) != getattr(its, part):
                raise FinJEPAError(f"checkpoint {name} has another model.{part}; an ensemble must see the same market")
        members.append(other)
    return EnsembleImagination(members)
