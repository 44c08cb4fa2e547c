"""SIGINT and SIGTERM end a command and everything that it has started, whatever the command is doing."""

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

GRACE_S = 25.0  # a training that is asked to stop saves its state within 15 s, and Dagster waits 20 s for it
_ENDING_S = 5.0
_ORPHAN_GRACE_S = 15.0  # Dagster itself waits 20 s for a step that it cancels
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)

asked = threading.Event()  # set by the first of the two signals


def install() -> None:
    """Let both signals raise KeyboardInterrupt, and end this process the hard way if that is not enough.

    Dagster replaces the handlers while it runs steps, and only notes a signal between two steps. So the signals are also read
    from Python's wakeup descriptor: after `GRACE_S`, or at a second signal, every descendant and then this process is killed.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell without job control starts a command with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(AttributeError, OSError):  # Linux: orphans of a dead child become children of this process
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True, name="interrupts").start()


def end_children() -> None:
    """Ask every descendant of this process to end, and kill what still lives after `GRACE_S`."""
    left = _descendants()
    _send(left, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = _descendants()
    _send(left, signal.SIGKILL)


def end_with(parent: int, stop: Callable[[], object]) -> None:
    """Call `stop` when the process that started this one, by its id, is gone, and end the hard way if that is not enough."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        stop()
        time.sleep(_ORPHAN_GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def _watch(read: int) -> None:
    number = _next(read)
    asked.set()
    second = threading.Event()
    threading.Thread(target=lambda: (_next(read), second.set()), daemon=True, name="second-interrupt").start()
    second.wait(GRACE_S + _ENDING_S)
    _send(_descendants(), signal.SIGKILL)
    os._exit(128 + number)


def _next(read: int) -> int:
    while True:
        for number in os.read(read, 1):
            if number in (signal.SIGINT, signal.SIGTERM):
                return number


def _descendants() -> list[int]:
    """Processes that live below this one; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state not in ("Z", "X"):
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    found, below = [], children.get(os.getpid(), [])
    while below:
        found += below
        below = [child for parent in below for child in children.get(parent, [])]
    return found


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)
