"""Output that never fails for what it says: any name in any terminal, closed streams, notes in one line."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from typing import Any, TextIO

from unet_fast.notes import Note


def sturdy_streams() -> None:
    """Let stdout and stderr show what their encoding lacks as escapes, and swallow what cannot be written any more.

    File names may hold bytes that are not text, and terminals may know ASCII only; a stream may be closed from the start, and its reader
    may go away or its disk fill up at any time. None of these may end a training run.
    """
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None or stream.closed or not _is_open(stream):
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, _Sturdy(stream))
    warnings.showwarning = _show


class _Sturdy:
    """A stream whose writes never fail: after the first that does, the rest goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._mute()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._mute()

    def _mute(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # also what is still buffered, and what others write there
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_open(stream: TextIO) -> bool:
    try:
        os.fstat(stream.fileno())
    except ValueError:  # captured output has no number
        return True
    except OSError:
        return False
    return True


_said: Counter[str] = Counter()
_SHOWN = 3  # notes of one text, about that many files


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Notes are lines for the user; warnings of other packages keep their text."""
    text = f"warning: {message}"
    if isinstance(message, Note):
        _said[message.text] += 1
        if _said[message.text] > _SHOWN + 1:
            return
        text = (
            f"note: {message}" if _said[message.text] <= _SHOWN else f"note: the same for more files ({message.text})"
        )
    try:
        print(text, file=file or sys.stderr, flush=True)
    except OSError:
        pass
