"""Any frame of daily prices in the one schema: symbol, date, open, high, low, close, volume, adj_close.

`read_prices` takes a frame of pandas or Polars; files of the pipeline take the same way by `name_columns` and `to_long`, which move
columns and leave the values as they are. Pandas is never imported here: who has a frame of it has imported it.
"""

import ast
import difflib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from finjepa_model.errors import FinJEPAError

COLUMNS = ("symbol", "date", "open", "high", "low", "close", "volume", "adj_close")
NUMBERS = COLUMNS[2:]
ALIASES = {  # in lower case, letters and digits alone; the first that is there counts
    "symbol": ("symbol", "ticker", "tic", "tickersymbol", "symbols", "tickers", "instrument", "security", "asset", "stock", "code",
               "ric", "permno", "name", "level1"),
    "date": ("date", "datetime", "tradedate", "tradingdate", "tradingday", "pricedate", "dates", "day", "timestamp", "time",
             "index", "level0", "unnamed0", "column0", ""),
    "open": ("open", "openprice", "priceopen", "openingprice", "pxopen"),
    "high": ("high", "highprice", "pricehigh", "pxhigh"),
    "low": ("low", "lowprice", "pricelow", "pxlow"),
    "close": ("close", "closeprice", "priceclose", "closingprice", "closelast", "last", "pxlast", "lastprice", "price"),
    "volume": ("volume", "vol", "sharesvolume", "pxvolume", "tradedvolume", "volumetraded"),
    "adj_close": ("adjclose", "adjustedclose", "closeadj", "closeadjusted", "adjclosed", "adjcp", "adjcloseprice", "adjustedcloseprice",
                  "adjprice", "totalreturnindex"),
    "dividends": ("dividends", "dividend", "divcash", "dividendamount", "exdividend"),
    "splits": ("stocksplits", "splits", "split", "splitfactor", "splitcoefficient", "splitratio", "stocksplit"),
}  # fmt: skip
_FIELDS = {alias: name for name, aliases in ALIASES.items() if name not in ("symbol", "date") for alias in aliases}
# Conditions of rows that are left out, in SQL that DuckDB and Polars read alike; the pipeline puts such rows into quarantine.
UNSOUND = {
    "close_not_positive": "NOT coalesce(close > 0 AND close < 1e12, false)",
    "adj_close_not_positive": "NOT coalesce(adj_close > 0 AND adj_close < 1e15, true)",
    "ohlc_order": "high_ok < 0.99 * greatest(open_ok, close, low_ok) OR low_ok > 1.01 * least(open_ok, close, high_ok)",
    "volume_not_a_count": "volume < 0 OR volume > 1e18",
}
_EARLIEST = "1962-01-01"
_RETURNS = 0.1  # share of closes that are not positive from which they are taken for returns
_SPLIT = 0.2  # |log| of a split from which the closes of its day show whether they are raw

Label = str | tuple[str, str]


@dataclass(frozen=True)
class Prices:
    """Daily prices in the schema.

    Attributes:
        rows: symbol (text), date, close, and what there is of open, high, low, volume and adj_close (float64, null where missing);
            by symbol and date, each once.
        understood: in words, what was read and what was left out.
    """

    rows: pl.DataFrame
    understood: tuple[str, ...]


def read_prices(frame: Any, date_format: str | None = None) -> Prices:
    """Daily prices from a frame of pandas or Polars.

    Long (a row for each symbol and day) or wide (a row a day; columns are symbols, or pairs of a field and a symbol as yfinance
    gives them, in both orders). Common names are understood in any case, and dates and symbols may be the index.

    Args:
        date_format: of dates that are text and not ISO, as `%d/%m/%Y`.

    Raises:
        FinJEPAError: if the frame cannot be understood, with the nearest guess.
    """
    rows = _typed(rows_of(frame), date_format)
    rows, notes = _sound(_adjusted(rows))
    if rows.is_empty():
        raise FinJEPAError("the frame holds no price; " + "; ".join(notes or ["it is empty"]))
    rows = rows.select(name for name in rows.columns if name in COLUMNS[:2] or rows[name].count())
    symbols, dates = rows["symbol"].n_unique(), (rows["date"].min(), rows["date"].max())
    shape = f"{symbols} symbol{'s' * (symbols > 1)}, {dates[0]} to {dates[1]}"
    adjusted = "close adjusted" if "adj_close" in rows.columns else "close taken as adjusted"
    missing = [name for name in ("open", "high", "low", "volume") if name not in rows.columns]
    return Prices(rows, (shape, adjusted + (f", no {', '.join(missing)}" if missing else ""), *notes))


