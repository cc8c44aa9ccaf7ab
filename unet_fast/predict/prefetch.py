"""Work that runs ahead in a thread, and work that is done behind: reading, network and writing overlap."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
_END = object()


def ahead(items: Iterator[Item], depth: int = 2) -> Iterator[Item]:
    """``items``, of which up to ``depth`` are made ahead by a thread.

    An exception of ``items`` arrives where its item would have; when the consumer stops, so does the thread.
    """
    ready: queue.Queue[Any] = queue.Queue(depth)
    stopped = threading.Event()

    def put(value: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put(value, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:  # noqa: B036 - handed over, raised by the consumer
            put((None, error))

    thread = threading.Thread(target=run, name="unet_fast reader", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
        thread.join()


class Behind:
    """Calls that run in order in one thread, at most ``depth`` of them waiting; a failure arrives at the next call."""

    def __init__(self, depth: int = 2) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="unet_fast writer")
        self._waiting: list[Future[None]] = []
        self._depth = depth

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Run ``function(*arguments)`` behind; waits while too many calls do."""
        while len(self._waiting) >= self._depth:
            self._waiting.pop(0).result()
        self._waiting.append(self._pool.submit(function, *arguments))

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Wait for all calls; what waits is dropped when the block was left by an exception."""
        if kind is not None:
            for future in self._waiting:
                future.cancel()
        self._pool.shutdown(wait=True)
        if kind is None:
            for future in self._waiting:
                future.result()
