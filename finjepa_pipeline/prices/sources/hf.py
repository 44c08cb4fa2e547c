"""A data set on the Hugging Face Hub in the Hub schema, at a commit."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import written_whole
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

    @property
    def options(self) -> dict[str, object]:
        pinned = {"revision": self.revision} if self.revision else {}
        return {"data_source": "hf", "dataset_name": self.repo_id, **pinned}

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
        for attempt in range(TRIES):
            try:
                return question()
            except Exception as error:
                wait_s = _pause(error, attempt)
                if wait_s is None or attempt == TRIES - 1:
                    raise self._explained(error) from error
                time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _explained(self, error: Exception) -> FinJEPAError:
        from huggingface_hub import constants
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # what the client met before it looked into its cache
        status = getattr(getattr(error, "response", None), "status_code", None)
        page = f"{constants.ENDPOINT}/datasets/{self.repo_id}"
        gated = f"{self.place} is gated; accept its terms at {page}, then run `hf auth login`"
        missing = (
            f"there is no data set {self.repo_id} on {constants.ENDPOINT}, or it is private; if so, `hf auth login`"
        )
        by_class = {
            OfflineModeIsEnabled: f"{self.place} is not in the cache and HF_HUB_OFFLINE is set; unset it once to fetch the data",
            GatedRepoError: gated,
            RevisionNotFoundError: f"{self.place} has no such revision; see {page}/commits/main",
            RepositoryNotFoundError: missing,
            LocalEntryNotFoundError: f"{self.place} cannot be reached and is not in the cache; check the network, then try again",
            EntryNotFoundError: f"a shard of {self.place} has disappeared; the data set may be changing, try again later",
        }
        known = [text for kind, text in by_class.items() if isinstance(error, kind)]
        known += [by_class[EntryNotFoundError]] if status == 404 else []
        if constants.HF_HUB_OFFLINE:
            text = by_class[OfflineModeIsEnabled]
        elif known:
            text = known[0]
        elif type(error).__name__ == "DatasetNotFoundError":  # of `datasets`
            text = gated if "is a gated dataset" in str(error) else missing
        elif status == 401:
            text = f"the Hub does not accept your token for {self.place}; run `hf auth login` or renew HF_TOKEN"
        elif status is not None:
            text = f"the Hub answers {status} for {self.place}; try again later"
        elif type(error).__module__.startswith(("datasets", "pyarrow")) or isinstance(error, (ValueError, KeyError)):
            text = f"{self.place} is not a data set that `datasets` can read: {' '.join(str(error).split())[:200]}"
        else:
            text = f"{self.place} cannot be read ({type(error).__name__}); check the network, then try again"
        return FinJEPAError(text)


def _pause(error: Exception, attempt: int) -> float | None:
    """Seconds to wait before the next try, or None where trying again is no use."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    if isinstance(error, OfflineModeIsEnabled):
        return None
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if isinstance(cause, HfHubHTTPError):
        if cause.response is None or cause.response.status_code not in (408, 429, 500, 502, 503, 504):
            return None
        asked = cause.response.headers.get("Retry-After", "")
        return min(float(asked) if asked.isdigit() else 2.0**attempt / 2, LONGEST_WAIT_S)
    return 2.0**attempt / 2 if isinstance(cause, httpx.HTTPError) else None