def rows_of(frame: Any) -> pl.DataFrame:
    """The long rows of a frame of pandas or Polars, with values as they are; see `to_long`."""
    return to_long(_table(frame))


def name_columns(names: Iterable[str]) -> dict[str, str]:
    """What columns of a long frame are in the schema, and which column of the frame each is; `dividends` and `splits` besides.

    Raises:
        FinJEPAError: if two columns are the same.
    """
    by_plain: dict[str, list[str]] = {}
    for name in names:
        by_plain.setdefault(_plain(name), []).append(name)
    found = {}
    for name, aliases in ALIASES.items():
        there = [by_plain[alias] for alias in aliases if alias in by_plain]
        if there and len(there[0]) > 1:
            raise FinJEPAError(f"there are the columns {' and '.join(there[0])}; which one is meant?")
        if there:
            found[name] = there[0][0]
    if "close" not in found and "adj_close" in found:
        found["close"] = found.pop("adj_close")
    return found


def is_field(name: str) -> bool:
    """Whether a name is one of an open, high, low, close, volume, adjusted close, dividend or split."""
    return _plain(name) in _FIELDS


def needs_adj_close(names: Iterable[str]) -> bool:
    """Whether columns of the schema have dividends or splits and no adjusted close; see `with_adj_close`."""
    return "adj_close" not in names and bool({"dividends", "splits"} & set(names))


def to_long(table: Mapping[Label, pl.Series], symbol: str | None = None) -> pl.DataFrame:
    """The columns of the schema, and dividends and splits, from a long or a wide table; no value is changed.

    Args:
        symbol: of a table that does not say it.

    Raises:
        FinJEPAError: if the table cannot be understood, with the nearest guess.
    """
    flat = {label: column for label, column in table.items() if isinstance(label, str)}
    found = name_columns(label for label, column in flat.items() if column.dtype != pl.Null)
    if "symbol" in found and "close" not in found and _is_number(flat[found["symbol"]]):
        del found["symbol"]  # a ticker
    pairs = _pairs(label for label in table if label != found.get("date"))
    if "date" not in found:
        raise FinJEPAError(f"there is no column of dates among {_listed(table)}{_guess('date', flat)}")
    date = flat[found["date"]]
    if pairs:
        by_symbol: dict[str, dict[str, pl.Series]] = {}
        for label, (field, name) in pairs.items():
            by_symbol.setdefault(name, {})[field] = table[label]
        return _rows_of_wide(date, by_symbol)
    if "close" in found:
        if "symbol" not in found and symbol is None:
            raise FinJEPAError(
                "the prices are of one symbol and do not say which: add a column, as prices['symbol'] = 'AAPL'"
                f"{_guess('symbol', {k: v for k, v in flat.items() if k not in found.values()})}"
            )
        columns = {name: flat[column].alias(name) for name, column in found.items()}
        columns.setdefault("symbol", pl.Series("symbol", [symbol]).new_from_index(0, len(date)))
        return pl.DataFrame(columns)
    others = {label: column for label, column in flat.items() if label != found["date"]}
    fields = [label for label in others if _plain(label) in _FIELDS]
    if not others or "symbol" in found or len(fields) > 1 or not all(map(_is_number, others.values())):
        raise FinJEPAError(f"there is no column of closes among {_listed(table)}{_guess('close', others)}")
    return _rows_of_wide(date, {label: {"close": column} for label, column in others.items()})


def date_formats(texts: pl.Series) -> list[str]:
    """Formats of common use in which all of these texts are dates."""
    formats = ("%Y/%m/%d", "%Y.%m.%d", "%Y%m%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y", "%m-%d-%Y",
               "%d-%b-%Y", "%b %d, %Y", "%d %b %Y", "%m/%d/%y", "%d/%m/%y")  # fmt: skip
    return [form for form in formats if not texts.str.strip_chars().str.to_date(form, strict=False).null_count()]


