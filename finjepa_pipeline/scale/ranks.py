"""torchrun's place on a Ray cluster: starts the training process of each rank, and starts them all again when one is lost.

Every rank is a process of its own with torchrun's environment, held by an actor (`rank_host`) in one placement group. Ray finds
the room and tells who has died; what is trained, saved and resumed is the trainer's affair, as on one machine. Ends with status 0
also when training failed for a reason that a user can mend: the reason is then in `failure.txt`.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import write_text
from finjepa_model.training.state import METRICS_FILE, STATE_FILE
from finjepa_pipeline.scale.cluster import connected
from finjepa_pipeline.scale.rank_host import Outcome, Place, RankHost
from finjepa_pipeline.store import Artifacts, sha256
from finjepa_pipeline.training.code import training_code_version
from finjepa_pipeline.training.exchange import FAILURE_FILE, LAUNCHER_PID
from finjepa_pipeline.training.guards import end_with
from finjepa_pipeline.training.launch import pipes
from finjepa_pipeline.training.live import watched
from finjepa_pipeline.training.mirror import send

_ROOM_PATIENCE_S = 600.0  # for nodes that an autoscaler or an operator brings
_GRACE_S = 13.0  # Dagster itself waits 20 s for a step that it cancels
_SETTLE_S = 3.0  # in which those that waited for a lost rank notice
_FRUITLESS = 3  # losses in a row without a step between them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="of the Ray cluster")
    parser.add_argument("--artifacts", help="store for nodes that do not see the run folder")
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True, help="of each rank, on a CPU")
    parser.add_argument("--panel", type=Path, required=True)
    parser.add_argument("--run-folder", type=Path, required=True)
    arguments = parser.parse_args()
    run_folder: Path = arguments.run_folder
    try:
        with pipes() as report, connected(arguments.address) as ray:
            ranks = Ranks(ray, arguments.ranks, arguments.threads, arguments.panel, run_folder, arguments.artifacts)
            signal.signal(signal.SIGTERM, ranks.stop)
            signal.signal(signal.SIGINT, ranks.stop)
            if LAUNCHER_PID in os.environ:
                end_with(int(os.environ[LAUNCHER_PID]), ranks.stop)
            with watched(
                run_folder, total_steps=1, tell=report or (lambda record: None)
            ):  # every record, as rank 0 would
                ranks.train()
    except FinJEPAError as error:
        write_text(run_folder / FAILURE_FILE, f"{error}\n")


class Ranks:
    """All ranks of one training, through as many starts as it takes."""

    def __init__(self, ray: Any, count: int, threads: int, panel: Path, run_folder: Path, artifacts: str | None):
        self._ray, self._count, self._threads = ray, count, threads
        self._panel, self._run_folder, self._artifacts = panel, run_folder, artifacts
        self._far = False  # whether rank 0 works on a copy of the run folder
        self._gpus = ray.cluster_resources().get("GPU", 0) >= count
        self._stop_requested_at: float | None = None

    def stop(self, *_: object) -> None:
        """Ask for a saved state and an end; safe in a signal handler."""
        self._stop_requested_at = self._stop_requested_at or time.monotonic()

    def train(self) -> None:
        """Until training has ended, well or for a reason that a user can mend.

        Raises:
            FinJEPAError: if there is no room on the cluster, its nodes do not fit, or ranks keep dying.
        """
        fruitless = 0
        while fruitless < _FRUITLESS:
            saved = self._saved()
            if self._artifacts:
                send(Artifacts(self._artifacts), self._run_folder)
            lost = self._one_start()
            self._fetch()
            if lost is None:
                return
            progress = self._saved() != saved
            if not lost.by_death and not progress:
                raise FinJEPAError(f"a training rank failed: {lost.reason}")
            fruitless = 0 if progress else fruitless + 1
            _say(f"a training rank was lost ({lost.reason}); going on from the last saved state")
        raise FinJEPAError(
            f"training ranks were lost {_FRUITLESS} times with nothing saved between; run again to go on"
        )

    def _fetch(self) -> None:
        """What a far rank 0 has left in the store."""
        if self._far and self._artifacts:
            Artifacts(self._artifacts).get(self._run_folder.parent.name, self._run_folder.name, self._run_folder)

    def _saved(self) -> str:
        """Changes with every state that is saved, and not with where it was copied from."""
        state = self._run_folder / STATE_FILE
        return sha256(state) if state.is_file() else ""

    def _one_start(self) -> "Lost | None":
        group = self._room()
        try:
            hosts = self._hosts(group)
            try:
                return self._run(hosts)
            finally:
                self._end(hosts)
        except self._ray.exceptions.RayActorError as error:
            return Lost(True, _line(error))
        finally:
            self._ray.util.remove_placement_group(group)

    def _room(self) -> Any:
        """A place for every rank, near one another where there is the choice."""
        need = {"GPU": 1.0, "CPU": 1.0} if self._gpus else {"CPU": 1.0}
        group = self._ray.util.placement_group([need] * self._count, strategy="PACK")
        ready, deadline = group.ready(), time.monotonic() + _ROOM_PATIENCE_S
        while not self._ray.wait([ready], timeout=1.0)[0]:
            if time.monotonic() > deadline or self._stop_requested_at is not None:
                self._ray.util.remove_placement_group(group)
                stopped = "training was stopped while it" if self._stop_requested_at is not None else "training"
                raise FinJEPAError(
                    f"{stopped} waited for {self._count} times {need} on a cluster with "
                    f"{self._ray.cluster_resources().get('CPU', 0):g} CPUs and "
                    f"{self._ray.cluster_resources().get('GPU', 0):g} GPUs; add nodes or ask for fewer processes"
                )
        return group

    def _hosts(self, group: Any) -> list[Any]:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # pyright: ignore[reportMissingImports]

        actor = self._ray.remote(RankHost)
        return [
            actor.options(
                num_cpus=1,
                num_gpus=1 if self._gpus else 0,
                max_concurrency=8,  # what is asked of a host while it trains
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            ).remote(self._panel, self._run_folder, self._artifacts)
            for rank in range(self._count)
        ]

    def _run(self, hosts: list[Any]) -> "Lost | None":
        places: list[Place] = self._ray.get([host.place.remote() for host in hosts])
        self._fits(places)
        self._far = not places[0].sees
        running = {
            host.train.remote(self._environment(rank, places), places[rank].address, f"rank-{rank}.log"): rank
            for rank, host in enumerate(hosts)
        }
        lost: Lost | None = None
        over_at = float("inf")  # when whoever still runs is ended
        while running:
            done, _ = self._ray.wait(list(running), timeout=0.5)
            ends = [self._ended(future, running.pop(future)) for future in done]
            now = time.monotonic()
            if now < over_at:  # how those end that are killed here tells nothing
                for end in ends:
                    lost = _worse(lost, end)
            if lost:
                over_at = min(over_at, now + _SETTLE_S)
            if self._far:
                self._copy_records(hosts[0])
            if (self._run_folder / FAILURE_FILE).is_file():
                over_at = min(over_at, now + _GRACE_S)
            if self._stop_requested_at is not None:
                self._call(hosts, "stop")
                over_at = min(over_at, self._stop_requested_at + _GRACE_S)
            if now >= over_at:
                self._call(hosts, "kill")
        return None if self._stop_requested_at is not None else lost

    def _ended(self, future: Any, rank: int) -> "Lost | None":
        try:
            outcome: Outcome = self._ray.get(future)
        except self._ray.exceptions.RayError as error:
            return Lost(True, f"rank {rank}: {_line(error)}")
        if outcome.failure and not (self._run_folder / FAILURE_FILE).is_file():
            write_text(self._run_folder / FAILURE_FILE, f"{outcome.failure}\n")
        if outcome.status == 0:
            return None
        if outcome.status < 0:
            return Lost(True, f"rank {rank} was ended by signal {-outcome.status}")
        return Lost(False, f"rank {rank}: {outcome.last_line}")

    def _fits(self, places: list[Place]) -> None:
        here = training_code_version()
        for place in places:
            if place.code != here:
                raise FinJEPAError(
                    f"the node {place.address} has training code {place.code} and this machine {here}; "
                    "install the same FinJEPA on both"
                )
            if place.trouble:
                raise FinJEPAError(f"the node {place.address} {place.trouble}")

    def _copy_records(self, first: Any) -> None:
        """So that curves are live wherever rank 0 is."""
        asked = first.records.remote()
        if self._ray.wait([asked], timeout=2.0)[0]:
            try:
                text: str = self._ray.get(asked)
            except self._ray.exceptions.RayError:  # it is being lost, and the wait for it says so
                return
            file = self._run_folder / METRICS_FILE
            if text and (not file.is_file() or file.stat().st_size != len(text.encode())):
                write_text(file, text)

    def _environment(self, rank: int, places: list[Place]) -> dict[str, str]:
        """As torchrun sets it. A rank sees its own device only, so it is the first of its kind wherever it is."""
        return {
            "RANK": str(rank),
            "WORLD_SIZE": str(self._count),
            "LOCAL_RANK": "0",
            "MASTER_ADDR": places[0].address,
            "MASTER_PORT": str(places[0].port),
            "OMP_NUM_THREADS": str(self._threads),
        }

    def _end(self, hosts: list[Any]) -> None:
        self._call(hosts, "kill")
        for host in hosts:
            self._ray.kill(host)

    def _call(self, hosts: list[Any], method: str) -> None:
        """Of those that still answer."""
        asked = [getattr(host, method).remote() for host in hosts]
        self._ray.wait(asked, num_returns=len(asked), timeout=2.0)


class Lost:
    """Why a start has not led to an end: whether a process or node died, or a rank raised something."""

    def __init__(self, by_death: bool, reason: str):
        self.by_death, self.reason = by_death, reason


def _worse(before: Lost | None, now: Lost | None) -> Lost | None:
    """A death explains the exceptions of those that waited for the dead."""
    if before is None or (now is not None and now.by_death and not before.by_death):
        return now
    return before


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    main()
