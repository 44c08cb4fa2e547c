"""From sound rows of prices to the adjusted prices of a market: corporate actions, entities, who may be traded, who is eligible.

Frames of a user and the tables of the pipeline (finjepa_pipeline/prices/derive.py) follow these rules. Rows come in order of symbol
and date, whole symbols at a time: symbol, date, session (number of the day), close, and open, high, low, volume and adj_close,
null where missing. What is judged at a close is judged from what was known then.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from finjepa_model.errors import FinJEPAError
from finjepa_model.features.build import PRICE_COLUMNS, AdjustedPrices
from finjepa_model.features.frame import NUMBERS

# Sessions, logarithms of ratios, and ratios.
LONG_GAP = 60  # sessions without a row after which a ticker may have been given to somebody else
PATIENCE = 10  # sessions before the end of the data after which a history counts as ended
QUARTER = 63  # sessions before its end by which a share is judged to have been falling apart
FACTOR_STEP = 0.0005  # 5 bp: less is rounding of adj_close
JUMP = 0.405  # log(1.5): +50 % or -33 % in a day is listed
COLLAPSE = 0.1  # a day's ratio of adjusted closes below, or
EXPLOSION = 4.0  # above: a step of the price, or an extreme move
HEAVY = 5.0  # times the usual volume, which a gain beyond EXPLOSION needs to be believed
YEAR = 365  # days without a row after which a ticker has been given to somebody else
THIN_SESSION = 0.2  # of the usual number of symbols: less is a fragment
LATE_SESSION = 0.9  # of the usual number of symbols, at least 50, in the newest session: less is late
_LARGE_SPLITS = (60, 70, 75, 80, 90, 100, 120, 125, 150, 200, 250, 300, 400, 500, 600, 750, 800, 1000, 1250, 1500, 2000, 2500,
                 3000, 4000, 5000, 10000)  # fmt: skip
_ROUND_SPLITS = (10, 15, 20, 25, 30, 40, 50, 100, 200, 500, 1000)
_NEAR = 1.02  # a ratio within 2 % is that of a split


@dataclass(frozen=True)
class UniverseRule:
    """Who is eligible for a decision, judged from trailing data only.

    Attributes:
        size: the first so many by dollar volume over the window; equal ones, and all where there are no volumes, by symbol. It is
            the same whatever part of a history is seen.
        min_dollar_volume: median over the window, dollars a day.
        min_history, window: sessions.
    """

    size: int = 500
    min_dollar_volume: float = 5e6
    min_history: int = 252
    window: int = 63


def price_events(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows at which something happens to a symbol: its first, gaps, factor steps, jumps, closes that have not moved for five
    sessions (stale).

    Ratios are to the row before: factor_ratio of adj_close/close (more than 5 bp off 1 is a dividend or a split), return_ratio of
    the adjusted closes. volume_ratio is to the median of the twenty rows before, 0 where that is 0, and null without volume.
    """
    close, volume = pl.col("close"), pl.col("volume")
    usual = volume.rolling_median(20, min_samples=1).shift(1).over("symbol")
    compared = rows.select(
        "symbol", "date",
        pl.col("date").shift(1).over("symbol").alias("date_before"),
        (pl.col("session").cast(pl.Int64) - pl.col("session").cast(pl.Int64).shift(1)).over("symbol").alias("gap"),
        (close / close.shift(1)).over("symbol").alias("close_ratio"),
        (pl.col("adj_close") / pl.col("adj_close").shift(1)).over("symbol").alias("adj_ratio"),
        pl.when(volume.is_not_null()).then(pl.when(usual != 0).then(volume / usual).otherwise(0.0)).alias("volume_ratio"),
        pl.all_horizontal((close == close.shift(n)).over("symbol") for n in range(1, 5)).fill_null(False).alias("stale"),
    )  # fmt: skip
    factor_ratio = (pl.col("adj_ratio") / pl.col("close_ratio")).fill_null(1.0)
    noted = compared.with_columns(
        factor_ratio.alias("factor_ratio"),
        pl.coalesce("adj_ratio", "close_ratio").alias("return_ratio"),
        (pl.col("date") - pl.col("date_before")).dt.total_days().alias("days"),
    )
    happens = (
        pl.col("stale")
        | pl.col("date_before").is_null()
        | (pl.col("gap") > LONG_GAP)
        | (pl.col("days") >= YEAR)
        | (pl.col("factor_ratio").log().abs() > FACTOR_STEP)
        | (pl.col("return_ratio").log().abs() > JUMP)
    )
    return noted.filter(happens.fill_null(False)).drop("close_ratio", "adj_ratio")


