"""What worker processes of tests do; they import nothing else."""

import os
import signal
import time
from pathlib import Path


def divide(pair: tuple[int, int]) -> int:
    return pair[0] // pair[1]


def die_once(job: tuple[Path, bool]) -> int:
    """Count the times that a job is begun; where asked, kill the worker the first time."""
    mark, dies = job
    with mark.open("a") as file:
        file.write("x")
    if dies and mark.read_text() == "x":
        os.kill(os.getpid(), signal.SIGKILL)
    return int(mark.name[-1])


def die(job: int) -> int:
    os._exit(1)


def sleep(marks: Path) -> None:
    Path(f"{marks}-{os.getpid()}").touch()
    time.sleep(600)
