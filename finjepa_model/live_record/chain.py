"""The files of a live record: one night a session, chained by hashes, and never changed once they are written.

    nights.parquet                   a row a night: see NIGHTS
    forecasts/DATE.parquet           what was forecast at the close of DATE: see FORECASTS
    portfolios/DATE.parquet          weights of the portfolios that were forecast, the decision and its alternatives among them
    outcomes/DATE.parquet            returns that have become known since the night before: see OUTCOMES
    scores.parquet                   what follows from all of these (`finjepa_model.live_record.scores`)

The hash of a night is the SHA-256 of its row and of the canonical bytes of its three tables, and the row has the hash of the
night before. Canonical bytes are of values and not of files: another version of Parquet changes no hash.
"""

import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json, written_whole

HORIZONS = (1, 5, 21)  # sessions
LEVELS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
FOLDER = "live_record"  # of a home and of a repository
MODEL = "model"  # the forecast that is scored; the others are baselines

FORMAT = 1  # of a night: a later version reads and checks those of earlier ones as they were written
NIGHTS: dict[str, Any] = {
    "format": pl.Int32,
    "session": pl.Date,  # at whose close the forecasts were made
    "written_at": pl.Datetime("us"),  # UTC
    "next_close": pl.Datetime("us"),  # of the exchange, UTC
    "hindsight": pl.Boolean,  # written after that close, or when a later one was known: never counted
    "checkpoint": pl.String,
    "commit": pl.String,  # of its release on the Hub, null before there is one
    "planner": pl.String,
    "feed": pl.String,
    "data_version": pl.String,
    "code": pl.String,
    "decided": pl.Date,  # of the decision that stands; null before the first
    "hedge": pl.Boolean,  # of that decision; forecasts of portfolios are without it
    "wealth": pl.Float64,  # of the book at the close, net of costs
    "left_out": pl.String,  # baselines that could not be made, and why
    "previous": pl.String,  # hash of the night before, empty for the first
    "hash": pl.String,
}


def quantile_name(horizon: int, level: float) -> str:
    return f"q{horizon}_{round(100 * level):02d}"


QUANTILES = {horizon: [quantile_name(horizon, level) for level in LEVELS] for horizon in HORIZONS}
VOLATILITIES = [f"volatility_{horizon}" for horizon in HORIZONS]
# kind: `asset` of the universe that is traded, `market` for the other eligible assets, which have no quantiles of their own,
# `portfolio`, and `unit`, an asset with a daily volatility of 1: the quantiles of a `market` asset are its volatility times
# those. volatility_H: daily standard deviation over H sessions; qH_P: P % quantile of the simple return over them;
# expected_return: a day, over the next decision step.
FORECASTS: dict[str, Any] = {
    "forecast": pl.String,
    "kind": pl.String,
    "name": pl.String,
    "expected_return": pl.Float32,
    **dict.fromkeys(VOLATILITIES, pl.Float32),
    **{name: pl.Float32 for names in QUANTILES.values() for name in names},
}
PORTFOLIOS: dict[str, Any] = {"portfolio": pl.String, "asset": pl.String, "weight": pl.Float64}
# kind: `return` of an asset in a session, as it was known a session later; `ended`: what its holder got beyond its last close;
# `restated`: `value` is what the source says now of a session for which `recorded` counts (null: nothing was known in time).
OUTCOMES: dict[str, Any] = {
    "kind": pl.String,
    "asset": pl.String,
    "session": pl.Date,
    "value": pl.Float64,
    "recorded": pl.Float64,
}
TABLES: dict[str, dict[str, Any]] = {"forecasts": FORECASTS, "portfolios": PORTFOLIOS, "outcomes": OUTCOMES}


@dataclass(frozen=True)
class Night:
    """What is written of a night: its row of `nights.parquet` without the two hashes, and its tables."""

    row: Mapping[str, Any]
    tables: Mapping[str, pl.DataFrame]


