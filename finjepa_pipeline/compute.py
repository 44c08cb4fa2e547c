"""Where heavy work runs: on the cores of this machine, or on the Ray cluster that FINJEPA_COMPUTE names.

Stages call `map` for independent tasks, `train` for one training of one or several ranks and `tune` for many trainings, and know
nothing of processes or of Ray. The results are the same bits wherever they are computed.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from finjepa_model.errors import FinJEPAError
from finjepa_model.training.run_folder import append_record
from finjepa_pipeline.causes import FAILURE_FILE
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.store import Artifacts, files_of, keep

Job = TypeVar("Job")
Result = TypeVar("Result")

_LOSSES = 3  # of its worker that a task survives; of its ranks or nodes that a training survives
_PATIENCE_S = 5.0  # for the address of a cluster
_ROOM_PATIENCE_S = 600.0  # for nodes that an autoscaler or an operator brings
_GRACE_S = 20.0  # in which a cancelled training saves its state
_WATCH_EVERY_S = 1.0
_ARTIFACTS = "FINJEPA_ARTIFACTS"


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
    Raises where the store has not got it."""
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


@dataclass(frozen=True)
class Training:
    """A training: a function of a panel and a run folder, from which an interrupted one goes on.

    Attributes:
        function: of panel, run folder, report (called on every rank with every record) and what is called with each trainer that
            begins; it returns why it failed, or None. Its module is the program of a rank on this machine.
        panels: the panel, and those that are learned from beside it, in the same folder.
        check: raises where the installed code is not that of the driver.
        run_folder: of the home; it holds what to train, the state, and in the end `result`.
        threads: of each rank, on a CPU.
    """

    function: Callable[[Path, Path, Any, Callable[[Any], object]], str | None]
    check: Callable[[], object]
    panels: tuple[Path, ...]
    run_folder: Path
    ranks: int
    threads: int


def ranks(settings: Settings, processes: int | None) -> dict[str, Any]:
    """How many processes train, one for each GPU or one on the CPU where None, with how many threads each, on what device.
    Raises where FINJEPA_COMPUTE names a cluster that is not there."""
    import torch  # here: a schedule or a sensor imports this module too

    if settings.ray_address is None:
        device = f"cuda: {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "cpu"
        count = processes or max(torch.cuda.device_count(), 1)
    else:
        with connected(settings.ray_address) as ray:
            total = ray.cluster_resources()
        kinds = sorted(name.partition(":")[2] for name in total if name.startswith("accelerator_type:"))
        device = f"cuda: {', '.join(kinds) or 'GPU'}" if total.get("GPU") else "cpu"
        count = processes or max(int(total.get("GPU", 0)), 1)
    alone = torch.get_num_threads() if count == 1 else 1  # as torchrun does
    threads = int(os.environ.get("OMP_NUM_THREADS") or alone)
    return {"processes": count, "threads": threads, "device": device}


def train(settings: Settings, training: Training, watch: Callable[[], object]) -> None:
    """Run a training to its end; a Ray cluster starts it again from its last state when a rank or a node is lost. On this machine
    a cancelled training saves its state first; on a cluster the last one that was saved stays. `watch` is called every second.

    Raises:
        FinJEPAError: if training failed for a reason that a user can mend.
        ProcessDiedError: if its process died.
    """
    if settings.ray_address is None:
        return _train_here(training, watch)
    for panel in training.panels:
        keep(settings, panel)
    with connected(settings.ray_address) as ray:
        return _train_on_cluster(ray, settings, training, watch)


class ProcessDiedError(Exception):
    """A process that the step has started died, and may live the next time."""


