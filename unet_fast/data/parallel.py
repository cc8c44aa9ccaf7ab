"""A few threads that work on one small image each, in order and never far ahead, so that little is held."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_PIXELS = 2**22  # of an image; larger ones are worked on one by one
_THREADS = 4
_AHEAD = 2  # images a thread


def in_order(function: Callable[[Item], Result], items: Iterable[Item], pixels: int) -> Iterator[Result]:
    """``function`` of each item, in their order; ``pixels`` are those of the largest image.

    What decodes, compresses and labels images leaves the interpreter to others meanwhile, so threads are enough.

    Equivalent to::

        map(function, items)
    """
    threads = min(_THREADS, os.cpu_count() or 1)
    if threads == 1 or pixels > MOST_PIXELS:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="unet_fast images") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > _AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
