"""Files and folders: written whole or not at all, and read with limits, because a checkpoint may come from anybody."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LARGEST_JSON = 16 * 2**20  # bytes of a file of a checkpoint; real ones have a few thousand


def to_json(value: Any, **options: Any) -> str:
    """Standard JSON: a number that is not finite is undefined, and written as null. `options` are those of json.dumps."""
    return json.dumps(_defined(value), allow_nan=False, **options)


def from_json(text: str) -> Any:
    """Read standard JSON.

    Raises:
        ValueError: for what is not JSON, for NaN and infinities, a key that stands twice, or nesting that is too deep.
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """Read a JSON file of a checkpoint.

    Raises:
        OSError: if it cannot be read.
        ValueError: see `from_json`; or if it is larger than any real one.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_JSON + 1)
    if len(content) > LARGEST_JSON:
        raise ValueError(f"it is larger than {LARGEST_JSON >> 20} MiB")
    return from_json(content.decode("utf-8"))


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A place beside `path`, renamed into it when the block ends well and removed otherwise; folders on the way are made.

    Its name carries the process, so that two writers never share it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """As `written_whole`, of a folder: an empty one to fill. Where another process was faster, its folder stays."""
    beside = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        try:
            os.replace(beside, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    with written_whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, sort_keys: bool = True) -> None:
    """Write what a person may read, too."""
    write_text(path, to_json(content, indent=2, sort_keys=sort_keys) + "\n")


def _defined(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _defined(item) for key, item in value.items()}
    return [_defined(item) for item in value] if isinstance(value, list | tuple) else value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text[:20])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return found
