"""Which sessions are for learning, which for choosing, and which for judging."""

import hashlib
from dataclasses import dataclass

from finjepa_model.config import FinJEPAConfig
from finjepa_model.errors import FinJEPAError

EMBARGO = 21  # sessions between two blocks, at least


@dataclass(frozen=True)
class Splits:
    """Half-open ranges of session numbers, in time order, with purged sessions between them."""

    train: tuple[int, int]
    validation: tuple[int, int]
    test: tuple[int, int]


def split_dates(sessions: int, config: FinJEPAConfig) -> Splits:
    """Split a calendar by the shares of the config.

    Between two blocks the sessions that a target of the earlier one could reach are left out: the K + 1 decision steps of
    a training sample, and the session between a decision and its fill (finance.md, section 3.1: purge), and a month at
    least (embargo). An observation may look back across a border.

    Raises:
        FinJEPAError: if the calendar is too short for the model's windows.
    """
    model, training = config.model, config.training
    purge = model.stride * (config.loss.rollout_steps + 1) + 1
    gap = max(purge, EMBARGO)
    train_start = int(sessions * training.train_from)
    train_end = int(sessions * training.train_share)
    validation_end = int(sessions * (training.train_share + training.validation_share))
    splits = Splits((train_start, train_end), (train_end + gap, validation_end), (validation_end + gap, sessions))
    needed = {
        "training": history_needed(config) + purge + training.batch_size // 8,
        "validation": 2 * purge,
        "test": 2 * purge,
    }
    for (name, least), (first, last) in zip(
        needed.items(), (splits.train, splits.validation, splits.test), strict=True
    ):
        if last - first < least:
            raise FinJEPAError(
                f"{sessions} sessions are too few: the {name} block has {max(last - first, 0)} and must have {least}; bring a "
                "longer history, or make model.window, model.context_steps, loss.rollout_steps or model.stride smaller"
            )
    return splits


def history_needed(config: FinJEPAConfig) -> int:
    """Sessions before and including a decision that the context of W steps looks at."""
    return config.model.window + config.model.stride * (config.model.context_steps - 1)


def unseen(symbol: str, share: float) -> bool:
    """Whether training never sees a symbol: a hash decides, so that a symbol stays on its side for good."""
    return int(hashlib.sha256(symbol.encode()).hexdigest()[:8], 16) < share * 2**32
