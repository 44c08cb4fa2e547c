"""Which checkpoint a user means: resolved once, where a command begins, to a folder and a name that stands for its content."""

import json
from dataclasses import dataclass
from pathlib import Path

from finjepa_model.checkpoint import resolve_checkpoint
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.run import checkpoint_here, content_hash


@dataclass(frozen=True)
class NamedCheckpoint:
    """A checkpoint to act with.

    Attributes:
        folder: where its files lie on this machine.
        name: what its results are stored under. The id of a checkpoint that this home trained; owner/name@commit of the Hub;
            NAME@HASH of any other folder, and of one that holds other files than this home trained.
    """

    folder: Path
    name: str


def named_checkpoint(settings: Settings, asked: str | Path) -> NamedCheckpoint:
    """The checkpoint of an id of this home, of a folder or of a Hub repository, there at its newest commit or at the one in
    owner/name@commit.

    Raises:
        FinJEPAError: if there is none.
    """
    own = checkpoint_here(settings, str(asked))
    folder = (own or resolve_checkpoint(asked)).absolute()
    if own is None and not Path(asked).is_dir():  # the client names the folder of a snapshot after its commit
        return NamedCheckpoint(folder, f"{str(asked).partition('@')[0]}@{folder.name}")
    content = content_hash(folder)
    if folder.parent.resolve() == settings.checkpoints.resolve() and _recorded(folder) in (
        None,
        (folder.name, content),
    ):
        return NamedCheckpoint(folder, folder.name)
    return NamedCheckpoint(folder, f"{folder.name}@{content[:12]}")


def _recorded(folder: Path) -> tuple[str, str] | None:
    """The id and the content with which a checkpoint was trained; None in checkpoints of older versions."""
    try:
        made = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))
        return str(made["checkpoint"]), str(made["content"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
