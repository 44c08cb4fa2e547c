"""A release folder: the files of a checkpoint with its model card, named by their content."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from finjepa_model.checkpoint import CHECKPOINT_FILES
from finjepa_model.files import read_json, to_json, write_text
from finjepa_pipeline.publishing.plain import places_of, public

# What makes the model act. The card, the metrics and the lineage say when and by whom it was made, and do not count.
CONTENT = ("config.json", "model.safetensors", "normalization.json")


@dataclass(frozen=True)
class Package:
    """A release that is ready to go out.

    Attributes:
        content_hash: sha256 over the files in `CONTENT`; `tag` is made of it, so equal content has an equal tag.
    """

    folder: Path
    checkpoint: str
    tag: str
    content_hash: str

    @property
    def title(self) -> str:
        """Of the commit on the Hub: by it a later look recognises the release."""
        return f"Release {self.tag}"

    @property
    def files(self) -> list[Path]:
        return [self.folder / name for name in CHECKPOINT_FILES]


def package_of(checkpoint: Path, releases: Path) -> Package:
    """The package that a checkpoint folder makes; its folder need not be there yet."""
    digest = hashlib.sha256()
    for name in CONTENT:
        digest.update(f"{name} {sha256(checkpoint / name)}\n".encode())
    content_hash = digest.hexdigest()
    lineage = read_json(checkpoint / "lineage.json")
    last_date = lineage["data"].get("last_date")
    tag = "-".join(part for part in (last_date, content_hash[:8]) if part)
    return Package(releases / tag, checkpoint.name, tag, content_hash)


def write_package(package: Package, checkpoint: Path, card: str, home: Path) -> None:
    """Copy the checkpoint with its card beside the release folder and rename it into place; the lineage without paths of this
    machine."""
    beside = package.folder.with_name(f".tmp-{package.tag}-{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name in CHECKPOINT_FILES:
        if name not in ("README.md", "lineage.json"):
            shutil.copyfile(checkpoint / name, beside / name)
    (beside / "README.md").write_text(card, encoding="utf-8")
    lineage = read_json(checkpoint / "lineage.json")
    write_text(
        beside / "lineage.json", to_json(public(lineage, places_of(lineage, home)), indent=2, sort_keys=True) + "\n"
    )
    try:
        os.replace(beside, package.folder)
    except OSError:
        shutil.rmtree(beside)
        if not package.folder.is_dir():  # otherwise another process was faster with the same content
            raise


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