def corporate_actions(events: pl.DataFrame) -> pl.DataFrame:
    """symbol, date, action and value, from `price_events`.

    dividend (value: share of the close before; less than a fifth, adj_close/close steps up by 1/(1 - yield)), split (value: new
    shares for an old one, the simplest n:m within 2 %, large ones round), suspected_split (the same, seen in the closes and not
    in the factor, with the volume going the other way by about as much), unexplained_jump, extreme_move, price_step (value: return).
    Beyond -90 % and +300 % a jump is a price_step if it has the size and the volume of a split (without volumes the size alone
    counts), if it is a power of ten on an ordinary volume (another unit), or if it is a gain on less than HEAVY times the usual
    volume, which no news makes: the entity ends before it, nothing is repaired, and nobody loses 99 % or gains tenfold by it. Any
    other loss or gain of that size is an extreme_move, which counts. All of it is judged from what was known at that close.
    """
    shares, plainness, usual = _split_ratios()
    found = []
    steps = (pl.col("factor_ratio").log().abs() > FACTOR_STEP) | (pl.col("return_ratio").log().abs() > JUMP)
    for row in events.filter(steps.fill_null(False)).iter_rows(named=True):
        key, factor, ratio, volume = (
            (row["symbol"], row["date"]),
            row["factor_ratio"],
            row["return_ratio"],
            row["volume_ratio"],
        )
        if abs(np.log(factor)) > FACTOR_STEP:
            paid = 1 - 1 / factor
            near = (shares >= factor / _NEAR) & (shares <= factor * _NEAR)
            if 0 <= paid <= 0.2:
                found.append((*key, "dividend", paid))
            elif abs(np.log(factor)) > 0.04 and near.any():
                found.append((*key, "split", shares[near][plainness[near].argmin()]))
        if ratio is None or abs(np.log(ratio)) <= JUMP or row["gap"] > LONG_GAP or row["days"] >= YEAR:
            continue
        near = (shares * ratio >= 1 / _NEAR) & (shares * ratio <= _NEAR)
        if not COLLAPSE <= ratio <= EXPLOSION:
            found.append((*key, "price_step" if _is_step(ratio, volume, shares[near]) else "extreme_move", ratio - 1))
            continue
        size = shares[near & usual]
        if volume is not None:
            agree = (
                (volume >= np.minimum(1, size / 2)) & (volume <= np.maximum(1, size * 2)) & ((volume > 1) == (size > 1))
            )
            size = size[agree]
        if volume is None or not len(size):
            found.append((*key, "unexplained_jump", ratio - 1))
        else:
            found.append((*key, "suspected_split", size.min()))
    schema = {"symbol": pl.String, "date": pl.Date, "action": pl.String, "value": pl.Float64}
    return pl.DataFrame(found, schema, orient="row").sort("symbol", "date", "action", "value")


def _is_step(ratio: float, volume: float | None, sizes: np.ndarray) -> bool:
    """Whether a jump beyond what is believed is a step of the price."""
    whole = np.isin(np.maximum(sizes, 1 / sizes), _ROUND_SPLITS)
    if volume is None:
        return bool(whole.any())
    power = abs(np.log10(ratio) - np.round(np.log10(ratio))) < np.log10(_NEAR) and 0.2 <= volume <= 5
    traded = (volume >= sizes / 3) & (volume <= sizes * 3)
    return bool(power or (ratio > 1 and volume < HEAVY) or (whole & traded).any())


def _split_ratios() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """New shares for an old one, how plain that is (less is plainer), and whether it is usual without an adjusted close."""
    small = [(n / m, n + m, n == 1 or m == 1 or n + m == 5) for n in range(1, 51) for m in range(1, 51) if n != m]
    large = [(size, n + 1, True) for n in _LARGE_SPLITS for size in (float(n), 1 / n)]
    shares, plainness, usual = zip(*small, *large, strict=True)
    return np.array(shares), np.array(plainness), np.array(usual)