def canonical_bytes(frame: pl.DataFrame) -> bytes:
    """The values of a frame, column by column: name, type, which are null, and the others (little-endian; texts as JSON)."""
    parts = [to_json([frame.height, frame.width]).encode()]
    for column in frame:
        parts.append(to_json([column.name, str(column.dtype)]).encode())
        parts.append(np.packbits(column.is_null().to_numpy()).tobytes())
        if column.dtype == pl.String:
            parts.append(to_json(column.fill_null("").to_list()).encode())
        else:
            values = column.to_physical().fill_null(0).to_numpy()
            parts.append(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return b"\n".join(parts)


def night_hash(row: Mapping[str, Any], tables: Mapping[str, pl.DataFrame]) -> str:
    """SHA-256 over a row of `nights.parquet`, all but its own hash, and the tables of its night."""
    digest = hashlib.sha256(to_json({name: _text(row[name]) for name in NIGHTS if name != "hash"}).encode())
    for name in TABLES:
        digest.update(hashlib.sha256(canonical_bytes(tables[name])).digest())
    return digest.hexdigest()


def _text(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime.date) else value


@dataclass(frozen=True)
class LiveRecord:
    """A live record in a folder. What is read of it is as it was when the object was made."""

    folder: Path

    @cached_property
    def nights(self) -> pl.DataFrame:
        """See NIGHTS; in order of session, empty where there is no record yet."""
        file = self.folder / "nights.parquet"
        return _read(file, NIGHTS) if file.is_file() else pl.DataFrame(schema=NIGHTS)

    @property
    def sessions(self) -> list[datetime.date]:
        return self.nights["session"].to_list()

    @property
    def last_hash(self) -> str:
        return self.nights["hash"][-1] if self.nights.height else ""

    def path(self, table: str, session: datetime.date) -> Path:
        return self.folder / table / f"{session}.parquet"

    def table(self, name: str, session: datetime.date) -> pl.DataFrame:
        """A table of one night.

        Raises:
            FinJEPAError: if its file is missing, damaged, or has other columns.
        """
        return _read(self.path(name, session), TABLES[name])

    def outcomes(self, since: datetime.date | None = None) -> pl.DataFrame:
        """The outcomes of all nights since a session, with `night`, the session of the night that wrote them."""
        found = [
            self.table("outcomes", session).with_columns(night=pl.lit(session))
            for session in self.sessions
            if since is None or session >= since
        ]
        return pl.concat([pl.DataFrame(schema={**OUTCOMES, "night": pl.Date}), *found])

    def append(self, night: Night) -> "LiveRecord":
        """The record with one more night. Its tables are written first, and count from the moment on in which its row is there:
        a process that dies in between leaves files that the next one removes.

        Raises:
            FinJEPAError: if the newest night is not before this one.
        """
        if self.nights.height and night.row["session"] <= self.sessions[-1]:
            raise FinJEPAError(
                f"the live record has a night of {self.sessions[-1]}, and takes none of {night.row['session']}"
            )
        row = dict(night.row) | {"format": FORMAT, "previous": self.last_hash}
        for left in self._without_night():
            left.unlink()
        tables = {name: night.tables[name].select(*schema).cast(pl.Schema(schema)) for name, schema in TABLES.items()}
        for name, frame in tables.items():
            write_parquet(frame, self.path(name, row["session"]))
        row["hash"] = night_hash(row, tables)
        added = pl.DataFrame([{name: row[name] for name in NIGHTS}], schema=NIGHTS)
        write_parquet(pl.concat([self.nights, added]), self.folder / "nights.parquet")
        return LiveRecord(self.folder)

    def broken(self, newest: int | None = None) -> list[str]:
        """What is wrong with the chain, in words; nothing where every night is as it was written.

        Args:
            newest: how many nights' tables are read and hashed; all where None.
        """
        unread = set(self.sessions[:-newest] if newest else ())
        found, before, last = [], "", None
        for row in self.nights.iter_rows(named=True):
            session = row["session"]
            if last is not None and session <= last:
                found.append(f"the night of {session} stands after that of {last}")
            if row["previous"] != before:
                found.append(f"the night of {session} does not follow on the one before it")
            if row["written_at"] > row["next_close"] and not row["hindsight"]:
                found.append(f"the night of {session} was written in hindsight, and says it was not")
            if session not in unread:
                found += self._changed(row)
            before, last = row["hash"], session
        return found + [f"{file.parent.name}/{file.name} belongs to no night" for file in self._without_night()]

    def _changed(self, row: Mapping[str, Any]) -> list[str]:
        session = row["session"]
        if row["format"] != FORMAT:
            return [f"the night of {session} has the format {row['format']}, which this FinJEPA does not know"]
        try:
            tables = {name: self.table(name, session) for name in TABLES}
        except FinJEPAError as error:
            return [str(error)]
        return [] if night_hash(row, tables) == row["hash"] else [f"the night of {session} is not what its hash says"]

    def _without_night(self) -> list[Path]:
        known = {f"{session}.parquet" for session in self.sessions}
        files = (file for name in TABLES for file in sorted((self.folder / name).glob("*.parquet")))
        return [file for file in files if file.name not in known]


def write_parquet(frame: pl.DataFrame, file: Path) -> None:
    with written_whole(file) as beside:
        frame.write_parquet(beside, compression="zstd", compression_level=9, statistics=False)


def _read(file: Path, schema: Mapping[str, Any]) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = "is missing" if not file.is_file() else f"cannot be read ({type(error).__name__})"
        raise FinJEPAError(
            f"{file.parent.name}/{file.name} of the live record {reason}; restore it from a backup or from the Hub"
        ) from error
    if dict(frame.schema) != {name: pl.Schema({name: kind})[name] for name, kind in schema.items()}:
        raise FinJEPAError(f"{file.parent.name}/{file.name} of the live record has other columns than it should")
    return frame
