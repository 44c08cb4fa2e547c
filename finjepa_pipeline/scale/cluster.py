"""The connection to a Ray cluster, and what a user is told when there is none."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

from finjepa_model.errors import FinJEPAError

_PATIENCE_S = 5.0
_WORKERS_THAT_MAY_DIE = 3  # under one task
_MEMORY = {"object_store_memory": "object store", "memory": "memory"}


def ray_module() -> Any:
    """The package ray.

    Raises:
        FinJEPAError: if it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise FinJEPAError(
            "FINJEPA_COMPUTE names a Ray cluster and ray is not installed; pip install 'finjepa[ray]', "
            "or FINJEPA_COMPUTE=local"
        ) from error
    return ray


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """This process as a driver of the cluster; the block gets the package. What it started there ends with the block.

    Raises:
        FinJEPAError: if ray is not installed, or there is no cluster at the address.
    """
    ray = ray_module()
    _listens(address)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(address=address, namespace="finjepa", log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        raise _no_cluster(address, str(error).strip().splitlines()[0]) from error
    try:
        _restore(handlers)  # Ray puts its own in their place; how a run is cancelled is Dagster's affair
        yield ray
    finally:
        ray.shutdown()


def as_task(ray: Any, function: Callable[..., Any]) -> Any:
    """The function as a task of one CPU, which is given to another worker when its own dies."""
    return ray.remote(num_cpus=1, max_retries=_WORKERS_THAT_MAY_DIE)(function)


def resources() -> str:
    """What the cluster has, in words."""
    ray = ray_module()
    total = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    parts = [f"{nodes} nodes", f"{total.get('CPU', 0):g} CPUs", f"{total.get('GPU', 0):g} GPUs"]
    parts += [f"{total[name] / 1e9:.1f} GB {what}" for name, what in _MEMORY.items() if name in total]
    return ", ".join(parts)


def processes_for(processes: int | None) -> int:
    """How many ranks train: as many as are asked for, or one for each GPU of the cluster, or one on a CPU."""
    return processes or max(int(ray_module().cluster_resources().get("GPU", 0)), 1)


def device() -> str:
    """What ranks compute on, in words, as lineage has it."""
    total = ray_module().cluster_resources()
    kinds = sorted(name.partition(":")[2] for name in total if name.startswith("accelerator_type:"))
    return f"cuda: {', '.join(kinds) or 'GPU'}" if total.get("GPU") else "cpu"


def _listens(address: str) -> None:
    """Ray itself waits two minutes for an address at which nobody is."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()
    except OSError as error:
        raise _no_cluster(address, error.strerror or "no answer") from error


def _no_cluster(address: str, reason: str) -> FinJEPAError:
    return FinJEPAError(
        f"there is no Ray cluster at FINJEPA_COMPUTE={address} ({reason}); start one (`ray start --head`), "
        "or set FINJEPA_COMPUTE=local"
    )


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    with contextlib.suppress(ValueError):  # not in the main thread: Ray has not touched them either
        for number, handler in handlers.items():
            signal.signal(number, handler)
