"""Several processes that train one network, started by torchrun; the engine is torch's DistributedDataParallel."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from unet_fast.errors import InputError, first_line


class LostProcess(InputError):
    """Another process of the training has ended while this one waited for it."""


@dataclass(frozen=True)
class World:
    """The processes of a training: ``size`` of them, of which this is number ``rank``, the ``local_rank``-th of its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0


def world() -> World:
    """The processes that have joined; one alone without torchrun."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that torchrun started (those of its environment), until the block ends.

    Numbers of the host go through gloo, those of GPUs through NCCL. An error that all of them meet is raised by one of a
    machine; the others exit with code 2.

    Raises:
        InputError: they do not find one another.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2 or world().size > 1:
        yield world()
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except (RuntimeError, ValueError) as error:
        first = first_line(error)
        raise InputError(f"the processes of torchrun do not find one another ({first})") from error
    try:
        here = world()
        if not here.main:  # what is worth saying is said once
            warnings.simplefilter("ignore")
        yield here
    except (InputError, OSError) as error:
        alone = here.size == 2 if isinstance(error, LostProcess) else here.local_rank == 0
        if here.main or alone:
            raise
        raise SystemExit(2) from None  # the others say the same
    finally:
        dist.destroy_process_group()


def device_of(device: torch.device) -> torch.device:
    """The device of this process: a GPU each where they train on GPUs."""
    here = world()
    if device.type != "cuda" or here.size == 1:
        return device
    if here.local_rank >= torch.cuda.device_count():
        raise InputError(
            f"torchrun started more processes than this machine has GPUs ({torch.cuda.device_count()}); lower --nproc-per-node"
        )
    return torch.device("cuda", here.local_rank)


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """``model`` so that a call and its backward give every process the mean of all gradients; itself for one process."""
    if world().size == 1:
        return model
    return nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def share_of_mean(counted: torch.Tensor) -> torch.Tensor:
    """What a mean over ``counted`` things here is multiplied by, so that the mean over processes is that over all things."""
    total = counted.detach().clone().double()
    dist.all_reduce(total)
    return (counted * world().size / total.clamp(min=1)).float()


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The sum of (K,) ``values`` over all processes, on every one."""
    if world().size > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def largest(*values: float) -> list[float]:
    """The largest of each value over all processes, on every one."""
    if world().size == 1:
        return list(values)
    both = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    return both.tolist()


@contextmanager
def losing_no_process(advice: str) -> Iterator[None]:
    """Turn the error of a lost process into one line.

    Raises:
        LostProcess: another one has ended while this one waited for it.
    """
    try:
        yield
    except RuntimeError as error:
        if world().size == 1 or not _is_lost(error):
            raise
        raise LostProcess(f"a process of this training was lost, so all of them end; {advice}") from error


def _is_lost(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or any(sign in text for sign in _LOST)


_LOST = ("Connection closed by peer", "Connection reset", "gloo", "NCCL", "Broken pipe", "Timed out")

Announce = Callable[[str], None]


def only_main(announce: Announce) -> Announce:
    """``announce`` on the process that talks, nothing on the others."""
    return announce if world().main else _nothing


def _nothing(text: str) -> None:
    pass