# Shapes and names


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def _pairs(labels: Iterable[Label]) -> dict[Label, tuple[str, str]]:
    """Field and symbol of each label that has both; nothing where the labels are not such pairs."""
    labels = list(labels)
    split = {label: one for label in labels if (one := _tuple(label)) is not None}
    for side in (0, 1):
        found = {
            label: (_FIELDS[_plain(one[side])], one[1 - side])
            for label, one in split.items()
            if _plain(one[side]) in _FIELDS
        }
        if {"close", "adj_close"} & {field for field, _ in found.values()}:
            return _adj_as_close(found)
    for side in (0, 1):
        named = {label: one for label in labels if isinstance(label, str) and (one := _named_pair(label, side))}
        if len(named) == len(labels) and {"close", "adj_close"} & {field for field, _ in named.values()}:
            return _adj_as_close(named)
    return {}


def _adj_as_close(pairs: Mapping[Any, tuple[str, str]]) -> dict[Label, tuple[str, str]]:
    has_close = any(field == "close" for field, _ in pairs.values())
    as_close = {"adj_close": "close"} if not has_close else {}
    return {label: (as_close.get(field, field), symbol) for label, (field, symbol) in pairs.items()}


def _tuple(label: Label) -> tuple[str, str] | None:
    """The two levels of a label; Polars writes those of pandas as text."""
    if isinstance(label, str) and label.startswith("('"):
        try:
            label = ast.literal_eval(label)
        except (ValueError, SyntaxError):
            return None
    return label if isinstance(label, tuple) and len(label) == 2 and all(label) else None


def _named_pair(label: str, side: int) -> tuple[str, str] | None:
    """Field and symbol of `Close_AAPL` (side 0) or `AAPL Adj Close` (side 1), by the longest name of a field."""
    cuts = [(label[: one.start()], label[one.end() :]) for one in re.finditer(r"[_ .|/:-]+", label)]
    pairs = [(cut[side], cut[1 - side]) for cut in cuts if all(cut) and _plain(cut[side]) in _FIELDS]
    longest = max(pairs, key=lambda pair: len(pair[0]), default=None)
    return (longest and _plain(label) not in _FIELDS and (_FIELDS[_plain(longest[0])], longest[1])) or None


def _rows_of_wide(date: pl.Series, by_symbol: Mapping[str, Mapping[str, pl.Series]]) -> pl.DataFrame:
    """The rows of a wide table; a day without a close is no row, for a wide table has a row for every day."""
    for name, fields in by_symbol.items():
        if "close" not in fields:
            raise FinJEPAError(f"{name} has no column of closes")
    unknown = pl.Series([None]).new_from_index(0, len(date))
    columns = {
        "symbol": pl.concat(pl.Series([name]).new_from_index(0, len(date)) for name in by_symbol),
        "date": pl.concat([date] * len(by_symbol)),
    }
    for field in dict.fromkeys(field for fields in by_symbol.values() for field in fields):
        parts = [fields.get(field, unknown).to_frame(field) for fields in by_symbol.values()]
        columns[field] = pl.concat(parts, how="vertical_relaxed")[field]
    empty = pl.col("close").is_null()
    if columns["close"].dtype == pl.String:
        empty |= pl.col("close").str.strip_chars().str.to_lowercase().is_in(["", "nan", "null", "none"])
    elif columns["close"].dtype.is_float():
        empty |= pl.col("close").is_nan()
    return pl.DataFrame(columns).filter(~empty)


def _is_number(column: pl.Series) -> bool:
    if column.dtype == pl.String:
        known = column.drop_nulls().head(1000).str.strip_chars()
        known = known.filter(known != "")
        return not len(known) or known.cast(pl.Float64, strict=False).count() * 2 > len(known)
    return column.dtype.is_numeric() or column.dtype == pl.Null


def _guess(wanted: str, columns: Iterable[Label]) -> str:
    names = {_plain(label): label for label in columns if isinstance(label, str) and _plain(label)}
    near = [name for alias in ALIASES[wanted] if alias for name in difflib.get_close_matches(alias, names, 1, 0.6)]
    return f"; is {names[near[0]]!r} the {wanted}? Then rename it to {wanted}" if near else f"; name it {wanted}"


def _listed(table: Iterable[Label]) -> str:
    names = [str(label)[:40] for label in table]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


# Frames


