"""What is asked of functions that torch.compile has compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def check_compiled_gradients(
    step: Callable[..., Tensor], parameters: Sequence[Tensor], inputs: Sequence[Tensor]
) -> None:
    """One graph without breaks serves inputs of several sizes: the gradients of ``step(x, *parameters)`` are those without it."""
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for x in inputs:
        expected = torch.autograd.grad(step(x, *parameters), parameters)
        torch.testing.assert_close(torch.autograd.grad(compiled(x, *parameters), parameters), expected)
