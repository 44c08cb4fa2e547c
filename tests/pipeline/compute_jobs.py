"""What worker processes of tests do; they import nothing else."""

import os
import signal
import time
from pathlib import Path


def die_once(job: tuple[Path, bool]) -> int:
    """Count the times that a job is begun; where asked, kill the worker the first time. Job 9 raises."""
    mark, dies = job
    with mark.open("a") as file:
        file.write("x")
    if dies and mark.read_text() == "x":
        os.kill(os.getpid(), signal.SIGKILL)
    number = int(mark.name[-1])
    return number if number < 9 else number // 0


def die(job: int) -> int:
    os._exit(1)


def sleep(marks: Path) -> None:
    Path(f"{marks}-{os.getpid()}").touch()
    time.sleep(600)