def _table(frame: Any) -> dict[Label, pl.Series]:
    """The columns of a frame by label."""
    if isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    if isinstance(frame, pl.DataFrame):
        return {column.name: column for column in frame}
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(frame, pandas.Series):
        frame = frame.to_frame("close" if frame.name is None else frame.name)
    if pandas is None or not isinstance(frame, pandas.DataFrame):
        raise FinJEPAError(f"prices are a pandas or a Polars frame, not {type(frame).__name__}")
    index = frame.index
    is_counter = index.nlevels == 1 and pandas.api.types.is_numeric_dtype(index.dtype)
    here = {_plain(label) for label in frame.columns if isinstance(label, str)}
    if is_counter or all(name is not None and _plain(name) in here for name in index.names):
        frame = frame.reset_index(drop=True)
    else:
        frame = frame.reset_index()
    types = pandas.api.types
    numeric = [place for place, dtype in enumerate(frame.dtypes) if types.is_numeric_dtype(dtype)]
    values = (
        frame.iloc[:, numeric].to_numpy(dtype=float, na_value=float("nan")).T.copy()
    )  # at once: columns may be thousands
    numbers = dict(zip(numeric, values, strict=True))
    table: dict[Label, pl.Series] = {}
    for place, label in enumerate(frame.columns):
        name: Label = str(label)
        if isinstance(label, tuple):
            name = tuple(map(str, label)) if len(label) == 2 and all(map(str, label)) else str(label[0])  # type: ignore[assignment]
        if name in table:
            raise FinJEPAError(f"there are two columns {name}; which one is meant?")
        known = place in numbers
        table[name] = pl.Series(numbers[place], nan_to_null=True) if known else _series(frame.iloc[:, place], pandas)
    return table


def _series(column: Any, pandas: Any) -> pl.Series:
    """A column of pandas that holds no numbers; the day of a time with a zone is the day there."""
    if isinstance(column.dtype, pandas.PeriodDtype):
        column = column.dt.to_timestamp()
    if isinstance(column.dtype, pandas.DatetimeTZDtype):
        column = column.dt.tz_localize(None)
    if pandas.api.types.is_datetime64_dtype(column.dtype):
        return pl.Series(column.to_numpy().astype("datetime64[us]"))
    return pl.Series([None if pandas.isna(value) else value for value in column.to_list()], strict=False)


def _typed(rows: pl.DataFrame, date_format: str | None) -> pl.DataFrame:
    """Symbols as text, dates as dates, numbers as float64, null where missing."""
    numbers = []
    for name in rows.columns:
        if name in ("symbol", "date"):
            continue
        value = rows[name].cast(pl.Float64, strict=False)
        text = rows[name].cast(pl.String, strict=False) if rows[name].dtype in (pl.String, pl.Object) else None
        odd = None if text is None else text.filter(value.is_null() & (text.str.strip_chars() != ""))
        if odd is not None and len(odd):
            raise FinJEPAError(f"the column {name} holds {odd[0]!r}, which is not a number")
        numbers.append(pl.when(value.is_finite()).then(value).alias(name))
    symbol = pl.col("symbol").cast(pl.String).str.strip_chars()
    return rows.select(symbol, _days(rows["date"], date_format), *numbers)


def _days(date: pl.Series, date_format: str | None) -> pl.Series:
    if date.dtype == pl.Date:
        return date
    if isinstance(date.dtype, pl.Datetime):
        return date.dt.replace_time_zone(None).dt.date()
    if date.dtype != pl.String:
        raise FinJEPAError(f"the column of dates holds {date.dtype}, which are no dates: make them dates first")
    days = _text_days(date, date_format)
    odd = date.filter(days.is_null())
    if len(odd):
        guesses = date_formats(date)
        way_out = f"; name their format, as date_format={guesses[0]!r}" if guesses else "; write dates as YYYY-MM-DD"
        raise FinJEPAError(f"{odd[0]!r} is not a date{' in the format ' + date_format if date_format else ''}{way_out}")
    return days


def _text_days(date: pl.Series, date_format: str | None) -> pl.Series:
    if date_format is not None:
        return date.str.strip_chars().str.to_date(date_format, strict=False)
    iso = date.str.contains(r"^\d{4}-\d{2}-\d{2}($|[T ]\d{2}:\d{2})")
    return pl.select(pl.when(iso).then(date.str.head(10).str.to_date("%Y-%m-%d", strict=False)).alias("date"))["date"]


