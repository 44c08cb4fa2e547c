"""Which sessions are for training, which for validation, and which for the test.

A training cuts its panel by the shares of its config and keeps the dates of the cuts in its checkpoint; they hold on whatever
panel the checkpoint is used later. Nothing here needs torch.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError

BLOCKS = ("train", "validation", "test")
EMBARGO = 21  # sessions between two blocks, at least
ELIGIBLE_AFTER = 252  # sessions of an asset, the default of the universe


@dataclass(frozen=True)
class Splits:
    """Half-open ranges of session numbers, in time order, with purged sessions between them."""

    train: tuple[int, int]
    validation: tuple[int, int]
    test: tuple[int, int]

    def dates(self, dates_D: np.ndarray) -> dict[str, list[str]]:
        """The first and the last session of each block, ISO dates: what a lineage keeps as `blocks`."""
        return {name: [str(dates_D[first]), str(dates_D[last - 1])] for name, (first, last) in asdict(self).items()}

    @classmethod
    def on(cls, dates_D: np.ndarray, blocks: Mapping[str, Sequence[str]]) -> "Splits":
        """Blocks by their dates, as sessions of a calendar. The test block lasts until the calendar's end, so that a panel
        that grew lengthens it; of a block that lies outside the calendar nothing is left."""
        ranges = {
            name: (
                int(np.searchsorted(dates_D, np.datetime64(first))),
                int(np.searchsorted(dates_D, np.datetime64(last), side="right")) if name != "test" else len(dates_D),
            )
            for name, (first, last) in blocks.items()
        }
        return cls(ranges["train"], ranges["validation"], ranges["test"])


def checkpoint_blocks(folder: Path) -> dict[str, list[str]]:
    """The dates of a checkpoint's blocks: the first and the last session of each.

    Raises:
        FinJEPAError: if it is not known on which sessions it was trained.
    """
    try:
        blocks = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))["blocks"]
        return {name: [str(np.datetime64(day)) for day in blocks[name]] for name in BLOCKS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FinJEPAError(
            f"it is not known on which sessions the checkpoint {folder.name} was trained: it has no lineage.json with the dates "
            "of its blocks; train it again"
        ) from error


def checkpoint_splits(folder: Path, panel: Panel) -> Splits:
    """A checkpoint's own blocks as sessions of any panel; see `Splits.on`, and `checkpoint_blocks` for the errors."""
    return Splits.on(panel.dates, checkpoint_blocks(folder))


def split_dates(sessions: int, config: FinJEPAConfig) -> Splits:
    """Split a calendar by the shares of the config.

    Between two blocks the sessions that a target of the earlier one could reach are left out: the K + 1 decision steps of
    a training sample, and the session between a decision and its fill (finance.md, section 3.1: purge), and a month at
    least (embargo). An observation may look back across a border.

    Raises:
        FinJEPAError: if the calendar is too short for the model's windows; it names what would make it long enough.
    """
    splits = cut_by_shares(sessions, config)
    short = shortage(splits, config)
    if short:
        raise FinJEPAError(f"{sessions} sessions are too few: {short}; {ways_out(sessions, config)}")
    return splits


def cut_by_shares(sessions: int, config: FinJEPAConfig) -> Splits:
    """The blocks, however short they are."""
    training, gap = config.training, max(_purge(config), EMBARGO)
    train_start = int(sessions * training.train_from)
    train_end = int(sessions * training.train_share)
    validation_end = int(sessions * (training.train_share + training.validation_share))
    return Splits((train_start, train_end), (train_end + gap, validation_end), (validation_end + gap, sessions))


def shortage(splits: Splits, config: FinJEPAConfig) -> str:
    """Which block is too short, in words; nothing where none is."""
    judged = shortest_block(config)
    learned = history_needed(config) + _purge(config) + config.training.batch_size // 8
    blocks = (
        ("training", splits.train, learned),
        ("validation", splits.validation, judged),
        ("test", splits.test, judged),
    )
    for name, (first, last), needed in blocks:
        if last - first < needed:
            return f"the {name} block has {max(last - first, 0)} and must have {needed}"
    return ""


def ways_out(sessions: int, config: FinJEPAConfig) -> str:
    """What makes every block of a calendar long enough, in words: each of them alone is enough, and others are not named."""

    def fits(sessions: int, stride: int) -> bool:
        changed = replace(config, model=replace(config.model, stride=stride))
        splits = cut_by_shares(sessions, changed)
        learns = splits.train[1] - _purge(changed) > max(splits.train[0], ELIGIBLE_AFTER)
        return learns and not shortage(splits, changed)

    stride, most = config.model.stride, 100 * sessions + 100_000
    history = next((longer for longer in range(sessions + 1, most) if fits(longer, stride)), most)
    shorter = next((steps for steps in range(stride - 1, 1, -1) if fits(sessions, steps)), None)
    return f"bring a history of {history} sessions" + (f" or --set model.stride={shorter}" if shorter else "")


def shortest_block(config: FinJEPAConfig) -> int:
    """Sessions that a validation or test block must have."""
    return 2 * _purge(config)


def _purge(config: FinJEPAConfig) -> int:
    """Sessions that the targets of a training sample reach beyond its date: K + 1 decision steps, and the one until the fill."""
    return config.model.stride * (config.loss.rollout_steps + 1) + 1


def history_needed(config: FinJEPAConfig) -> int:
    """Sessions before and including a decision that the context of W steps looks at."""
    return config.model.window + config.model.stride * (config.model.context_steps - 1)


def unseen(symbol: str, share: float) -> bool:
    """Whether training never sees a symbol: a hash decides, so that a symbol stays on its side for good."""
    return int(hashlib.sha256(symbol.encode()).hexdigest()[:8], 16) < share * 2**32


def seen_assets(panel: Panel, config: FinJEPAConfig) -> np.ndarray:
    """bool [A]: the assets that training may see."""
    return np.array([not unseen(symbol, config.training.unseen_symbols) for symbol in panel.assets])


def further_panels(panel: Panel, config: FinJEPAConfig) -> list[Panel]:
    """`training.panels`, from the folder that the panel lies in.

    Raises:
        FinJEPAError: if one is not there.
    """
    found = []
    for name in config.training.panels:
        folder = panel.folder.parent / name
        if not (folder / "manifest.json").is_file():
            there = sorted(file.parent.name for file in panel.folder.parent.glob("[!.]*/manifest.json"))
            raise FinJEPAError(
                f"training.panels: there is no panel {name!r} in {folder.parent}; there are {', '.join(there)}"
            )
        found.append(Panel.open(folder))
    return found


def learned_blocks(panel: Panel, config: FinJEPAConfig) -> list[tuple[Panel, tuple[int, int]]]:
    """What a training learns from: its block of the panel, and the sessions of `training.panels` up to that block's last day, so
    that validation and test lie after everything that was learned from.

    Raises:
        FinJEPAError: if a panel is not there, or has too few sessions by that day.
    """
    block = split_dates(len(panel.dates), config).train
    last, blocks = panel.dates[block[1] - 1], [(panel, block)]
    for other in further_panels(panel, config):
        stop = int(np.searchsorted(other.dates, last, side="right"))
        if stop - _purge(config) <= history_needed(config) + config.model.stride:
            raise FinJEPAError(
                f"training.panels: {other.folder.name} has {stop} sessions up to {last}, the last day of the training block, too "
                "few to learn from; leave it out, or train on a later block"
            )
        blocks.append((other, (0, stop)))
    return blocks
