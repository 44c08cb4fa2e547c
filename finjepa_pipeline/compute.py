"""Where heavy work runs: on the cores of this machine, or on the Ray cluster that FINJEPA_COMPUTE names.

Stages call `map`, and know nothing of processes or of Ray. The results are the same bits wherever they are computed.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.store import Artifacts, keep

Job = TypeVar("Job")
Result = TypeVar("Result")

_LOSSES = 3  # of its worker that a task survives
_PATIENCE_S = 5.0  # for the address of a cluster
_ARTIFACTS = "FINJEPA_ARTIFACTS"
_MEMORY = {"object_store_memory": "object store", "memory": "memory"}


@contextlib.contextmanager
def map(
    settings: Settings, function: Callable[[Job], Result], jobs: Sequence[Job], folders: Collection[Path] = ()
) -> Iterator[Iterator[Result]]:
    """Independent tasks, as many at once as there are cores. A task whose worker is killed is done by another worker.

    Whatever is still running when the block is left is ended.

    Args:
        function: of a module, so that another process can import it; it opens what a job names with `local_folder`.
        jobs: names and numbers rather than data, since they are pickled.
        folders: of the home that the jobs read, for nodes of a cluster that do not see the home.

    Yields:
        Results in the order of the jobs. What the function raised is raised where its result would be.

    Raises:
        FinJEPAError: if there is no cluster at the address, or a worker is lost again and again.
    """
    processes = min(settings.processes, len(jobs))
    if settings.ray_address is None and processes <= 1:
        yield (function(job) for job in jobs)
        return
    calls = [pickle.dumps((function, job)) for job in jobs]
    with contextlib.ExitStack() as stack:
        if settings.ray_address is None:
            results = _on_this_machine(calls, processes)
        else:
            for folder in folders:
                keep(settings, folder)
            results = _on_cluster(stack.enter_context(connected(settings.ray_address)), calls, settings.artifacts)
        stack.callback(results.close)
        yield _opened(results)


def local_folder(folder: Path) -> Path:
    """A folder of the home as this process sees it; on a node that does not see the home, a copy from FINJEPA_ARTIFACTS.

    Raises:
        FinJEPAError: if the store has not got it.
    """
    store = os.environ.get(_ARTIFACTS)
    return folder if folder.is_dir() or not store else Artifacts(store).in_place(folder)


def _call(call: bytes, artifacts: str | None = None) -> tuple[bool, Any]:
    """In a worker: whether the function returned something, and that or what it raised, as it can be pickled."""
    if artifacts:
        os.environ[_ARTIFACTS] = artifacts
    try:
        function, job = pickle.loads(call)
        return True, function(job)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # a class of the user's, say
            return False, RuntimeError(f"{type(error).__name__}: {error}")
        return False, error


def _opened(results: Iterator[tuple[bool, Any]]) -> Iterator[Any]:
    for returned, value in results:
        if not returned:
            raise value
        yield value


def _on_this_machine(calls: Sequence[bytes], processes: int) -> Generator[tuple[bool, Any]]:
    """By a pool of processes; a new pool goes on when a worker was killed."""
    done: dict[int, tuple[bool, Any]] = {}
    following, losses = 0, 0
    while following < len(calls):
        before = len(done) + following
        with _pool(processes) as pool:
            futures = {k: pool.submit(_call, calls[k]) for k in range(following, len(calls)) if k not in done}
            try:
                while following < len(calls):
                    yield done.pop(following) if following in done else futures.pop(following).result()
                    following += 1
            except BrokenProcessPool as error:
                done |= {k: f.result() for k, f in futures.items() if f.done() and f.exception() is None}
                losses = losses + 1 if len(done) + following == before else 1
                if losses >= _LOSSES:
                    raise _lost() from error


@contextlib.contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Workers end at once with the block, and with this process however it ends: they wait for the other end of a pipe."""
    context = multiprocessing.get_context("spawn")  # a fork would copy locks of torch and Polars in whatever state
    theirs: Any
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(processes, context, _begin_worker, (theirs,))
    try:
        yield pool
    finally:
        ours.close()
        pool.shutdown(cancel_futures=True)
        theirs.close()


def _begin_worker(parent: Any) -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; the parent ends its workers

    def watch() -> None:
        parent.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def _on_cluster(ray: Any, calls: Sequence[bytes], artifacts: str | None) -> Generator[tuple[bool, Any]]:
    """By tasks of one CPU, which Ray gives to another worker when their own dies."""
    task = ray.remote(num_cpus=1, max_retries=_LOSSES)(_call)
    for found in [task.remote(call, artifacts) for call in calls]:
        try:
            yield ray.get(found)
        except ray.exceptions.RayError as error:
            raise _lost() from error


def _lost() -> FinJEPAError:
    return FinJEPAError(
        f"a worker process was lost {_LOSSES} times with the same work, most often for lack of memory; "
        "end other programs or set FINJEPA_COMPUTE=local:1, then run the same command again"
    )


def ray_module() -> Any:
    """The package ray.

    Raises:
        FinJEPAError: if it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray  # here: an extra, which work on this machine does not need  # pyright: ignore[reportMissingImports]
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
        with contextlib.suppress(ValueError):  # not in the main thread: Ray has not touched them either
            for number, handler in handlers.items():  # Ray puts its own in their place
                signal.signal(number, handler)
        yield ray
    finally:
        ray.shutdown()


def resources() -> str:
    """What the cluster has, in words."""
    ray = ray_module()
    total = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    parts = [f"{nodes} nodes", f"{total.get('CPU', 0):g} CPUs", f"{total.get('GPU', 0):g} GPUs"]
    parts += [f"{total[name] / 1e9:.1f} GB {what}" for name, what in _MEMORY.items() if name in total]
    return ", ".join(parts)


def _listens(address: str) -> None:
    """Ray itself waits two minutes for an address at which nobody is."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()
    except OSError as error:
        raise _no_cluster(address, error.strerror or "no answer") from error


def _no_cluster(address: str, reason: str) -> FinJEPAError:
    return FinJEPAError(
        f"there is no Ray cluster at FINJEPA_COMPUTE={address} ({reason}); start one (`ray start --head`), "
        "join this machine to it (`ray start --address=HOST:6379 --num-cpus=0`), or set FINJEPA_COMPUTE=local"
    )