def with_adj_close(rows: pl.DataFrame, date_format: str | None = None) -> pl.DataFrame:
    """Long rows whose values may still be text, with the adjusted close that follows from their dividends and splits."""
    numbers = pl.col(name for name in rows.columns if name not in ("symbol", "date")).cast(pl.Float64, strict=False)
    day = _text_days(rows["date"], date_format) if rows["date"].dtype == pl.String else rows["date"]
    typed = _adjusted(rows.with_columns(numbers, day.alias("date")).with_row_index("row"))
    if "adj_close" not in typed.columns:
        return rows.drop("dividends", "splits", strict=False)
    return rows.drop("dividends", "splits", strict=False).with_columns(typed.sort("row")["adj_close"])


def _adjusted(rows: pl.DataFrame) -> pl.DataFrame:
    """Where there are dividends or splits and no adjusted close: closes that jump by the splits are raw, and are adjusted (CRSP:
    a return is (close * split + dividend) / close before - 1); others are adjusted already, as yfinance gives them by default."""
    names = [name for name in ("dividends", "splits") if name in rows.columns]
    if not names or "adj_close" in rows.columns:
        return rows.drop(names)
    rows = rows.sort("symbol", "date")
    given = {name: pl.col(name) if name in names else pl.lit(0.0) for name in ("dividends", "splits")}
    split = pl.when(given["splits"] > 0).then(given["splits"]).otherwise(1.0)
    before = pl.col("close").shift(1).over("symbol")
    moves = rows.select((pl.col("close") / before).log().alias("move"), split.log().alias("split"))
    seen = moves.filter((pl.col("split").abs() > _SPLIT) & pl.col("move").is_not_null())
    raw = seen.select(((pl.col("move") + pl.col("split")).abs() < pl.col("move").abs()).mean()).item()
    if raw is None or raw < 0.5:
        return rows.drop(names)
    gross = pl.col("close") * split + given["dividends"].fill_null(0.0)
    growth = (gross / before).fill_null(1.0)
    adjusted = growth.log().cum_sum().over("symbol")
    rows = rows.with_columns((adjusted - adjusted.last().over("symbol")).exp().alias("adj_close"))
    last = pl.col("close").last().over("symbol")
    return rows.with_columns(pl.col("adj_close") * last).drop(names)


def _sound(rows: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Without the rows that are no prices, in order, and what was left out."""
    known = rows["close"].drop_nulls()
    if len(known) and (known <= 0).mean() > _RETURNS:  # type: ignore[operator]
        raise FinJEPAError("many closes are not positive: are these returns? Give prices, as (1 + returns).cumprod()")
    given, notes = rows.height, []
    usable = rows.filter(pl.col("symbol").str.len_chars() > 0, pl.col("close").is_not_null())
    prices = [name for name in ("open", "high", "low") if name in rows.columns]
    ok = [pl.when(pl.col(name) > 0).then(pl.col(name)).alias(f"{name}_ok") for name in prices]
    absent = [pl.lit(None, pl.Float64).alias(name) for name in NUMBERS if name not in rows.columns]
    absent += [pl.lit(None, pl.Float64).alias(f"{name}_ok") for name in ("open", "high", "low") if name not in prices]
    judged = usable.with_columns(*ok, *absent)
    broken = pl.any_horizontal(pl.sql_expr(condition) for condition in UNSOUND.values()).fill_null(False)
    sound = judged.filter(~broken, pl.col("date") >= pl.lit(_EARLIEST).str.to_date())
    kept = sound.with_columns(pl.col(f"{name}_ok").alias(name) for name in prices).select(rows.columns)
    order = [
        name
        for name in ("symbol", "date", "close", "open", "high", "low", "volume", "adj_close")
        if name in kept.columns
    ]
    kept = kept.sort(order, nulls_last=True)
    once = kept.unique(["symbol", "date"], keep="first", maintain_order=True)
    if given - usable.height:
        notes.append(f"{given - usable.height:,} rows without a symbol or a close")
    if usable.height - kept.height:
        notes.append(f"{usable.height - kept.height:,} rows that are no prices")
    if kept.height - once.height:
        notes.append(f"{kept.height - once.height:,} rows that come twice")
    left_out = [f"left out: {', '.join(notes)}"] if notes else []
    return once.select([name for name in COLUMNS if name in once.columns]), left_out