def _train_here(training: Training, watch: Callable[[], object]) -> None:
    command = [sys.executable, "-m", training.function.__module__, "--panel", str(training.panels[0])]
    command += ["--run-folder", str(training.run_folder), "--ranks", str(training.ranks), "--parent", str(os.getpid())]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(training.threads)})
    try:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_WATCH_EVERY_S)
            watch()
    except BaseException:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)  # in which it saves its state
        process.kill()
        process.wait()
        watch()
        raise
    failure = training.run_folder / FAILURE_FILE
    if failure.is_file():
        raise FinJEPAError(failure.read_text(encoding="utf-8").strip())
    if process.returncode:
        raise ProcessDiedError(f"the training process ended with status {process.returncode}")


def _train_on_cluster(ray: Any, settings: Settings, training: Training, watch: Callable[[], object]) -> None:
    from ray import train as ray_train  # pyright: ignore[reportMissingImports]
    from ray.train.torch import TorchTrainer  # pyright: ignore[reportMissingImports]

    class HomeFollows(ray_train.UserCallback):  # called on this machine
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            if checkpoint is not None:
                _bring(checkpoint, training.run_folder)
            else:
                append_record(training.run_folder, metrics[0])

    needed = _needed(ray, training.ranks)
    _await_room(ray, {name: count * training.ranks for name, count in needed.items()}, watch)
    with _storage(settings, training.run_folder.name) as storage:
        scaling = ray_train.ScalingConfig(
            num_workers=training.ranks, use_gpu="GPU" in needed, resources_per_worker=needed
        )
        run = ray_train.RunConfig(
            **storage,
            failure_config=ray_train.FailureConfig(max_failures=_LOSSES),
            callbacks=[HomeFollows()],
            logging_config=ray_train.LoggingConfig(log_level="ERROR"),
        )
        trainer = TorchTrainer(
            _rank, train_loop_config=_job(settings, training), scaling_config=scaling, run_config=run
        )
        # in the main thread Ray would take SIGINT for itself; how a run is cancelled is Dagster's affair
        end = _in_a_thread(trainer.fit, watch)
    if isinstance(end, BaseException):
        raise FinJEPAError(f"training failed: {_last_line(end)}; run the same command again to go on") from end
    if end.return_value is not None:
        raise FinJEPAError(end.return_value)


def tune(
    settings: Settings,
    trainings: Mapping[str, Training],
    steps: Mapping[str, int],
    metric: str,
    grace: int | None,
    log: Callable[[str], object],
) -> dict[str, str]:
    """Run trainings of one rank: side by side on a Ray cluster, as trials of Ray Tune; one after the other on this machine.
    Raises where FINJEPA_COMPUTE names a cluster that is not there.

    Args:
        steps: of each training.
        metric: of the validation records; lower is better.
        grace: steps after which a cluster ends a training whose metric is in the worse half of those that came as far (ASHA);
            None ends none.

    Returns:
        Why each training has no result, by its name; empty where it has.
    """
    ended: dict[str, str] = {}
    if settings.ray_address is None or not trainings:
        for name, training in trainings.items():
            log(f"training {name}")
            try:
                train(settings, training, lambda: None)
                ended[name] = ""
            except FinJEPAError as error:
                ended[name] = str(error)
        return ended
    for panel in {panel for training in trainings.values() for panel in training.panels}:
        keep(settings, panel)
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # how a run is cancelled is Dagster's affair
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    with connected(settings.ray_address) as ray, _storage(settings, "sweep") as storage:
        from ray import tune as ray_tune  # pyright: ignore[reportMissingImports]
        from ray.tune.schedulers import ASHAScheduler, FIFOScheduler  # pyright: ignore[reportMissingImports]

        class HomeFollows(ray_tune.Callback):
            def on_checkpoint(self, iteration: int, trials: Any, trial: Any, checkpoint: Any, **_: Any) -> None:
                _bring(checkpoint, trainings[trial.config["name"]].run_folder)

        asha = {"time_attr": "step", "max_t": max(steps.values()), "grace_period": grace, "reduction_factor": 2}
        scheduler = FIFOScheduler() if grace is None else ASHAScheduler(**asha)
        log(f"{len(trainings)} trainings, as trials on {settings.ray_address}")
        jobs = {name: _job(settings, training) | {"steps": steps[name]} for name, training in trainings.items()}
        results = ray_tune.Tuner(
            ray_tune.with_resources(ray_tune.with_parameters(_trial, jobs=jobs, metric=metric), _needed(ray, 1)),
            param_space={"name": ray_tune.grid_search(list(trainings))},
            tune_config=ray_tune.TuneConfig(metric="value", mode="min", scheduler=scheduler, reuse_actors=False),
            run_config=ray_tune.RunConfig(
                **storage,
                failure_config=ray_tune.FailureConfig(max_failures=_LOSSES),
                callbacks=[HomeFollows()],
                verbose=0,
            ),
        ).fit()
    for result in results:
        failed = "stopped early" if result.error is None else _last_line(result.error)
        ended[result.config["name"]] = "" if (result.metrics or {}).get("over") else failed
    return ended


