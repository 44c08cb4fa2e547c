"""What keeps trainings from being too many: one at a time on a device, and none without the process that wanted it."""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.training.exchange import DEVICE_NAME

_LOCK_PATIENCE_S = 30.0
_GRACE_S = 15.0  # Dagster itself waits 20 s for a step that it cancels


@contextlib.contextmanager
def only_training_on(device: torch.device, folder: Path, patience_s: float = _LOCK_PATIENCE_S) -> Iterator[None]:
    """Hold the lock of a device: two trainings on one only slow each other down, or run out of its memory.

    Raises:
        FinJEPAError: if another training still holds it after `patience_s`.
    """
    lock = folder / f".training-{_device_name(device)}.lock"
    deadline = time.monotonic() + patience_s
    with lock.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise FinJEPAError(f"another training holds {lock}; wait for it, or stop it") from error
                time.sleep(0.5)
        yield


def end_with(launcher: int, stop: Callable[[], None]) -> None:
    """Call `stop` when the launcher or this process's parent is gone, and end the hard way if that is not enough.

    A launcher that was killed cannot stop its training, and a torchrun that was killed cannot stop its ranks.

    Args:
        launcher: process id.
    """
    parent = os.getppid()

    def watch() -> None:
        while _is_alive(launcher) and os.getppid() == parent:
            time.sleep(0.5)
        stop()
        time.sleep(_GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="launcher-watch").start()


def _is_alive(pid: int) -> bool:
    """A process that was killed but not yet waited for by its own parent is not alive."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except ProcessLookupError:
        return False
    except OSError:  # no /proc: not Linux
        return True


def _device_name(device: torch.device) -> str:
    """The same for every process that uses the device, however it counts its own."""
    if device.type == "cuda":
        return f"cuda-{torch.cuda.get_device_properties(device).uuid}"
    return os.environ.get(DEVICE_NAME) or f"cpu-{os.environ.get('LOCAL_RANK', '0')}"
