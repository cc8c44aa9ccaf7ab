"""Checkpoints written beside the training: a copy is taken between two steps, a thread brings it to the disk."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch

from unet_fast.train.checkpoint import check_finite, save_tensors


class CheckpointWriter:
    """Writes one checkpoint at a time in a thread of its own.

    What is written is a copy on the tensors' own device, taken by :meth:`submit` in the order of the work there, so that
    the training goes on at once and changes nothing of it. An error of the thread is raised by the next call here.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread is not None:
            self._thread.join()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def submit(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Copy the tensors and write the copy; waits for the checkpoint before, if that is not done."""
        self.wait()
        copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        copied = None
        for device in {tensor.device for tensor in copies.values() if tensor.is_cuda}:
            copied = torch.cuda.Event(blocking=True)
            copied.record(torch.cuda.current_stream(device))
        self._thread = threading.Thread(target=self._write, args=(copies, state, copied), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return when the last checkpoint lies on the disk. Raises what its writing raised, such as ``OSError``."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what the writing raised, if it has ended so; does not wait."""
        if not self.busy and self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, copies: dict[str, torch.Tensor], state: dict[str, Any], copied: torch.cuda.Event | None) -> None:
        try:
            if copied is not None:
                copied.synchronize()
                device = next(tensor.device for tensor in copies.values() if tensor.is_cuda)
                # a stream of its own: on the training's the copy to the host would wait for all steps launched so far
                with torch.cuda.stream(torch.cuda.Stream(device)):
                    copies = {name: tensor.cpu() for name, tensor in copies.items()}
            weights = {name: tensor for name, tensor in copies.items() if not name.startswith(("random.", "log."))}
            check_finite(Path("the state of the training"), weights)  # the last good checkpoint must stay
            save_tensors(self._path, copies, state)
        except BaseException as error:  # raised in the thread that trains
            self._error = error
