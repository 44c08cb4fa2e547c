"""How a text file is put into its place: whole, or not at all."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write `text` beside `path` and rename it into it; folders on the way are made.

    The name of the file beside carries the process, so that two writers never share it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