def metric_value(record: Mapping[str, object], metric: str) -> float:
    """Raises where the record has no such number."""
    value = record.get(metric)
    if not isinstance(value, int | float):
        known = ", ".join(sorted(name for name, value in record.items() if isinstance(value, float)))
        raise FinJEPAError(f"metric={metric!r} is no number of a validation record; choose one of {known}")
    return float(value)


def _job(settings: Settings, training: Training) -> dict[str, Any]:
    """What a node needs to know; the state that is there goes with it."""
    files = {inside: file.read_bytes() for inside, file in files_of(training.run_folder).items()}
    return {"training": training, "files": files, "artifacts": settings.artifacts}


def _rank(job: dict[str, Any]) -> str | None:
    """One rank on a node: it trains in a folder of its own, and what rank 0 saves goes to Ray's storage."""
    from ray import train as ray_train  # pyright: ignore[reportMissingImports]

    first = ray_train.get_context().get_world_rank() == 0
    with _work_folder(job, ray_train.get_checkpoint()) as work:
        saved = _saved_at(work)

        def report(record: dict[str, Any]) -> None:  # called on every rank: Ray waits for all
            nonlocal saved
            is_new, saved = saved != _saved_at(work), _saved_at(work)
            ray_train.report(record, checkpoint=ray_train.Checkpoint.from_directory(work) if first and is_new else None)

        failure = _train_in(job, work, report)
        ray_train.report({}, checkpoint=ray_train.Checkpoint.from_directory(work) if first else None)
    return failure


def _trial(config: dict[str, Any], *, jobs: Mapping[str, dict[str, Any]], metric: str) -> None:
    """A training of a sweep on a node. Tune gets every evaluation and may end it there; the last one with the result."""
    from ray import tune as ray_tune  # pyright: ignore[reportMissingImports]

    job = jobs[config["name"]]
    with _work_folder(job, ray_tune.get_checkpoint()) as work:
        last: dict[str, Any] = {}

        def report(record: dict[str, Any]) -> None:
            if record["kind"] == "validation":
                last.update(step=record["step"], value=metric_value(record, metric))
                if record["step"] < job["steps"]:
                    ray_tune.report(dict(last), checkpoint=ray_tune.Checkpoint.from_directory(work))

        failure = _train_in(job, work, report)
        if failure is not None:
            raise FinJEPAError(failure)
        ray_tune.report({**last, "over": True}, checkpoint=ray_tune.Checkpoint.from_directory(work))


def _train_in(job: dict[str, Any], work: str, report: Callable[[dict[str, Any]], None]) -> str | None:
    import torch

    training: Training = job["training"]
    training.check()
    torch.set_num_threads(training.threads)
    panel, *_ = [local_folder(panel) for panel in training.panels]
    return training.function(panel, Path(work), report, lambda trainer: None)


