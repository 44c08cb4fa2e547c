"""The 20 US stocks that ship inside skfolio: real adjusted closes 1990-2022, with no network."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from finjepa_pipeline.prices.sources.base import Snapshot, SourceFile, sha256_of


@dataclass(frozen=True)
class SampleSource:
    """`folder` keeps the closes as Parquet in the Hub schema (symbol, date, close)."""

    folder: Path
    source: str = "sample"
    place: str = "sample"

    @property
    def options(self) -> dict[str, object]:
        return {"data_source": "sample"}

    def snapshot(self) -> Snapshot:
        # Named after the package's version: importing skfolio costs seconds, and its data change only with a release.
        path = self.folder / f"skfolio-{version('skfolio')}.parquet"
        if not path.is_file():
            self._write(path)
        return Snapshot(version=f"skfolio {version('skfolio')}", files=(SourceFile(path.name, sha256_of(path)),))

    def fetch(self, snapshot: Snapshot, files: Sequence[SourceFile]) -> list[Path]:
        return [self.folder / file.name for file in files]

    def still_is(self, snapshot: Snapshot) -> bool:
        return True  # nothing but this class writes there

    def _write(self, path: Path) -> None:
        import polars as pl
        from skfolio.datasets import load_sp500_dataset

        wide = pl.from_pandas(load_sp500_dataset().reset_index())
        closes = (
            wide.unpivot(index="Date", variable_name="symbol", value_name="close")
            .select("symbol", pl.col("Date").dt.date().alias("date"), "close")
            .sort("symbol", "date")
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
        closes.write_parquet(temporary)
        os.replace(temporary, path)
