"""The model half of a checkpoint folder: `model.safetensors` and `config.json`, on disk and on the Hub the same. No pickles."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from finjepa_model.config import FinJEPAConfig
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import LARGEST_JSON, read_json, write_text, written_whole
from finjepa_model.hub import unread

if TYPE_CHECKING:
    from torch import Tensor

    from finjepa_model.world_model import WorldModel

CHECKPOINT_FILES = (
    "model.safetensors",
    "config.json",
    "normalization.json",
    "metrics.json",
    "lineage.json",
    "README.md",
)
LARGEST_WEIGHTS = 16 * 2**30  # bytes; `large` has a 60th of it
_RETIRED = ("zero_shot.", "heads.")  # tensors of earlier versions; `FinJEPAConfig.from_dict` leaves their settings out
_BRANCH = "td."  # and those of a branch of an earlier version


ModelT = TypeVar("ModelT", bound="WorldModel")


def save_model(model: "WorldModel", folder: Path) -> None:
    """Write both files; each is written beside its place and renamed into it."""
    from safetensors.torch import save_file

    # a copy without shared storage, on the CPU: safetensors refuses anything else
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
    with written_whole(folder / "model.safetensors") as beside:
        save_file(tensors, beside)
    write_text(folder / "config.json", model.config.to_json() + "\n")


def load_model(cls: type[ModelT], dir_or_repo: str | Path, revision: str | None) -> ModelT:
    """Load a checkpoint that may come from anybody: sizes are compared before memory is taken, and what is not finite is
    refused."""
    import torch  # here, as everywhere in this module: others read its constants
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = resolve_checkpoint(dir_or_repo, revision)
    config = read_config(folder)
    _check_normalization(folder, config)
    file = folder / "model.safetensors"
    with torch.device("meta"):  # shapes without memory; buffers that no file has are made of numbers, on the CPU
        model = cls(config)
    expected = model.state_dict()
    try:
        retired = _RETIRED if config.td.enabled else (*_RETIRED, _BRANCH)
        found = {name: tensor for name, tensor in load_file(file).items() if not name.startswith(retired)}
    except (SafetensorError, OSError) as error:
        raise FinJEPAError(f"{file} cannot be read ({error}); fetch the checkpoint again") from error
    if not any(name.startswith("risk.") for name in found):  # of a version without a risk model: nothing is fitted
        found |= {f"risk.{name}": x for name, x in type(model.risk)(*model.risk.shape).state_dict().items()}
    wrong = [name for name in expected | found if _form(expected.get(name)) != _form(found.get(name))]
    if wrong:
        raise FinJEPAError(
            f"{file} does not fit its config.json: {len(wrong)} tensors are missing, unknown or of another shape or type, "
            f"the first is {wrong[0][:120]!r}; train it again, or use the FinJEPA that made it"
        )
    weights = {name: tensor.clone() for name, tensor in found.items()}  # which lie in the file no more
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise FinJEPAError(
                f"{file} holds numbers that are not finite, in {name}; train or fetch the checkpoint again"
            )
    model.load_state_dict(weights, assign=True)
    return model.eval()


def read_config(folder: Path) -> FinJEPAConfig:
    """The config of a checkpoint folder.

    Raises:
        FinJEPAError: if it is missing, no standard JSON, or outside the bounds of `finjepa_model.config`.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FinJEPAError(f"{folder} is not a FinJEPA checkpoint: {name} is missing")
    return FinJEPAConfig.from_dict(_json(folder / "config.json"))


def _check_normalization(folder: Path, config: FinJEPAConfig) -> None:
    """Refuse the file, where there is one, if it is damaged or has other channels than the config."""
    file = folder / "normalization.json"
    found = _json(file) if file.is_file() else {}
    channels = found.get("channels", []) if isinstance(found, dict) else None
    if isinstance(channels, list):
        names = [channel.get("name") for channel in channels if isinstance(channel, dict)]
        if "channels" not in found or names == list(config.model.channels):
            return
    raise FinJEPAError(f"{file} has other channels than config.json; fetch or train the checkpoint again")


def _json(file: Path) -> Any:
    try:
        return read_json(file)
    except (OSError, ValueError) as error:
        raise FinJEPAError(f"{file} cannot be read ({error}); fetch or train the checkpoint again") from error


def _form(tensor: "Tensor | None") -> object:
    return None if tensor is None else (tensor.shape, tensor.dtype)


def resolve_checkpoint(dir_or_repo: str | Path, revision: str | None = None) -> Path:
    """The local folder of a checkpoint; what is not a folder is fetched from the Hugging Face Hub.

    Args:
        dir_or_repo: a folder, owner/name, or owner/name@commit.
        revision: branch, tag or whole commit; the newest where there is none.

    Raises:
        FinJEPAError: if it is neither, with the way out.
    """
    folder = Path(dir_or_repo)
    if folder.is_dir():
        return folder
    name, _, commit = str(dir_or_repo).partition("@")
    revision = revision or commit or None
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FinJEPAError(
            f"there is no checkpoint folder {name} (and it is not a Hub repository id such as owner/name)"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import httpx

    try:
        _refuse_large(name, revision)
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(CHECKPOINT_FILES)))
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise unread(error, name) from error


def _refuse_large(repo_id: str, revision: str | None) -> None:
    """Look at the sizes before anything is downloaded; without the Hub only what is here already can be had."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import httpx

    if constants.is_offline_mode():
        return
    try:
        files = HfApi().get_paths_info(repo_id, list(CHECKPOINT_FILES), revision=revision)
    except httpx.TransportError:
        return
    for file in files:
        most = LARGEST_WEIGHTS if file.path == "model.safetensors" else LARGEST_JSON
        if isinstance(file, RepoFile) and file.size > most:
            raise FinJEPAError(
                f"{file.path} of the Hub repository {repo_id} has {file.size:,} bytes; at most {most:,} are read"
            )
