"""Processes that run Python, forked from one that has imported torch and the package: what a start takes, seconds, is
paid once by each process of the tests.

``run("-m", "unet_fast", "predict", ...)`` and ``start(...)`` are ``subprocess.run`` and ``Popen`` of ``python -m ...`` (or
``-c CODE``): a process of its own, with its own signals and streams, and an end that the interpreter makes as always. Its
pictures are of one pixel.

``run(..., warm="torch")``: forked from one that has imported torch alone, for what is asked of the package's own imports.
"""

from __future__ import annotations

import functools
import io
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parent.parent
CLOSED = -1  # in place of a stream
_AT_FIRST = dict(os.environ)  # before a test changes it
MOST_BYTES = 1 << 17  # of an order


class Process:
    """A process that was started."""

    def __init__(self, channel: socket.socket, output: tuple[Any, Any]) -> None:
        self._channel, self._output = channel, output
        self._status: int | None = None
        self.pid = int(self._hear(300.0))

    def _hear(self, seconds: float) -> bytes:
        self._channel.settimeout(seconds)
        said = self._channel.recv(32)
        if not said:
            raise RuntimeError("the process that others are forked from has ended")
        return said

    def wait(self, seconds: float = 300.0) -> int:
        """The exit status, below 0 the signal that ended it; after so long ``TimeoutError``."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(int(self._hear(seconds)))
        return self._status

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        try:
            return self.wait(1e-6)
        except TimeoutError:
            return None

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    @property
    def stdout(self) -> bytes:
        """What it has written so far, unless its streams were given."""
        return os.pread(self._output[0].fileno(), 1 << 24, 0)

    @property
    def stderr(self) -> bytes:
        """The same of its errors."""
        return os.pread(self._output[1].fileno(), 1 << 24, 0)


def start(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    streams: tuple[int, int] | None = None,
    warm: Literal["all", "torch"] = "all",
) -> Process:
    """Start ``python ARGUMENTS``, which begin with ``-m MODULE`` or ``-c CODE``.

    ``env``: variables beside those of this process. ``streams``: file descriptors for what it writes and for its errors,
    or :data:`CLOSED`; by default both are kept for ``Process.stdout`` and ``Process.stderr``. ``warm``: what has been
    imported when it begins.
    """
    output = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    given = streams or (output[0].fileno(), output[1].fileno())
    order = pickle.dumps(
        {
            "arguments": [os.fsencode(str(argument)) for argument in arguments],
            "env": {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            "folder": os.getcwd(),
            "streams": [None if stream == CLOSED else number + 1 for number, stream in enumerate(given)],
        }
    )
    assert len(order) <= MOST_BYTES
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        passed = [theirs.fileno(), *(_OTHER if stream == CLOSED else stream for stream in given)]
        socket.send_fds(_server(warm), [order], passed)
    return Process(mine, output)


def run(
    *arguments: object, env: Mapping[str, str] | None = None, warm: Literal["all", "torch"] = "all"
) -> subprocess.CompletedProcess[bytes]:
    """Run ``python ARGUMENTS`` to its end; see :func:`start`."""
    process = start(*arguments, env=env, warm=warm)
    try:
        code = process.wait(3600.0)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
    return subprocess.CompletedProcess(list(arguments), code, process.stdout, process.stderr)


_OTHER = 2  # stands for a stream that is closed


@functools.cache
def _server(warm: str) -> socket.socket:
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.processes", str(theirs.fileno()), warm]
    with theirs:
        _running.append(
            subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env={**_AT_FIRST, "OMP_NUM_THREADS": "1"},
            )
        )
    return mine


_running: list[subprocess.Popen[bytes]] = []


# ---- the process that the others are forked from


def _import_everything() -> None:
    import matplotlib.backends.backend_agg  # noqa: F401
    import torch
    import torch._dynamo
    import torch.distributed

    import unet_fast.cli
    import unet_fast.evaluate
    import unet_fast.predict
    import unet_fast.run
    import unet_fast.train  # noqa: F401
    from tests.pictures import draw_little

    draw_little()
    torch.set_num_threads(1)


def _import_torch() -> None:
    import torch

    torch.set_num_threads(1)


def _serve(orders: socket.socket) -> list[str]:
    """Fork a process for every order, and one that waits for it; returns in the former, with its arguments."""
    while True:
        text, descriptors, *_ = socket.recv_fds(orders, MOST_BYTES, 3)
        if not text:
            sys.exit()  # the tests are over
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    orders.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    channel, *streams = descriptors
    pid = os.fork()
    if pid:
        with socket.socket(fileno=channel) as said:
            said.send(str(pid).encode())
            said.send(str(os.waitpid(pid, 0)[1]).encode())
        os._exit(0)
    os.close(channel)
    order = pickle.loads(text)  # from the tests
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["folder"])
    for number, stream in zip((1, 2), streams, strict=True):
        os.dup2(stream, number)
    for number, stream in zip((1, 2), order["streams"], strict=True):
        if stream is None:
            os.close(number)
    for stream in set(streams) - {1, 2}:
        os.close(stream)
    sys.stdout = sys.__stdout__ = _stream(1)  # type: ignore[misc, assignment]
    sys.stderr = sys.__stderr__ = _stream(2)  # type: ignore[misc, assignment]
    return [os.fsdecode(argument) for argument in order["arguments"]]


def _stream(number: int) -> io.TextIOWrapper | None:
    """As the interpreter makes it at its start."""
    try:
        os.fstat(number)
    except OSError:
        return None
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    raw = open(number, "wb", closefd=False)
    errors = "backslashreplace" if number == 2 else errors or "strict"
    return io.TextIOWrapper(raw, encoding or "utf-8", errors, line_buffering=number == 2 or raw.isatty())


if __name__ == "__main__":
    _import_torch() if sys.argv[2] == "torch" else _import_everything()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    how, what, *rest = _serve(socket.socket(fileno=int(sys.argv[1])))
    if how == "-m":
        sys.argv = [what, *rest]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *rest]
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
