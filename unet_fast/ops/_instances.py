"""What the ops on instance label maps share: the dtypes, and the range of the labels."""

from __future__ import annotations

import torch

from unet_fast import checks
from unet_fast.errors import InputError

DTYPES = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32, torch.int64)
MAX_LABEL = 2**31 - 1


def check_instances(instances: torch.Tensor, ranks: tuple[int, ...], layout: str) -> None:
    """Raise unless ``instances`` is an integer tensor of one of these ranks."""
    checks.check_tensor("instances", instances)
    checks.check_dtype("instances", instances, DTYPES)
    checks.check_rank("instances", instances, ranks, layout)


def check_labels(instances: torch.Tensor) -> None:
    """Raise for labels out of range, with the kernel's words; for the reference, which does not look."""
    labels = instances.to(torch.int64)
    bad = labels[(labels < 0) | (labels > MAX_LABEL)]
    if bad.numel():
        raise InputError(
            f"instances contains {int(bad[0])}, expected labels 0 (background) to {MAX_LABEL}; relabel the cells"
        )