def entities(rows: pl.DataFrame, events: pl.DataFrame, actions: pl.DataFrame, sessions: int) -> pl.DataFrame:
    """The companies behind the symbols, a row each: entity, symbol, first_date, last_date, adjusted, ended_because, observations and
    delisting_return.

    After ticker reuse an entity is symbol#2. A symbol is another company after a year, after a long gap at another price, and after a
    price_step. A history that stops more than ten sessions before the last one has ended; its holder gets the last close, less
    30 % if it was falling apart (Shumway 1997). A failure or a real gain ends nothing: its holder bears it.

    Args:
        sessions: how many there are in the market.
    """
    steps = actions.filter(pl.col("action") == "price_step").select("symbol", "date", pl.lit(True).alias("step"))
    starts = events.join(steps, on=["symbol", "date"], how="left").with_columns(pl.col("step").fill_null(False))
    elsewhere = ~pl.col("return_ratio").is_between(1 / 3.0, 3.0)
    begins = (
        pl.col("date_before").is_null()
        | (pl.col("days") >= YEAR)
        | pl.col("step")
        | ((pl.col("gap") > LONG_GAP) & elsewhere)
    )
    starts = starts.filter(begins.fill_null(False)).select("symbol", "date", "step")
    starts = starts.sort("symbol", "date").with_columns(
        pl.int_range(1, pl.len() + 1).over("symbol").alias("place"),
        pl.col("step").shift(-1).over("symbol").alias("step_next"),
    )
    lived = rows.join(starts, on=["symbol", "date"], how="left", maintain_order="left").with_columns(
        pl.col("place").forward_fill().over("symbol"),
        (pl.col("adj_close").count() > 0).over("symbol").alias("adjusted"),
    )
    session, quarter = pl.col("session"), pl.col("session") >= pl.col("session").last() - QUARTER
    lives = lived.group_by("symbol", "place", maintain_order=True).agg(
        pl.col("date").first().alias("first_date"),
        pl.col("date").last().alias("last_date"),
        session.last(),
        pl.col("adjusted").first(),
        (pl.col("adj_close").is_not_null() | ~pl.col("adjusted")).sum().alias("observations"),
        pl.col("close").last().alias("last_close"),
        pl.col("close").filter(quarter).first().alias("quarter_close"),
    )
    lives = lives.join(starts.select("symbol", "place", "step_next"), on=["symbol", "place"], how="left")
    ended = (
        pl.when(pl.col("step_next")).then(pl.lit("price step"))
        .when(pl.col("step_next").is_not_null()).then(pl.lit("ticker reused"))
        .when(session < sessions - 1 - PATIENCE).then(pl.lit("delisted"))
    )  # fmt: skip
    falling = (pl.col("last_close") < 1) | (pl.col("last_close") < 0.5 * pl.col("quarter_close"))
    number = pl.when(pl.col("place") > 1).then("#" + pl.col("place").cast(pl.String)).otherwise(pl.lit(""))
    return lives.with_columns(ended.alias("ended_because"), (pl.col("symbol") + number).alias("entity")).select(
        "entity", "symbol", "first_date", "last_date", "adjusted", "ended_because", "observations",
        pl.when((pl.col("ended_because") != "price step") & falling).then(-0.3)
        .when(pl.col("ended_because").is_not_null()).then(0.0).alias("delisting_return"),
    ).sort("entity")  # fmt: skip


def adjusted_rows(rows: pl.DataFrame, lives: pl.DataFrame, events: pl.DataFrame, actions: pl.DataFrame) -> pl.DataFrame:
    """Rows with dividends and splits taken into account, by entity and session: only ratios within an entity mean anything.

    volume is in shares as reported; dollar_volume in dollars of the day. A day without a trade, or whose close is stale, is not
    tradable, nor is the day of a suspected split, a price step or an extreme move. `event` marks dividends and splits.
    """
    odd = actions.filter(pl.col("action").is_in(["suspected_split", "price_step", "extreme_move"]))
    marked = pl.concat([events.filter("stale").select("symbol", "date"), odd.select("symbol", "date")]).unique()
    paid = actions.filter(pl.col("action").is_in(["dividend", "split"])).select("symbol", "date").unique()
    starts = lives.select("symbol", pl.col("first_date").alias("date"), "entity", "adjusted")
    placed = (
        rows.join(starts, on=["symbol", "date"], how="left", maintain_order="left")
        .join(
            marked.with_columns(pl.lit(True).alias("marked")), on=["symbol", "date"], how="left", maintain_order="left"
        )
        .join(paid.with_columns(pl.lit(True).alias("event")), on=["symbol", "date"], how="left", maintain_order="left")
        .with_columns(pl.col("entity", "adjusted").forward_fill().over("symbol"))
    )
    factor = pl.when("adjusted").then(pl.col("adj_close") / pl.col("close")).otherwise(1.0)
    return placed.filter(factor.is_not_null()).select(
        "entity", "symbol", "session",
        *(pl.col(name) * factor for name in ("open", "high", "low", "close")),
        "volume",
        (pl.col("close") * pl.col("volume")).alias("dollar_volume"),
        ((pl.col("volume") > 0).fill_null(True) & pl.col("marked").is_null()).alias("tradable"),
        pl.col("event").is_not_null(),
    ).sort("entity", "session")  # fmt: skip


