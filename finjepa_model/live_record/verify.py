"""`finjepa verify`: recomputes a live record's hashes and scores from its files, and says whether they agree.

The model package alone is enough: `python -m finjepa_model.live_record.verify [REPO]`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from polars.testing import assert_frame_equal

from finjepa_model.errors import FinJEPAError
from finjepa_model.hub import RepoKind, unread
from finjepa_model.live_record.chain import FOLDER, LiveRecord
from finjepa_model.live_record.scores import SCORES, Outcomes, gaps, score_record


@dataclass(frozen=True)
class Verification:
    """What a verification found; `broken` is empty where everything agrees."""

    place: str
    nights: int
    text: str
    broken: tuple[str, ...]


def verify(folder: Path, place: str | None = None) -> Verification:
    """Recompute the chain and every score of the record in a folder.

    Args:
        place: what to call it.

    Raises:
        FinJEPAError: if there is no record.
    """
    record, place = LiveRecord(folder), place or str(folder)
    nights = record.nights
    if not nights.height:
        raise FinJEPAError(f"there is no live record in {place}; a nightly run writes one after its decision")
    broken = record.broken()
    if not broken:
        broken = _other_scores(record)
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        text = f"the live record of {place} does not agree with itself: {broken[0]}{more}"
        return Verification(place, nights.height, text, tuple(broken))
    scores, missed = pl.read_parquet(folder / "scores.parquet"), gaps(record, Outcomes.of(record))
    text = (
        f"the live record of {place} agrees: {nights.height} {'night' if nights.height == 1 else 'nights'} from "
        f"{record.sessions[0]} to {record.sessions[-1]} ({int(nights['hindsight'].sum())} in hindsight, {len(missed)} missed), "
        f"{int(scores['n'].sum()):,} scored outcomes, last hash {record.last_hash}"
    )
    return Verification(place, nights.height, text, ())


def _other_scores(record: LiveRecord) -> list[str]:
    file = record.folder / "scores.parquet"
    if not file.is_file():
        return ["scores.parquet is missing"]
    try:
        found = pl.read_parquet(file)
        assert_frame_equal(found, score_record(record), rel_tol=1e-9, abs_tol=1e-12)
    except (OSError, pl.exceptions.PolarsError, AssertionError) as error:
        return [f"scores.parquet is not what follows from the nights ({' '.join(str(error).split())[:150]})"]
    assert set(found.columns) == set(SCORES)
    return []


def record_folder(place: str) -> Path:
    """The folder of a record: of a home or a release, the record itself, or that of a Hub repository of models or data sets.

    Raises:
        FinJEPAError: if it is none of these.
    """
    folder = Path(place)
    if folder.is_dir():
        inside = [folder, folder / FOLDER]
        return next((one for one in inside if (one / "nights.parquet").is_file()), folder)
    if place.count("/") != 1 or place.startswith((".", "/", "~")):
        raise FinJEPAError(f"there is no folder {place}, and it is not a Hub repository id such as owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import httpx

    kinds: tuple[RepoKind, ...] = ("model", "dataset")
    for kind in kinds:
        try:
            found = Path(snapshot_download(place, repo_type=kind, allow_patterns=[f"{FOLDER}/**"]))
        except RepositoryNotFoundError:
            continue
        except (httpx.HTTPError, OSError, ValueError) as error:
            raise unread(error, place, kind) from error
        if (found / FOLDER / "nights.parquet").is_file():
            return found / FOLDER
    raise FinJEPAError(
        f"there is no live record in a Hub repository {place} that you may read; check the name, or `hf auth login`"
    )


def main(arguments: list[str]) -> int:
    """The exit status: 0 where everything agrees, 1 where not, 2 for a wrong call."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: finjepa verify REPO (a folder, or owner/name on the Hub)", file=sys.stderr)  # noqa: T201
        return 2
    try:
        found = verify(record_folder(arguments[0]), arguments[0])
    except FinJEPAError as error:
        print(f"finjepa: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(found.text, file=sys.stderr if found.broken else sys.stdout)
    return bool(found.broken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
