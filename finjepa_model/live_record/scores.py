"""Scores of a live record: what came of each night's forecasts, by the losses of the risk scorecard.

A forecast is scored when the sessions that it speaks of are known, from returns as they were recorded a session later. Nights in
hindsight are never scored.

Shapes: R rows (of one night and forecast), Q = 7 quantile levels, D sessions, A assets, P portfolios, H sessions of a horizon.
"""

import datetime
import itertools
import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from finjepa_model.live_record.chain import HORIZONS, LEVELS, MODEL, QUANTILES, LiveRecord, write_parquet
from finjepa_model.nn.risk import LEAST_VOLATILITY
from finjepa_model.training.risk_scores import (
    compare,
    log_score,
    newey_west_error,
    newey_west_t,
    qlike,
    quantile_score,
)

LEAST_VARIANCE = LEAST_VOLATILITY**2  # a day, of what was realised
MARKET_PORTFOLIOS = ("1/N", "minimum variance")  # beside the random ones
KINDS = ("asset", "portfolio", "1/N", "book", "market")
BINS = [f"bin_{k}" for k in range(len(LEVELS) + 1)]  # counts of outcomes between the quantiles
INTERVALS = {0.5: (3, 5), 0.9: (2, 6), 0.98: (1, 7)}  # of BINS, half-open
# A row for each night, horizon, forecast and kind: `asset`, `market` (assets outside the universe), `portfolio` (1/N, minimum
# variance and the random ones), `1/N` and `book`. n: outcomes; missing: forecasts without one; crps, qlike, log_score: means;
# realised, variance: means of realised and of forecast variance a day; worst: the largest outcome for its volatility.
SCORES: dict[str, Any] = {
    "session": pl.Date,
    "horizon": pl.Int64,
    "forecast": pl.String,
    "kind": pl.String,
    "n": pl.Int64,
    "missing": pl.Int64,
    **dict.fromkeys(BINS, pl.Int64),
    **dict.fromkeys(("crps", "qlike", "log_score", "realised", "variance"), pl.Float64),
    "worst": pl.String,
    **dict.fromkeys(("worst_return", "worst_low", "worst_high"), pl.Float64),
    "until": pl.String,  # hash of the newest night that the scores know
}


