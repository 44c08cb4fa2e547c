"""Hashes of local files, remembered for as long as the file system says that a file is the same."""

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from finjepa_model.files import to_json
from finjepa_pipeline.prices.sources.base import sha256_of

_SETTLED_NS = 2_000_000_000  # a file changed more recently may change again within the clock's grain


class HashCache:
    """Hashing 25 million rows costs more than adding a day to them. The status-change time cannot be set by hand, so
    that equal (size, mtime, ctime, inode) mean an equal file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def hashes(self, paths: Sequence[Path]) -> list[str]:
        """SHA-256 of each file.

        Raises:
            OSError: if one cannot be read.
        """
        known: dict[str, list[object]] = {}
        with contextlib.suppress(OSError, ValueError):  # a cache that cannot be read is an empty one
            known = json.loads(self._path.read_text(encoding="utf-8"))
        found: dict[str, list[object]] = {}
        for path in paths:
            status = path.stat()
            signature = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
            entry = known.get(str(path))
            if entry is None or entry[:-1] != signature:
                settled = time.time_ns() - status.st_ctime_ns > _SETTLED_NS
                entry = [*(signature if settled else [0, 0, 0, 0]), sha256_of(path)]
            found[str(path)] = entry
        if any(known.get(name) != entry for name, entry in found.items()):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_name(f".tmp-{os.getpid()}-{self._path.name}")
            temporary.write_text(to_json({**known, **found}), encoding="utf-8")
            os.replace(temporary, self._path)
        return [str(found[str(path)][-1]) for path in paths]
