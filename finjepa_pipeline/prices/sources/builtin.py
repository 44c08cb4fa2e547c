"""Sources that need nothing: the sample of real stocks, and a generated market with known truth."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from finjepa_model.files import to_json
from finjepa_pipeline.prices.sources.base import Snapshot, SourceFile, sha256_of
from finjepa_pipeline.prices.synthetic import SyntheticConfig, generate, write_bars

GENERATOR_VERSION = "2"  # raise it when the same config would give another market


@dataclass(frozen=True)
class SampleSource:
    """The 20 US stocks that ship inside skfolio: real adjusted closes 1990-2022, with no network.

    `folder` keeps the closes as Parquet in the Hub schema (symbol, date, close).
    """

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


@dataclass(frozen=True)
class SyntheticSource:
    """The market of a config. The bars and, in `truth/`, what is known about them lie in a folder named by its hash.

    Attributes:
        folder: where markets are kept.
    """

    config: SyntheticConfig
    folder: Path
    source: str = "synthetic"

    @property
    def place(self) -> str:
        sized = "".join(f":{name}={value}" for name, value in self._size.items())
        return f"synthetic:{self.config.variant}:{self.config.seed}{sized}"

    @property
    def options(self) -> dict[str, object]:
        config = self.config
        size = {f"synthetic_{name}": value for name, value in self._size.items()}
        return {"data_source": "synthetic", "synthetic_variant": config.variant, "synthetic_seed": config.seed, **size}

    @property
    def _size(self) -> dict[str, int]:
        """What of the size is not the usual."""
        usual = SyntheticConfig()
        sizes = {name: getattr(self.config, name) for name in ("assets", "sessions")}
        return {name: value for name, value in sizes.items() if value != getattr(usual, name)}

    @property
    def version(self) -> str:
        """Hash of the config and of the generator."""
        made_of = {"generator": GENERATOR_VERSION, **asdict(self.config)}
        return hashlib.sha256(to_json(made_of, sort_keys=True).encode()).hexdigest()

    @property
    def kept(self) -> Path:
        """The folder of this market, made by `fetch`."""
        return self.folder / self.version[:16]

    def snapshot(self) -> Snapshot:
        return Snapshot(self.version, (SourceFile("bars", self.version),))

    def fetch(self, snapshot: Snapshot, files: Sequence[SourceFile]) -> list[Path]:
        """Generate the market unless it is there. All of it is one file: each version of it is new as a whole."""
        if not files:
            return []
        if not self.kept.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.folder))
            try:
                write_bars(generate(self.config), beside)
                os.replace(beside, self.kept)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        return sorted(self.kept.glob("bars-*.parquet"))

    def still_is(self, snapshot: Snapshot) -> bool:
        """A folder that is named by what made it does not change."""
        return snapshot.version == self.version
