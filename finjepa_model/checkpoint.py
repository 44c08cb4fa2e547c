"""The model half of a checkpoint folder: `model.safetensors` and `config.json`, on disk and on the Hub the same. No pickles."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from finjepa_model.config import FinJEPAConfig
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import write_text

if TYPE_CHECKING:
    from finjepa_model.world_model import FinJEPA

CHECKPOINT_FILES = (
    "model.safetensors",
    "config.json",
    "normalization.json",
    "metrics.json",
    "lineage.json",
    "README.md",
)


def save_model(model: "FinJEPA", folder: Path) -> None:
    """Write both files; each is written beside its place and renamed into it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / ".model.safetensors.tmp"
    # a copy without shared storage, on the CPU: safetensors refuses anything else
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}, weights)
    os.replace(weights, folder / "model.safetensors")
    write_text(folder / "config.json", model.config.to_json() + "\n")


def load_model(cls: type["FinJEPA"], dir_or_repo: str | Path, revision: str | None) -> "FinJEPA":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = resolve_checkpoint(dir_or_repo, revision)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FinJEPAError(f"{dir_or_repo} is not a FinJEPA checkpoint: {name} is missing")
    model = cls(FinJEPAConfig.from_json((folder / "config.json").read_text(encoding="utf-8")))
    try:
        weights = load_file(folder / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise FinJEPAError(
            f"{folder / 'model.safetensors'} cannot be read ({error}); fetch the checkpoint again"
        ) from error
    expected = model.state_dict()
    wrong = [name for name in expected if name not in weights or weights[name].shape != expected[name].shape]
    wrong += [name for name in weights if name not in expected]
    if wrong:
        raise FinJEPAError(
            f"{folder / 'model.safetensors'} does not fit its config.json: {len(wrong)} tensors are missing, unknown or of "
            f"another shape, the first is {wrong[0]}"
        )
    model.load_state_dict(weights)
    return model.eval()


def resolve_checkpoint(dir_or_repo: str | Path, revision: str | None = None) -> Path:
    """The local folder of a checkpoint; what is not a folder is fetched from the Hugging Face Hub.

    Raises:
        FinJEPAError: if it is neither, with the way out.
    """
    folder = Path(dir_or_repo)
    if folder.is_dir():
        return folder
    name = str(dir_or_repo)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FinJEPAError(
            f"there is no checkpoint folder {name} (and it is not a Hub repository id such as owner/name)"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    from huggingface_hub.utils import httpx

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(CHECKPOINT_FILES)))
    except GatedRepoError as error:
        raise FinJEPAError(
            f"the Hub repository {name} is gated: accept its terms on its page, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise FinJEPAError(
            f"there is no folder and no Hub repository {name} that you may read; check the name, or `hf auth login`"
        ) from error
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise FinJEPAError(
            f"the Hub repository {name} cannot be fetched ({type(error).__name__}); try again later"
        ) from error