def eligible(rows: pl.DataFrame, rule: UniverseRule) -> pl.Series:
    """Who is eligible at the close of a session, of `adjusted_rows`: traded that day, with enough history, and where there are volumes,
    with a median dollar volume that is high enough (more than half the days reach it).

    There is no filter by price: most sources divide past closes by later splits, so that a low one would know of them.
    """
    dollars, window = pl.col("dollar_volume"), rule.window
    judged = rows.select(
        "session", "tradable", "symbol",
        pl.int_range(1, pl.len() + 1).over("entity").alias("age"),
        dollars.round().rolling_sum(window, min_samples=1).over("entity").alias("traded"),
        (dollars >= rule.min_dollar_volume).fill_null(False).cast(pl.Int32).rolling_sum(window, min_samples=1).over("entity")
        .alias("liquid_days"),
    ).with_row_index("row")  # fmt: skip
    liquid = pl.col("traded").is_null() | (pl.col("liquid_days") > window / 2.0)
    chosen = judged.filter(pl.col("tradable") & (pl.col("age") >= rule.min_history) & liquid)
    if chosen.height and int(chosen["session"].value_counts()["count"].max()) > rule.size:  # pyright: ignore[reportArgumentType]
        chosen = chosen.sort("session", "traded", "symbol", descending=[False, True, False], nulls_last=True)
        chosen = chosen.group_by("session", maintain_order=True).head(rule.size)
    found = np.zeros(rows.height, bool)
    found[chosen["row"].to_numpy()] = True
    return pl.Series("eligible", found)


def runs_of(sizes: np.ndarray, most: int) -> Iterator[slice]:
    """Consecutive runs whose sizes add up to at most `most`, or to one size that is larger."""
    start, total = 0, 0
    for place, size in enumerate(sizes.tolist()):
        if place > start and total + size > most:
            yield slice(start, place)
            start, total = place, 0
        total += size
    yield slice(start, len(sizes))


def on_sessions(rows: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Rows of `read_prices` with all columns of the schema and the number of their session, and which sessions are left out: those on
    which only a part of the symbols has prices, a fragment or not yet complete."""
    counts = rows.group_by("date").len().sort("date")
    usual = counts["len"].rolling_median(20, min_samples=1).shift(1)
    thin = (counts["len"] < THIN_SESSION * usual).fill_null(False)
    late = (counts["len"] < LATE_SESSION * usual).fill_null(False) & (usual >= 50).fill_null(False)
    late &= counts["date"] == counts["date"].max()
    partial = counts.filter(thin | late)["date"]
    absent = [pl.lit(None, pl.Float64).alias(name) for name in NUMBERS if name not in rows.columns]
    kept = rows.filter(~pl.col("date").is_in(partial.implode())).with_columns(*absent)
    session = kept.select(pl.col("date").rank("dense").cast(pl.Int64) - 1).to_series().alias("session")
    notes = [f"{len(partial)} sessions left out, with prices of a part of the symbols: the last is {partial.max()}"]
    return kept.with_columns(session), notes if len(partial) else []


def adjust_prices(rows: pl.DataFrame, rule: UniverseRule | None = None) -> tuple[AdjustedPrices, pl.DataFrame]:
    """The market of a frame, and its entities.

    Args:
        rows: of `on_sessions`.

    Raises:
        FinJEPAError: if there are fewer than two sessions.
    """
    dates = rows["date"].unique().sort().to_numpy().astype("datetime64[D]")
    if len(dates) < 2:
        raise FinJEPAError(f"there is one session of prices only, {dates[0]}")
    events = price_events(rows)
    actions = corporate_actions(events)
    lives = entities(rows, events, actions, len(dates)).filter(pl.col("observations") > 0)
    adjusted = adjusted_rows(rows, lives, events, actions)
    run = adjusted.with_columns(
        eligible(adjusted, rule or UniverseRule()),
        (pl.col("entity").rank("dense").cast(pl.Int64) - 1).alias("asset"),
    )
    spans = run.group_by("asset").agg(pl.col("session").min().alias("first"), pl.col("session").max().alias("last"))
    spans = spans.sort("asset")
    filled = [name for name in PRICE_COLUMNS if run[name].count()]
    market = AdjustedPrices(
        assets=lives["entity"].to_list(),
        dates=dates,
        first_A=spans["first"].to_numpy(),
        last_A=spans["last"].to_numpy(),
        delisting_return_A=lives["delisting_return"].fill_null(0.0).to_numpy(),
        columns=frozenset({"close", *filled}),
        runs=lambda: [run],
    )
    return market, lives