@dataclass(frozen=True)
class Outcomes:
    """Recorded returns: sessions × assets, NaN where nothing was recorded; `ended_A` is the place of the session in which an
    asset's life had ended, D where it has not."""

    days_D: np.ndarray
    place: dict[str, int]
    returns_DA: np.ndarray
    ended_A: np.ndarray

    @classmethod
    def of(cls, record: LiveRecord, since: datetime.date | None = None) -> "Outcomes":
        rows = record.outcomes(since)
        days_D = rows.filter(pl.col("kind") == "return")["session"].unique().sort().to_numpy()
        rows = rows.filter(pl.col("kind") != "restated")
        assets = rows["asset"].unique().sort()
        asset_R = rows["asset"].cast(pl.Enum(assets)).to_physical().to_numpy()
        day_R = np.searchsorted(days_D, rows["session"].to_numpy())
        inside_R = day_R < len(days_D)
        returns_DA = np.full((len(days_D), len(assets)), np.nan)
        returns_DA[day_R[inside_R], asset_R[inside_R]] = rows["value"].to_numpy()[inside_R]
        ended_A = np.full(len(assets), len(days_D))
        ended_R = (rows["kind"] == "ended").to_numpy() & inside_R
        ended_A[asset_R[ended_R]] = day_R[ended_R]
        return cls(days_D, {name: a for a, name in enumerate(assets)}, returns_DA, ended_A)

    def window(self, session: datetime.date, horizon: int, names: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns_HR of the sessions after a close, NaN where there was none, and which assets' outcomes are known; None while
        the last of the sessions is not."""
        first = int(np.searchsorted(self.days_D, np.datetime64(session), side="right"))
        if first + horizon > len(self.days_D):
            return None
        place_R = np.array([self.place.get(name, -1) for name in names], np.int64)
        returns_HR = np.where(place_R >= 0, self.returns_DA[first : first + horizon, place_R], np.nan)
        ended_R = (place_R >= 0) & (self.ended_A[place_R] >= first) & (self.ended_A[place_R] < first + horizon)
        enough_R = np.isfinite(returns_HR).sum(0) >= 2 * horizon / 3
        return returns_HR, ended_R | (enough_R & np.isfinite(returns_HR[-1]))


def score_record(record: LiveRecord) -> pl.DataFrame:
    """All scores of a record, from the first night on."""
    return _scores(record, record.sessions)


def read_scores(record: LiveRecord) -> pl.DataFrame:
    """The scores as they were written last: see SCORES. None where they are missing, damaged or of another version: they follow
    from the nights, and the next night makes them again."""
    try:
        found = pl.read_parquet(record.folder / "scores.parquet")
    except (OSError, pl.exceptions.PolarsError):
        return pl.DataFrame(schema=SCORES)
    return found if found.columns == list(SCORES) else pl.DataFrame(schema=SCORES)


def update_scores(record: LiveRecord) -> pl.DataFrame:
    """The scores with what has become known since they were written; the file is written again."""
    known, sessions, hashes = read_scores(record), record.sessions, record.nights["hash"].to_list()
    until = known["until"][0] if known.height else ""
    if until == record.last_hash:
        return known
    if until not in hashes[-2:]:
        found = score_record(record)
    else:
        touched = set(record.table("outcomes", sessions[-1]).filter(pl.col("kind") != "restated")["session"])
        begin = bisect_left(sessions, min(touched)) if touched else len(sessions)
        again = sessions[max(begin - HORIZONS[-1], 0) :] if touched else []
        kept = known.filter(~pl.col("session").is_in(again)).with_columns(until=pl.lit(record.last_hash))
        found = pl.concat([kept, _scores(record, again)]).sort("session", maintain_order=True)
    write_parquet(found, record.folder / "scores.parquet")
    return found


def _scores(record: LiveRecord, sessions: list[datetime.date]) -> pl.DataFrame:
    counted = set(record.nights.filter(~pl.col("hindsight"))["session"])
    sessions = [session for session in sessions if session in counted]
    outcomes = Outcomes.of(record, sessions[0]) if sessions else None
    rows = [row for session in sessions for row in _score_night(record, session, outcomes)] if outcomes else []
    return pl.DataFrame([row | {"until": record.last_hash} for row in rows], schema=SCORES)


def _score_night(record: LiveRecord, session: datetime.date, outcomes: Outcomes) -> Iterator[dict[str, Any]]:
    if outcomes.window(session, HORIZONS[0], []) is None:
        return
    forecasts, portfolios = record.table("forecasts", session), record.table("portfolios", session)
    weights_PA, names, held = _weights(portfolios)
    for (forecast,), rows in forecasts.group_by("forecast", maintain_order=True):
        unit = rows.filter(pl.col("kind") == "unit")
        for kind, of_kind in _kinds(rows.filter(pl.col("volatility_1") > 0)):  # of cash there is nothing to score
            subjects = of_kind["name"].to_list()
            for horizon in HORIZONS:
                window = outcomes.window(session, horizon, held if kind in ("portfolio", "1/N", "book") else subjects)
                if window is None:
                    break
                returns_HR, known_R = window
                outcome_R = np.prod(1 + np.nan_to_num(returns_HR), axis=0) - 1
                if held and kind in ("portfolio", "1/N", "book"):
                    chosen_PA = weights_PA[[names.index(name) for name in subjects]]
                    returns_HR, outcome_R = np.nan_to_num(returns_HR) @ chosen_PA.T, chosen_PA @ outcome_R
                    known_R = ((chosen_PA == 0) | known_R).all(1)
                volatility_R = of_kind[f"volatility_{horizon}"].to_numpy().astype(np.float64)
                quantile_RQ = of_kind.select(QUANTILES[horizon]).to_numpy().astype(np.float64)
                if kind == "market":
                    unit_Q = unit.select(QUANTILES[horizon]).to_numpy()[0].astype(np.float64)
                    quantile_RQ = volatility_R[:, None] * unit_Q
                yield {"session": session, "horizon": horizon, "forecast": forecast, "kind": kind} | _row(
                    subjects, outcome_R, np.nanmean(np.square(_one_at_least(returns_HR)), axis=0), known_R, volatility_R,
                    quantile_RQ, horizon,
                )  # fmt: skip


def _kinds(rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """The rows of each kind of SCORES."""
    for kind in ("asset", "market"):
        yield kind, rows.filter(pl.col("kind") == kind)
    portfolios = rows.filter(pl.col("kind") == "portfolio")
    yield (
        "portfolio",
        portfolios.filter(pl.col("name").is_in(MARKET_PORTFOLIOS) | pl.col("name").str.starts_with("random")),
    )
    for name in ("1/N", "book"):
        yield name, portfolios.filter(pl.col("name") == name)


def _weights(portfolios: pl.DataFrame) -> tuple[np.ndarray, list[str], list[str]]:
    """weights_PA, the portfolios and the assets that they hold."""
    names, held = portfolios["portfolio"].unique(maintain_order=True), portfolios["asset"].unique().sort()
    weights_PA = np.zeros((len(names), len(held)))
    place = {name: p for p, name in enumerate(names)}, {name: a for a, name in enumerate(held)}
    for portfolio, asset, weight in portfolios.iter_rows():
        weights_PA[place[0][portfolio], place[1][asset]] = weight
    return weights_PA, names.to_list(), held.to_list()


def _one_at_least(returns_HR: np.ndarray) -> np.ndarray:
    """So that the mean over what is known is defined where nothing is; such rows are not counted."""
    return np.where(np.isfinite(returns_HR).any(0), returns_HR, 0.0)


def _row(
    subjects: list[str],
    outcome_R: np.ndarray,
    realised_R: np.ndarray,
    known_R: np.ndarray,
    volatility_R: np.ndarray,
    quantile_RQ: np.ndarray,
    horizon: int,
) -> dict[str, Any]:
    found: dict[str, Any] = {"n": int(known_R.sum()), "missing": int((~known_R).sum())}
    if not known_R.any():
        return found | dict.fromkeys(BINS, 0)
    outcome_R, volatility_R, quantile_RQ = outcome_R[known_R], volatility_R[known_R], quantile_RQ[known_R]
    realised_R, variance_R = np.maximum(realised_R[known_R], LEAST_VARIANCE), np.square(volatility_R)
    bin_R = (quantile_RQ < outcome_R[:, None]).sum(-1)
    worst = int(np.argmax(np.abs(outcome_R) / volatility_R))
    return found | {
        **dict(zip(BINS, np.bincount(bin_R, minlength=len(BINS)).tolist(), strict=True)),
        "crps": float(quantile_score(outcome_R, quantile_RQ, np.array(LEVELS)).mean()),
        "qlike": float(qlike(realised_R, variance_R).mean()),
        "log_score": float(log_score(outcome_R, horizon * variance_R).mean()),
        "realised": float(realised_R.mean()),
        "variance": float(variance_R.mean()),
        "worst": np.array(subjects)[known_R][worst].item(),
        "worst_return": float(outcome_R[worst]),
        "worst_low": float(quantile_RQ[worst, LEVELS.index(0.05)]),
        "worst_high": float(quantile_RQ[worst, LEVELS.index(0.95)]),
    }


# -- summaries ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreLine:
    """One forecast of one kind over one horizon, over all nights that are scored.

    Attributes:
        coverage: share of outcomes within the 50, 90 and 98 % interval; `low`, `high`: 95 % interval of that of the 90 % one, by
            dates (Newey and West) and not narrower than that of independent outcomes.
        crps, qlike: means by date. crps_t, qlike_t: t-value of the model's advantage over this forecast (Diebold and Mariano).
            These and the interval are NaN for fewer dates than eight horizons.
        ratio: realised over forecast volatility.
    """

    kind: str
    horizon: int
    forecast: str
    outcomes: int
    missing: int
    dates: int
    coverage: dict[float, float]
    low: float
    high: float
    crps: float
    crps_t: float
    qlike: float
    qlike_t: float
    ratio: float
    bins: list[float]  # share of outcomes in each bin


def score_lines(scores: pl.DataFrame) -> list[ScoreLine]:
    """In order of kind, horizon and forecast, the model first."""
    found, scored = [], scores.filter(pl.col("n") > 0)
    in_order = scored.sort(pl.col("kind").replace_strict(KINDS, range(len(KINDS))), "horizon", maintain_order=True)
    for (kind, horizon), rows in in_order.group_by("kind", "horizon", maintain_order=True):
        ours = rows.filter(pl.col("forecast") == MODEL)
        for (forecast,), of_one in rows.group_by("forecast", maintain_order=True):
            both = ours.join(of_one, on="session", suffix="_other").sort("session")

            enough = both.height >= 8 * int(horizon)

            def advantage(loss: str, known=enough and forecast != MODEL, both=both, lag=int(horizon)) -> float:
                ours_D, theirs_D = both[loss].to_numpy(), both[f"{loss}_other"].to_numpy()
                return -compare(ours_D, theirs_D, lag).t_value if known else math.nan

            inside_D = _inside(of_one, 0.9) / of_one["n"].to_numpy()
            total, share = int(of_one["n"].sum()), float(_inside(of_one, 0.9).sum() / of_one["n"].sum())
            error = max(newey_west_error(inside_D, int(horizon)), math.sqrt(0.9 * 0.1 / total)) if enough else math.nan
            found.append(
                ScoreLine(
                    kind=str(kind),
                    horizon=int(horizon),
                    forecast=str(forecast),
                    outcomes=total,
                    missing=int(of_one["missing"].sum()),
                    dates=of_one.height,
                    coverage={level: float(_inside(of_one, level).sum() / total) for level in INTERVALS},
                    low=float(np.maximum(share - 1.96 * error, 0.0)),
                    high=float(np.minimum(share + 1.96 * error, 1.0)),
                    crps=float(of_one.select(pl.col("crps").mean()).item()),
                    crps_t=advantage("crps"),
                    qlike=float(of_one.select(pl.col("qlike").mean()).item()),
                    qlike_t=advantage("qlike"),
                    ratio=math.sqrt(of_one.select(pl.col("realised").sum() / pl.col("variance").sum()).item()),
                    bins=[float(of_one[name].sum() / total) for name in BINS],
                )
            )
    return found


def _inside(scores: pl.DataFrame, level: float) -> np.ndarray:
    first, stop = INTERVALS[level]
    return scores.select(BINS[first:stop]).sum_horizontal().to_numpy()


def inside_interval(scores: pl.DataFrame, kind: str, horizon: int, forecast: str = MODEL) -> pl.DataFrame:
    """session, n, inside (the 90 % interval) and log_score of a forecast, by session."""
    rows = scores.filter(
        pl.col("n") > 0, pl.col("kind") == kind, pl.col("horizon") == horizon, pl.col("forecast") == forecast
    ).sort("session")
    return rows.select("session", "n", "log_score").with_columns(inside=pl.Series(_inside(rows, 0.9), dtype=pl.Int64))


@dataclass(frozen=True)
class BookReturns:
    """The book beside 1/N of its universe, from one counted night to the next, as simple returns of wealth. The book pays its
    costs, 1/N pays none. `matched`: 1/N in the share, the rest in cash, that has the forecast volatility of the book."""

    sessions: list[datetime.date]
    book: np.ndarray
    equal: np.ndarray
    matched: np.ndarray

    def against(self, other: np.ndarray) -> tuple[float, float, float, float]:
        """The book's return less the other one: % a year, its 95 % interval, t-value (Newey and West, 5 lags)."""
        apart = 252 * 100 * (self.book - other)
        error = newey_west_error(apart, 5)
        mean = float(apart.mean()) if len(apart) else math.nan
        return mean, mean - 1.96 * error, mean + 1.96 * error, newey_west_t(apart, 5)


def book_returns(record: LiveRecord, outcomes: Outcomes) -> BookReturns:
    found: list[tuple[datetime.date, float, float, float]] = []
    rows = list(record.nights.iter_rows(named=True))
    for row, following in itertools.pairwise(rows):
        if row["hindsight"] or row["wealth"] is None or following["wealth"] is None:
            continue
        first, stop = (
            int(np.searchsorted(outcomes.days_D, np.datetime64(one["session"]), side="right"))
            for one in (row, following)
        )
        if stop == first or outcomes.days_D[stop - 1] != np.datetime64(following["session"]):
            continue
        weights = record.table("portfolios", row["session"]).filter(pl.col("portfolio") == "1/N")
        window = outcomes.window(row["session"], stop - first, weights["asset"].to_list())
        assert window is not None  # its last session is among the outcomes
        growth_A = np.prod(1 + np.nan_to_num(window[0]), axis=0) - 1
        equal = float(weights["weight"].to_numpy() @ growth_A)
        forecasts = record.table("forecasts", row["session"]).filter(
            pl.col("forecast") == MODEL, pl.col("kind") == "portfolio", pl.col("name").is_in(["1/N", "book"])
        )
        volatility = dict(forecasts.select("name", "volatility_1").iter_rows())
        share = volatility["book"] / volatility["1/N"]
        found.append((following["session"], following["wealth"] / row["wealth"] - 1, equal, share * equal))
    sessions, *columns = zip(*found, strict=True) if found else ([], [], [], [])
    return BookReturns(list(sessions), *(np.array(column, float) for column in columns))


def gaps(record: LiveRecord, outcomes: Outcomes) -> list[datetime.date]:
    """Sessions between the first night and the last of which there is no night."""
    nights = set(record.sessions)
    days = [day for day in outcomes.days_D.tolist() if nights and min(nights) < day < max(nights)]
    return [day for day in days if day not in nights]
