"""The sessions of exchanges: which calendar a symbol keeps, and when a close of one exchange is known on the clock of another."""

import datetime
import itertools
from collections import Counter
from functools import lru_cache
from typing import Any

import duckdb
import numpy as np

from finjepa_model.errors import FinJEPAError

DEFAULT_CALENDAR = "XNYS"
AUTO = "auto"  # `auto:XASX`: the symbols have calendars of their own, and decisions are made at the close of XASX
_FIRST = datetime.date(1962, 1, 2)
_FITS = 0.01  # of the rows may lie outside a calendar
_WITHOUT_EXCHANGE = ("24/7", "24/5")
_DAYS = "SELECT DISTINCT symbol, date FROM ({rows}) WHERE date IS NOT NULL"
_RECENT_DAYS = 1_100  # of each symbol are compared with calendars: three years
_SUFFIXES = {  # what data vendors append to a symbol of an exchange
    ".AX": "XASX", ".NS": "XBOM", ".BO": "XBOM", ".L": "XLON", ".TO": "XTSE", ".V": "XTSE", ".DE": "XETR", ".F": "XFRA",
    ".PA": "XPAR", ".AS": "XAMS", ".BR": "XBRU", ".LS": "XLIS", ".IR": "XDUB", ".MI": "XMIL", ".MC": "XMAD", ".SW": "XSWX",
    ".ST": "XSTO", ".CO": "XCSE", ".HE": "XHEL", ".OL": "XOSL", ".VI": "XWBO", ".WA": "XWAR", ".IS": "XIST",
    ".T": "XTKS", ".HK": "XHKG", ".SS": "XSHG", ".SZ": "XSHG", ".KS": "XKRX", ".KQ": "XKRX", ".TW": "XTAI", ".TWO": "XTAI",
    ".SI": "XSES", ".SA": "BVMF", ".MX": "XMEX", ".JO": "XJSE", ".NZ": "XNZE", ".JK": "XIDX", ".KL": "XKLS", ".BK": "XBKK",
    ".SN": "XSGO", "=F": "CMES", "=X": "24/5", "-USD": "24/7", "-USDT": "24/7", "-BTC": "24/7",
}  # fmt: skip


@lru_cache
def sessions(calendar: str) -> tuple[datetime.date, ...]:
    """The sessions of an exchange (of `auto:X`, those of X) from 1962 to the end of next year. Before those that the library
    knows, which for a few exchanges begin as late as 1997, every weekday counts.

    Raises:
        FinJEPAError: if there is no such calendar.
    """
    known = tuple(_calendar(clock_of(calendar), _FIRST).sessions.date)
    days = np.arange(np.datetime64(_FIRST), np.datetime64(known[0]))
    return (*days[np.is_busday(days)].tolist(), *known)


def clock_of(calendar: str) -> str:
    """The calendar at whose closes decisions are made."""
    return calendar.partition(":")[2] if has_several(calendar) else calendar


def has_several(calendar: str) -> bool:
    """Whether each symbol has a calendar of its own."""
    return calendar.startswith(f"{AUTO}:")


def sessions_behind(calendar: str, last: datetime.date, now: datetime.datetime) -> int:
    """How many closed sessions lie after `last` at `now` (with a time zone)."""
    found = _around(calendar, last)  # a calendar must not be empty
    return sum(day.date() > last and found.session_close(day) <= now for day in found.sessions)


def _around(calendar: str, last: datetime.date) -> Any:
    """The calendar at whose closes decisions are made, from a month before the year of a day on: made once for all its days."""
    return _calendar(clock_of(calendar), datetime.date(last.year - 1, 12, 1))


def session_after(calendar: str, last: datetime.date, count: int) -> datetime.date:
    """The `count`-th session of an exchange after a day; the `count`-th weekday where no calendar says."""
    try:
        found = _around(calendar, last).sessions.date
        return [day for day in found if day > last][count - 1]
    except (FinJEPAError, IndexError):
        return np.busday_offset(np.datetime64(last), count, roll="backward").astype(object)


