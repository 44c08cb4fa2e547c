"""Control charts of a live record: they raise an alarm when forecasts drift, and hardly ever otherwise.

Each is a CUSUM of log likelihood ratios (Page 1954), C_t = max(0, C_{t-1} + l_t), with an alarm where C_t reaches ln(2520):
without a drift the mean time to a false alarm is then ten years of sessions at least (Lorden 1971). Forecasts of one session
count, whose outcomes do not overlap.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from finjepa_model.live_record.chain import LiveRecord
from finjepa_model.live_record.scores import inside_interval

ALARM = math.log(2520.0)
OUTSIDE = 0.1  # of outcomes, when the 90 % intervals are right
NARROW, WIDE = 0.2, 0.05  # when they are wrong
WORSE = 0.25  # mean loss against a baseline, in standard deviations of the difference of a session
BASELINE = "20-day history"
LEAST_SESSIONS = 20  # before anything is said


@dataclass(frozen=True)
class Chart:
    """One control chart.

    Attributes:
        drift: what an alarm says.
        sessions_D, level_D: the CUSUM after each session, reset to 0 after an alarm.
        alarms: the sessions of alarms, and `active`: whether the newest one is among the last 63 sessions.
    """

    drift: str
    sessions_D: np.ndarray
    level_D: np.ndarray
    alarms: tuple[np.datetime64, ...]

    @property
    def active(self) -> bool:
        return bool(self.alarms) and self.alarms[-1] in self.sessions_D[-63:]


def control_charts(scores: pl.DataFrame) -> list[Chart]:
    """Of the model's forecasts of the traded assets: intervals too narrow, too wide, and log scores below those of the 20-day
    history. Empty for fewer than 20 sessions.

    The outcomes of a session move together, so that together they count as one: the binomial log likelihood ratio is divided by
    their number. The bound on false alarms then holds whatever their dependence (Jensen's inequality).

    Args:
        scores: see `finjepa_model.live_record.scores.SCORES`.
    """
    ours = inside_interval(scores, "asset", 1)
    if ours.height < LEAST_SESSIONS:
        return []
    sessions_D, outside_D = ours["session"].to_numpy(), 1 - (ours["inside"] / ours["n"]).to_numpy()
    found = []
    for drift, share in (("intervals are too narrow", NARROW), ("intervals are too wide", WIDE)):
        hit, miss = math.log(share / OUTSIDE), math.log((1 - share) / (1 - OUTSIDE))
        found.append(_chart(drift, sessions_D, outside_D * hit + (1 - outside_D) * miss))
    both = ours.join(inside_interval(scores, "asset", 1, BASELINE), on="session", suffix="_other").sort("session")
    loss_D = (both["log_score_other"] - both["log_score"]).to_numpy()
    ratio_D = WORSE * loss_D / _earlier_spread(loss_D) - WORSE**2 / 2
    found.append(_chart(f"log scores are below those of the {BASELINE}", both["session"].to_numpy(), ratio_D))
    return found


def _chart(drift: str, sessions_D: np.ndarray, ratio_D: np.ndarray) -> Chart:
    level, level_D, alarms = 0.0, np.zeros(len(ratio_D)), []
    for d, ratio in enumerate(ratio_D):
        level = level_D[d] = max(0.0, level + ratio)
        if level >= ALARM:
            alarms.append(sessions_D[d])
            level = 0.0
    return Chart(drift, sessions_D, level_D, tuple(alarms))


def _earlier_spread(loss_D: np.ndarray) -> np.ndarray:
    """Root mean square of the differences up to and including each session, of the first ones together."""
    square_D = np.cumsum(np.square(loss_D)) / np.arange(1, len(loss_D) + 1)
    square_D[:LEAST_SESSIONS] = square_D[min(LEAST_SESSIONS, len(loss_D)) - 1]
    return np.sqrt(np.maximum(square_D, 1e-12))


def drift_of(scores: pl.DataFrame) -> tuple[bool | None, str]:
    """Whether forecasts have drifted within the last 63 sessions, and in words; None while there are too few sessions."""
    charts, sessions = control_charts(scores), inside_interval(scores, "asset", 1).height
    if not charts:
        return None, f"{sessions} scored sessions are too few for a control chart ({LEAST_SESSIONS} are needed)"
    active = [chart for chart in charts if chart.active]
    if active:
        return True, "; ".join(f"{chart.drift} (alarm of {chart.alarms[-1]})" for chart in active)
    return False, f"no alarm in {sessions} scored sessions"


def checkpoint_drift(records: Path, checkpoint: str) -> tuple[bool | None, str]:
    """Whether the live forecasts of a checkpoint have drifted, as `drift_of` says it of the nights that it forecast.

    Args:
        records: the folder `live_record` of a home, which has a record for each feed of prices.
    """
    found = []
    for file in sorted(records.glob("*/scores.parquet")):
        nights = LiveRecord(file.parent).nights.filter(pl.col("checkpoint") == checkpoint)
        found.append(drift_of(pl.read_parquet(file).join(nights.select("session"), on="session", how="semi")))
    known = [one for one in found if one[0] is not None]
    return max(known or found, key=lambda one: bool(one[0]), default=(None, "it has no live record"))
