"""Work that is done again and again beside a training, for as long as it runs."""

import contextlib
import threading
from collections.abc import Callable, Iterator

_PATIENCE_S = 1.0


@contextlib.contextmanager
def repeatedly(work: Callable[[], object], name: str) -> Iterator[None]:
    """While the block runs, do the work every second, in a thread of that name; when the block is left, it is over."""
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(_PATIENCE_S):
            work()

    thread = threading.Thread(target=go_on, daemon=True, name=name)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
