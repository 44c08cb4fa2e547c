"""Parquet or CSV files in the Hub schema: a folder, a glob or one file."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.sources.base import Snapshot, SourceFile, version_of
from finjepa_pipeline.prices.sources.hashes import HashCache

SUFFIXES = (".parquet", ".csv")


@dataclass(frozen=True)
class FilesSource:
    """`path` is a folder (its .parquet and .csv files, not those of folders within), a glob, or a file."""

    path: str
    hash_file: Path
    source: str = "files"

    @property
    def _place(self) -> str:
        return str(Path(self.path).expanduser().absolute())

    @property
    def place(self) -> str:
        return f"files:{self._place}"

    @property
    def options(self) -> dict[str, object]:
        return {"data_source": "files", "path": self._place}

    def snapshot(self) -> Snapshot:
        paths = self._paths()
        try:
            hashes = HashCache(self.hash_file).hashes(paths)
        except OSError as error:
            raise FinJEPAError(f"cannot read {error.filename}: {error.strerror}") from error
        files = tuple(SourceFile(str(path), sha256) for path, sha256 in zip(paths, hashes, strict=True))
        return Snapshot(version=version_of(files), files=files)

    def fetch(self, snapshot: Snapshot, files: Sequence[SourceFile]) -> list[Path]:
        return [Path(file.name) for file in files]

    def still_is(self, snapshot: Snapshot) -> bool:
        return self.snapshot() == snapshot

    def _paths(self) -> list[Path]:
        place = Path(self._place)
        try:
            if place.is_dir():
                paths = [path for path in place.iterdir() if path.suffix.lower() in SUFFIXES]
            elif glob.has_magic(self._place):
                paths = [Path(found) for found in glob.glob(self._place, recursive=True)]
            elif place.exists():
                paths = [place]
            else:
                raise FinJEPAError(f"there is nothing at {place}; give a folder, a glob or a .parquet or .csv file")
        except OSError as error:
            raise FinJEPAError(f"cannot read {place}: {error.strerror}") from error
        paths = sorted(path for path in paths if not path.name.startswith("."))
        if not paths:
            raise FinJEPAError(f"no .parquet or .csv file in {place}; is it the right folder?")
        for path in paths:
            if path.suffix.lower() not in SUFFIXES:
                raise FinJEPAError(f"{path} is neither .parquet nor .csv")
            if not path.is_file():
                raise FinJEPAError(f"{path} is not a file that can be read")
        return paths
