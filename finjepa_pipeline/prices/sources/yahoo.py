"""Yahoo Finance, through the library yfinance: no token and no files, for as long as Yahoo answers."""

import datetime
import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from finjepa_model.errors import FinJEPAError
from finjepa_model.features.frame import rows_of
from finjepa_model.files import to_json, written_whole
from finjepa_pipeline.prices.sources.base import PriceSource, Snapshot, SourceFile

BATCH = 25  # symbols of a request
WAITS_S = (5.0, 30.0, 120.0)  # before a batch is asked for again
PAUSE_S = 1.0  # between batches
DAY_ENDS = datetime.time(
    22, 0
)  # UTC: New York has closed, in summer and in winter; before, its last row is not complete
FIRST = "1962-01-02"
_RATE_LIMIT = "YFRateLimitError"


@dataclass(frozen=True)
class YahooSource(PriceSource):
    """Daily prices of some symbols up to the last day that is over: closes adjusted for splits, and closes adjusted for dividends
    too. Yahoo restates adjusted closes, so a new day is a whole download; batches that have come are kept in `folder`, and an
    ingestion that was ended goes on after them.
    """

    symbols: tuple[str, ...]
    start: str | None
    end: str | None
    folder: Path

    @property
    def place(self) -> str:
        return "yfinance"

    @property
    def options(self) -> dict[str, object]:
        return {"data_source": "yfinance"}

    def snapshot(self) -> Snapshot:
        last = _last_day(datetime.datetime.now(datetime.UTC))
        until = min(last, self.end) if self.end else last
        batches = [self.symbols[at : at + BATCH] for at in range(0, len(self.symbols), BATCH)]
        asked = [to_json({"symbols": batch, "start": self.start or FIRST, "until": until}) for batch in batches]
        files = (SourceFile(text, hashlib.sha256(text.encode()).hexdigest()) for text in asked)
        return Snapshot(f"until {until}", tuple(files))

    def fetch(self, snapshot: Snapshot) -> list[Path]:
        paths = [self.folder / f"{file.sha256[:16]}.parquet" for file in snapshot.files]
        until = snapshot.version.removeprefix("until ")
        for place, path in enumerate(paths):
            if not path.is_file():
                rows = self._downloaded(self.symbols[place * BATCH : (place + 1) * BATCH], until)
                with written_whole(path) as beside:
                    rows.write_parquet(beside)
                time.sleep(PAUSE_S)
        for old in self.folder.glob("*.parquet"):  # of earlier days
            if old not in paths:
                old.unlink()
        return paths

    def _downloaded(self, symbols: tuple[str, ...], until: str) -> pl.DataFrame:
        """The rows of some symbols, asked for again where they did not come.

        Raises:
            FinJEPAError: if Yahoo does not give some of them.
        """
        parts, missing, limited = [], list(symbols), False
        for wait_s in (0.0, *WAITS_S):
            time.sleep(wait_s)
            rows, limited = self._asked(missing, until)
            if rows is not None:
                parts.append(rows)
                missing = [name for name in missing if name not in set(rows["symbol"])]
            if not missing:
                return pl.concat(parts, how="diagonal_relaxed").sort("symbol", "date")
        if limited:
            raise FinJEPAError(
                "Yahoo limits requests; run the same command again in an hour: it goes on with what has come"
            )
        raise FinJEPAError(
            f"Yahoo gives no prices of {', '.join(missing[:10])} from {self.start or FIRST} to {until}; check the spelling on "
            "finance.yahoo.com, leave them out of --symbols, or check the network"
        )

    def _asked(self, symbols: list[str], until: str) -> tuple[pl.DataFrame | None, bool]:
        """What one request gives, and whether Yahoo said that these are too many."""
        yfinance = _library(self.folder / "cache")
        after = datetime.date.fromisoformat(until) + datetime.timedelta(days=1)
        errors = _Errors()
        log = logging.getLogger("yfinance")
        log.addHandler(errors)
        try:
            frame = yfinance.download(
                symbols, start=self.start or FIRST, end=after.isoformat(), auto_adjust=False, actions=False, group_by="column",
                progress=False, threads=False, multi_level_index=True,
            )  # fmt: skip
        except Exception as error:  # of the network, in classes of several libraries
            return None, type(error).__name__ == _RATE_LIMIT
        finally:
            log.removeHandler(errors)
        limited = any(_RATE_LIMIT in text or "Too Many Requests" in text for text in errors.texts)
        return (None if frame is None or frame.empty else rows_of(frame)), limited


class _Errors(logging.Handler):
    """yfinance logs what fails, and raises nothing."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _library(cache: Path) -> Any:
    try:
        import yfinance  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise FinJEPAError(
            "the source `yfinance` needs the library yfinance, which is not installed: pip install 'finjepa[yfinance]'"
        ) from error
    cache.mkdir(parents=True, exist_ok=True)
    yfinance.set_tz_cache_location(str(cache))  # it would write into the user's home
    logging.getLogger("yfinance").propagate = False  # each failure is asked for again, or named in the end
    return yfinance


def _last_day(now: datetime.datetime) -> str:
    return (now.date() if now.time() >= DAY_ENDS else now.date() - datetime.timedelta(days=1)).isoformat()