@contextlib.contextmanager
def _work_folder(job: dict[str, Any], checkpoint: Any) -> Iterator[str]:
    """A folder with the newest state: what Ray has kept since the training began on the cluster, or what the home had then."""
    if job["artifacts"]:
        os.environ[_ARTIFACTS] = job["artifacts"]
    with tempfile.TemporaryDirectory(prefix="finjepa-training-") as work:
        for inside, content in job["files"].items():
            (Path(work) / inside).parent.mkdir(parents=True, exist_ok=True)
            (Path(work) / inside).write_bytes(content)
        if checkpoint is not None:
            _bring(checkpoint, Path(work))
        yield work


def _bring(checkpoint: Any, folder: Path) -> None:
    """The files of Ray's checkpoint into a folder, each whole, and last those that say that others are there."""
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder.parent) as beside:
        checkpoint.to_directory(beside)
        files = files_of(Path(beside))
        for inside in sorted(files, key=lambda name: (name == "result/metrics.json", name)):
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            os.replace(files[inside], folder / inside)


def _saved_at(folder: str) -> list[int]:
    return sorted(file.stat().st_mtime_ns for file in Path(folder).rglob("*.pt"))


def _needed(ray: Any, count: int) -> dict[str, float]:
    """Of each of so many processes: a GPU where the cluster has enough of them."""
    return {"CPU": 1.0} | ({"GPU": 1.0} if ray.cluster_resources().get("GPU", 0) >= count else {})


def _await_room(ray: Any, needed: Mapping[str, float], watch: Callable[[], object]) -> None:
    """For nodes that an autoscaler or an operator brings."""
    deadline = time.monotonic() + _ROOM_PATIENCE_S
    while not all(ray.cluster_resources().get(name, 0) >= count for name, count in needed.items()):
        if time.monotonic() > deadline:
            raise FinJEPAError(
                f"training needs {needed} and the cluster has {resources()}; add nodes or ask for fewer processes"
            )
        time.sleep(_WATCH_EVERY_S)
        watch()


@contextlib.contextmanager
def _storage(settings: Settings, name: str) -> Iterator[dict[str, Any]]:
    """Where Ray keeps states while trainings run, for every node: in FINJEPA_ARTIFACTS, or in a home that nodes share."""
    from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

    name = f"{name}-{uuid.uuid4().hex[:8]}"
    if settings.artifacts is None:
        filesystem, root = LocalFileSystem(), str(settings.home / "ray")
    else:
        handler, root = Artifacts(settings.artifacts).file_system
        filesystem, root = PyFileSystem(FSSpecHandler(handler)), f"{root}/ray"
    try:
        yield {"name": name, "storage_path": root, "storage_filesystem": filesystem}
    finally:
        with contextlib.suppress(OSError):
            filesystem.delete_dir(f"{root}/{name}")


def _in_a_thread(function: Callable[[], Any], watch: Callable[[], object]) -> Any:
    """What a function returns or raises, while this thread stays free for signals."""
    ends: list[Any] = []

    def call() -> None:
        try:
            ends.append(function())
        except BaseException as error:
            ends.append(error)

    thread = threading.Thread(target=call, daemon=True, name="ray-train")
    thread.start()
    while thread.is_alive():
        thread.join(_WATCH_EVERY_S)
        watch()
    return ends[0]


def _last_line(error: BaseException) -> str:
    """Of what Ray passes on: an error of ours without its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].rpartition("FinJEPAError: ")[2]


def ray_module() -> Any:
    """The package ray, which is an extra; raises where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray  # here: work on this machine does not need it  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise FinJEPAError(
            "FINJEPA_COMPUTE names a Ray cluster and ray is not installed; pip install 'finjepa[ray]', "
            "or FINJEPA_COMPUTE=local"
        ) from error
    return ray


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """This process as a driver of the cluster; the block gets the package. What it started there ends with the block. Raises
    where ray is not installed, or there is no cluster at the address."""
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
    return f"{nodes} nodes, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"


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
