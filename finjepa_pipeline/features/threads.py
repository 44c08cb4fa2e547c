"""Work on blocks, in order, by the cores that there are."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")


def in_order(work: Callable[[Work], Result], items: Iterable[Work]) -> Iterator[Result]:
    """Results in the order of the items, a few items ahead: NumPy and compiled code leave the interpreter lock."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        ahead = deque()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > workers + 2:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
