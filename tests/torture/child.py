"""One attempt in a process of its own, whose end, however violent, is a word."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

GOOD, REFUSED, NO_MEMORY, TRACEBACK, CRASH, HANG = "good", "refused", "out of memory", "traceback", "crash", "hang"


_LONGEST_TURN = 1.0  # seconds between two looks at an attempt


@dataclass
class End:
    """How an attempt ended: a word of those above, and its result, message, traceback or signal."""

    word: str
    value: Any = None


def attempt(
    work: Callable[[], Any],
    *,
    seconds: float = 60,
    memory: int | None = None,
    file_bytes: int | None = None,
    during: Callable[[int], None] | None = None,
) -> End:
    """Run ``work`` in a fork with limits of time, of address space and of the size of any file it writes.

    ``during(pid)`` is called beside it, to send it signals. What our errors say is "refused"; any other exception is a
    traceback that a user would see.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os.setpgid(0, 0)
        code = 1
        try:
            if memory is not None:
                resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            if file_bytes is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
            end = _work(work)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(end, pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    if during is not None:
        during(pid)
    return _outcome(pid, reader, seconds)


def _work(work: Callable[[], Any]) -> End:
    from unet_fast.errors import BackendError, InputError
    from unet_fast.train.memory import is_out_of_memory

    try:
        return End(GOOD, work())
    except (InputError, BackendError, OSError) as error:
        return End(REFUSED, str(error))
    except KeyboardInterrupt:
        return End(REFUSED, "interrupted")
    except BaseException as error:
        if is_out_of_memory(error):
            return End(NO_MEMORY, str(error))
        return End(TRACEBACK, traceback.format_exc())


def _outcome(pid: int, reader: int, seconds: float) -> End:
    os.set_blocking(reader, False)
    data, status = b"", None
    before, waited = time.monotonic(), 0.0
    while status is None:
        now = time.monotonic()
        # a machine that sleeps, or stops this process and the attempt together, makes no hang
        waited, before = waited + min(now - before, _LONGEST_TURN), now
        if waited > seconds:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(reader)
            return End(HANG)
        data += _read(reader)
        found, code = os.waitpid(pid, os.WNOHANG)
        status = code if found else None
        if status is None:
            time.sleep(0.002)
    data += _read(reader)
    os.close(reader)
    if os.WIFSIGNALED(status):
        return End(CRASH, os.WTERMSIG(status))
    return pickle.loads(data) if data else End(CRASH, os.WEXITSTATUS(status))  # what our own fork wrote


def _read(reader: int) -> bytes:
    parts = b""
    while True:
        try:
            part = os.read(reader, 1 << 20)
        except BlockingIOError:
            return parts
        if not part:
            return parts
        parts += part
