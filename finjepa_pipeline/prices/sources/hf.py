"""A data set on the Hugging Face Hub in the Hub schema, at a commit."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import written_whole
from finjepa_model.hub import patiently, unread
from finjepa_pipeline.prices.sources.base import PriceSource, Snapshot, SourceFile, with_folders

SUFFIXES = (".parquet", ".csv")  # read as they are, the first kind that there is
TRIES = 4
LONGEST_WAIT_S = 60.0

T = TypeVar("T")


@dataclass(frozen=True)
class HubSource(PriceSource):
    """`cache` keeps the shards, as the Hub client lays them out; `revision` is a branch, a tag or a commit."""

    repo_id: str
    cache: Path
    revision: str | None = None

    @property
    def place(self) -> str:
        return f"hf:{self.repo_id}" + (f"@{self.revision}" if self.revision else "")

    def snapshot(self) -> Snapshot:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        api = HfApi()
        commit = self._asked(lambda: api.dataset_info(self.repo_id, revision=self.revision).sha)
        if commit is None:
            raise FinJEPAError(f"{self.place} has no commit yet")
        tree = self._asked(
            lambda: list(api.list_repo_tree(self.repo_id, recursive=True, revision=commit, repo_type="dataset"))
        )
        files = sorted((entry for entry in tree if isinstance(entry, RepoFile)), key=lambda entry: entry.path)
        for suffix in SUFFIXES:
            shards = [file for file in files if file.path.endswith(suffix)]
            if shards:
                hashes = (
                    with_folders(shard.path, shard.lfs.sha256 if shard.lfs else shard.blob_id) for shard in shards
                )
                unread = tuple(file.path for file in files if file.path.endswith(SUFFIXES) and file not in shards)
                return Snapshot(commit, tuple(map(SourceFile, (shard.path for shard in shards), hashes)), unread)
        # `datasets` reads it; the commit stands for its content
        return Snapshot(commit, (SourceFile("datasets", commit),))

    def fetch(self, snapshot: Snapshot) -> list[Path]:
        return [
            self._converted(snapshot.version)
            if file.name == "datasets"
            else self._asked(lambda name=file.name: self._download(name, snapshot.version))
            for file in snapshot.files
        ]

    def _download(self, name: str, commit: str) -> Path:
        # here: only a download needs the client
        from huggingface_hub import hf_hub_download

        # By the full commit: a cached shard asks nothing, and an older one is never given in its place.
        return Path(hf_hub_download(self.repo_id, name, repo_type="dataset", revision=commit, cache_dir=self.cache))

    def _converted(self, commit: str) -> Path:
        """A data set that is neither Parquet nor CSV, as one Parquet file that `datasets` wrote from Arrow."""
        path = self.cache / "converted" / f"{commit}.parquet"
        if not path.is_file():
            import datasets

            splits = self._asked(
                lambda: datasets.load_dataset(self.repo_id, revision=commit, cache_dir=str(self.cache / "datasets"))
            )
            with written_whole(path) as beside:
                datasets.concatenate_datasets(list(splits.values())).to_parquet(beside)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        return path

    def _asked(self, question: Callable[[], T]) -> T:
        """The answer of the Hub; passing trouble is waited out, the rest is said in one line."""
        return patiently(question, self._explained, TRIES, LONGEST_WAIT_S)

    def _explained(self, error: Exception) -> FinJEPAError:
        from huggingface_hub import constants

        of_library = type(error).__module__.startswith(("datasets", "pyarrow")) or isinstance(
            error, ValueError | KeyError
        )
        if of_library and type(error).__name__ != "DatasetNotFoundError" and not constants.is_offline_mode():
            reason = " ".join(str(error).split())[:200]
            return FinJEPAError(f"{self.place} is not a data set that `datasets` can read: {reason}")
        return unread(error, self.repo_id, "dataset")
