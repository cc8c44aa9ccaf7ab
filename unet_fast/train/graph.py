"""A training step as one CUDA graph: the host launches it whole, instead of its hundreds of kernels one by one."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Sequence

import torch

from unet_fast.errors import first_line

WARM_UP = 3  # steps that run eagerly before the capture: they load kernels, choose algorithms and allocate state
AHEAD = 4  # steps that the host may be ahead of the GPU: enough to keep it busy, few enough to follow the clock


class GraphedStep:
    """Runs a function of tensors that stay where they are; on a GPU, after a few calls, as a replay of its CUDA graph.

    Args:
        step: reads and writes tensors on ``device`` that all exist before its second call, and nothing else: no argument,
            no result, nothing that depends on a value that the host would have to wait for.
        device: where it runs. Anything but a GPU runs ``step`` as it is.
        generators: the sources of its random numbers besides torch's own.
        reason: why a GPU shall not even try, if so.

    ``reason`` says why a GPU runs the step eagerly, in a few words, where the step cannot be captured; else it is None.
    The steps done before the capture are steps like all others: none is made for the sake of the capture.
    """

    def __init__(
        self,
        step: Callable[[], None],
        device: torch.device,
        generators: Sequence[torch.Generator],
        reason: str | None = None,
    ) -> None:
        self._step, self._device = step, device
        self._generators = list(generators)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream: torch.cuda.Stream | None = None
        self._calls = 0
        self._pending: deque[torch.cuda.Event] = deque()
        self.reason = reason if device.type == "cuda" else None

    @property
    def captured(self) -> bool:
        """Whether calls are replays of a graph by now."""
        return self._graph is not None

    def __call__(self) -> None:
        """Do the step, without waiting for it."""
        if self._device.type != "cuda":
            self._step()
            return
        with torch.cuda.device(self._device):
            if self._graph is None and self.reason is None:
                self._calls += 1
                if self._calls <= WARM_UP:
                    self._warm_up(watched=self._calls == WARM_UP)
                    return
                self._capture()
            if self._graph is not None:
                self._graph.replay()
            else:
                self._step()
            self._keep_pace()

    def _warm_up(self, *, watched: bool) -> None:
        """The step on a stream of its own, as it will be captured; ``watched`` for what the host has to wait for."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            if watched:
                self.reason = _waits(self._step)
            else:
                self._step()
        torch.cuda.current_stream().wait_stream(self._stream)

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        sources = [*self._generators, torch.cuda.default_generators[torch.cuda.current_device()]]
        states = [generator.get_state() for generator in sources]
        for generator in self._generators:  # torch's own is registered by itself
            graph.register_generator_state(generator)
        try:
            # thread_local: a checkpoint may be on its way to the host in another thread
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._step()
        except RuntimeError as error:
            for generator, state in zip(sources, states, strict=True):
                # a capture that failed leaves its generators capturing for ever: they get a state of their own again
                fresh = torch.Generator(generator.device)
                fresh.set_state(state)
                generator.graphsafe_set_state(fresh)
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self.reason = first_line(error)
            return
        self._graph = graph

    def _keep_pace(self) -> None:
        event = torch.cuda.Event(blocking=True)
        event.record()
        self._pending.append(event)
        if len(self._pending) > AHEAD:
            self._pending.popleft().synchronize()


def _waits(step: Callable[[], None]) -> str | None:
    """Run ``step`` on a GPU; where the host waits for the device in it, say so and where, else None."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    reason = None
    for warning in caught:
        text = str(warning.message)
        if "synchronizing CUDA operation" in text:
            reason = reason or f"the host waits for the GPU in it ({warning.filename}:{warning.lineno})"
        elif "Synchronization debug mode is a prototype" not in text:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return reason
