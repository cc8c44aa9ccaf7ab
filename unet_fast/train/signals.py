"""Signals that ask a run to end: they set a flag, which is looked at between two steps, where the state is whole."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_ASKING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # fmt: skip
_NOTICE = b"\nending after this step; once more ends at once, without saving\n"


class Interruption:
    """While it is entered, the first Ctrl-C, SIGTERM or SIGHUP is kept in ``signal`` and does nothing else.

    A second one does what it would have done without this. Signals that are ignored (SIGHUP under nohup) stay so.
    Elsewhere than in the main thread, which alone may set handlers, nothing happens.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in _ASKING:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = before
                    signal.signal(number, self._keep)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _keep(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()
        try:
            os.write(2, _NOTICE)  # print could be in the middle of printing
        except OSError:
            pass

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