def next_close(calendar: str, last: datetime.date) -> datetime.datetime:
    """When the first session of an exchange after a day closes, UTC; midnight after the next weekday where no calendar says."""
    day = session_after(calendar, last, 1)
    try:
        close = _around(calendar, last).closes[str(day)]
    except (FinJEPAError, KeyError):
        return datetime.datetime.combine(day + datetime.timedelta(days=1), datetime.time())
    return close.tz_convert(None).to_pydatetime()


def known_at(calendar: str, clock: str) -> list[tuple[datetime.date, datetime.date]]:
    """When the row of a session is known to a decision: (session, the first session of `clock` that does not close before it).

    A row of Sydney is known at New York's close of the same date; a row of New York only at Sydney's next close. Before the
    first session that a calendar knows a row counts as late as it can be.
    """
    theirs, ours = sessions(calendar), sessions(clock)
    if calendar == clock:
        return list(zip(theirs, ours, strict=True))
    places = np.searchsorted(_closes(clock, early=0), _closes(calendar, early=24), side="left")
    return [(day, ours[place]) for day, place in zip(theirs, places, strict=True) if place < len(ours)]


def _closes(calendar: str, early: int) -> np.ndarray:
    """The closes of `sessions(calendar)` in UTC; `early` hours after midnight where the library knows none."""
    known = _calendar(calendar, _FIRST)
    unknown = len(sessions(calendar)) - len(known.sessions)
    guessed = np.array(sessions(calendar)[:unknown], "datetime64[ns]") + np.timedelta64(early, "h")
    return np.concatenate([guessed, known.closes.dt.tz_localize(None).to_numpy().astype("datetime64[ns]")])


def detect_calendar(con: duckdb.DuckDBPyConnection, rows: str, *, each: bool) -> str:
    """The calendar of the rows of a query with the columns symbol and date: one name, or `auto:CLOCK` where symbols differ; the
    clock is then the exchange of most symbols.

    Args:
        each: look at every symbol, also where most rows are on sessions of New York.
    """
    days = {"days": sessions(DEFAULT_CALENDAR)}
    outside = "count(*) FILTER (WHERE date NOT IN (SELECT unnest($days::DATE[])))"
    query = f"SELECT count(*), {outside} FROM ({_DAYS.format(rows=rows)})"
    ((total, outside),) = con.execute(query, days).fetchall()
    if outside <= _FITS * total and not each:
        return DEFAULT_CALENDAR
    counts = Counter(_fitting(con, rows, DEFAULT_CALENDAR).values())
    if not counts:
        return DEFAULT_CALENDAR
    # An exchange decides, where there is one: at its close the others are known.
    most = min(counts, key=lambda name: (name in _WITHOUT_EXCHANGE, -counts[name], name != DEFAULT_CALENDAR, name))
    return most if len(counts) == 1 else f"{AUTO}:{most}"


def put_calendars(con: duckdb.DuckDBPyConnection, calendar: str, feed_id: int, rows: str) -> None:
    """The sessions of a feed's calendar as the temporary table calendar_sessions. Where its symbols have calendars of their own,
    those of all of them; then the calendar of each symbol that has none yet is stored, and when the rows of each calendar are
    known. What was once stored of a symbol stays: a later delivery does not move its past."""
    clock, names = clock_of(calendar), {clock_of(calendar)}
    if has_several(calendar):
        known = f"SELECT symbol FROM symbol_calendars WHERE feed_id = {feed_id}"
        found = _fitting(con, f"FROM ({rows}) WHERE symbol NOT IN ({known})", clock)
        con.execute(
            "INSERT INTO symbol_calendars SELECT $feed_id, unnest($symbols::VARCHAR[]), unnest($calendars::VARCHAR[])",
            {"feed_id": feed_id, "symbols": list(found), "calendars": list(found.values())},
        )
        stored = con.execute(f"SELECT DISTINCT calendar FROM symbol_calendars WHERE feed_id = {feed_id}").fetchall()
        names |= {name for (name,) in stored}
        con.execute(f"DELETE FROM clock_sessions WHERE feed_id = {feed_id}")
        for name in names:
            days, known_on = zip(*known_at(name, clock), strict=True)
            con.execute(
                "INSERT INTO clock_sessions SELECT $feed_id, $name, unnest($days::DATE[]), unnest($known_on::DATE[])",
                {"feed_id": feed_id, "name": name, "days": days, "known_on": known_on},
            )
    con.execute("CREATE OR REPLACE TEMPORARY TABLE calendar_sessions (calendar VARCHAR, date DATE)")
    for name in names:
        con.execute("INSERT INTO calendar_sessions SELECT ?, unnest(?::DATE[])", [name, sessions(name)])


