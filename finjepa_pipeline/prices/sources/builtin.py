"""Sources that need nothing: the sample of real stocks, and a generated market with known truth."""

import hashlib
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from finjepa_model.files import folder_written_whole, to_json, written_whole
from finjepa_pipeline.prices.sources.base import PriceSource, Snapshot, SourceFile
from finjepa_pipeline.prices.synthetic import SyntheticConfig, generate, write_bars

GENERATOR_VERSION = "2"  # raise it when the same config would give another synthetic market


@dataclass(frozen=True)
class SampleSource(PriceSource):
    """The 20 US stocks that ship inside skfolio: real adjusted closes 1990-2022, with no network.

    `folder` keeps the closes as Parquet in the Hub schema (symbol, date, close).
    """

    folder: Path

    @property
    def place(self) -> str:
        return "sample"

    def snapshot(self) -> Snapshot:
        # Named after the package's version: importing skfolio costs seconds, and its data change only with a release.
        name = f"skfolio {version('skfolio')}"
        return Snapshot(name, (SourceFile("closes", hashlib.sha256(name.encode()).hexdigest()),))

    def fetch(self, snapshot: Snapshot) -> list[Path]:
        path = self.folder / f"{snapshot.version.replace(' ', '-')}.parquet"
        if not path.is_file():
            import polars as pl
            from skfolio.datasets import load_sp500_dataset

            wide = pl.from_pandas(load_sp500_dataset().reset_index())
            closes = wide.unpivot(index="Date", variable_name="symbol", value_name="close").select(
                "symbol", pl.col("Date").dt.date().alias("date"), "close"
            )
            with written_whole(path) as beside:
                closes.sort("symbol", "date").write_parquet(beside)
        return [path]


@dataclass(frozen=True)
class SyntheticSource(PriceSource):
    """The market of a config. Its bars lie in a folder below `folder`, named by its hash."""

    config: SyntheticConfig
    folder: Path

    @property
    def place(self) -> str:
        usual = asdict(SyntheticConfig(self.config.variant, self.config.seed))
        sized = "".join(f":{name}={value}" for name, value in asdict(self.config).items() if value != usual[name])
        return f"synthetic:{self.config.variant}:{self.config.seed}{sized}"

    def snapshot(self) -> Snapshot:
        made_of = {"generator": GENERATOR_VERSION, **asdict(self.config)}
        made = hashlib.sha256(to_json(made_of, sort_keys=True).encode()).hexdigest()
        return Snapshot(made, (SourceFile("bars", made),))

    def fetch(self, snapshot: Snapshot) -> list[Path]:
        """Generate the market unless it is there."""
        kept = self.folder / snapshot.version[:16]
        if not kept.exists():
            with folder_written_whole(kept) as beside:
                write_bars(generate(self.config), beside)
        return sorted(kept.glob("bars-*.parquet"))
