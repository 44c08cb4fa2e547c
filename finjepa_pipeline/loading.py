"""Loading the product's modules."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def garbage_kept() -> Iterator[None]:
    """Import modules without garbage collection, which takes a third of the time and finds nothing. What they have made is
    left out of later collections too."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.freeze()
            gc.enable()