def _fitting(con: duckdb.DuckDBPyConnection, rows: str, clock: str) -> dict[str, str]:
    """The calendar of each symbol."""
    recent = con.sql(f"""
        {_DAYS.format(rows=rows)} AND symbol IS NOT NULL
        QUALIFY date > max(date) OVER (PARTITION BY symbol) - {_RECENT_DAYS}""").pl()
    usual = DEFAULT_CALENDAR if clock in _WITHOUT_EXCHANGE else clock  # on which the days of any exchange would lie
    first = max(recent["date"].min() or _FIRST, _FIRST)
    found = {}
    for (symbol,), own in recent.group_by("symbol"):
        name = str(symbol)
        expected = next((calendar for ending, calendar in _SUFFIXES.items() if name.upper().endswith(ending)), usual)
        found[name] = _best_of(own["date"].to_numpy(), expected, usual, first)
    return found


def _best_of(days: np.ndarray, expected: str, usual: str, first: datetime.date) -> str:
    """The expected calendar, which is that of a symbol's name or else `usual`, where its days fit; otherwise the one with the
    smallest shares of its days that are no session, and of the sessions that lack a row."""

    def misfit(name: str) -> tuple[float, float]:
        known = _days_from(name, first)
        known = known[(known >= days.min()) & (known <= days.max())]
        hits = np.isin(days, known).sum()
        return 1 - hits / len(days), 1 - hits / max(len(known), 1)

    if misfit(expected)[0] <= _FITS:
        return expected
    for name, (outside, missing) in ((name, misfit(name)) for name in _WITHOUT_EXCHANGE):
        if outside <= _FITS and missing <= 2 * _FITS:
            return name
    # making the calendars of all exchanges takes a while
    exchanges = sorted({usual, DEFAULT_CALENDAR, *_SUFFIXES.values()} - {*_WITHOUT_EXCHANGE})
    return min(exchanges, key=lambda name: (round(sum(misfit(name)), 2), name != expected))


@lru_cache
def _days_from(calendar: str, first: datetime.date) -> np.ndarray:
    return _calendar(calendar, first).sessions.to_numpy().astype("datetime64[D]")


@lru_cache
def _calendar(name: str, first: datetime.date) -> Any:
    """The calendar from a day (or the first that the library knows) to the end of next year."""
    import exchange_calendars
    from exchange_calendars.errors import CalendarError

    year = datetime.date.today().year
    # The holidays of a few exchanges are recorded neither so far back nor for the next year.
    for start, end in itertools.product((first, datetime.date(1998, 1, 2)), (year + 1, year)):
        try:
            return exchange_calendars.get_calendar(name, start=start.isoformat(), end=f"{end}-12-31")
        except ValueError:
            continue
        except CalendarError as error:
            raise FinJEPAError(
                f"there is no exchange calendar {name!r}; New York is XNYS, every day is 24/7, and auto finds one for each symbol"
            ) from error
    raise FinJEPAError(f"the library exchange_calendars cannot make the calendar {name!r} up to {year}")
