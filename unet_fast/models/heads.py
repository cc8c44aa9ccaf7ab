"""Networks with several heads: what they return in training, and how that becomes one map of logits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class HeadOutputs(NamedTuple):
    """What a network with several heads returns in training mode; in eval mode it returns one tensor of logits.

    ``loss(outputs.logits, ...)`` alone trains the main head; ``outputs.heads`` holds all of them for deep supervision.
    """

    logits: Tensor
    """The logits of the main head, (N, num_classes, H, W)."""
    auxiliary: tuple[Tensor, ...] = ()
    """The other heads, (N, num_classes, h, w) each, the nearest to the main one first; the network states the sizes."""
    class_logits: Tensor | None = None
    """(N, 2) logits of "the image shows none" and "shows some foreground"; ``None`` without such a module."""
    gates: Tensor | None = None
    """The sigmoid of ``class_logits``, (N, 2)."""

    @property
    def heads(self) -> tuple[Tensor, ...]:
        """All logits, the main ones first."""
        return (self.logits, *self.auxiliary)


def mean_logits(heads: tuple[Tensor, ...]) -> Tensor:
    """The logits whose probabilities are the mean of those of ``heads``, (N, K, H, W) each.

    Sigmoid for K = 1, softmax otherwise. Computed from log-probabilities in float32 (float64 for float64), so that
    confident pixels neither overflow nor lose their order; returned in the dtype of the heads.
    """
    stacked = _wide(torch.stack(heads))
    if stacked.shape[2] == 1:
        mean = torch.logsumexp(F.logsigmoid(stacked), 0) - torch.logsumexp(F.logsigmoid(-stacked), 0)
    else:
        mean = torch.logsumexp(F.log_softmax(stacked, 2), 0) - math.log(len(heads))
    return mean.to(heads[0].dtype)


def gated_logits(logits: Tensor, gate: Tensor) -> Tensor:
    """The logits (N, K, H, W) whose foreground probabilities are those of ``logits`` times sigmoid(``gate``) (N,).

    What the foreground loses goes to the background: 1 - p for K = 1 (sigmoid), class 0 otherwise (softmax). (Logits
    multiplied by the gate would instead tend to probability 1/2.)
    """
    z, c = _wide(logits), _wide(gate).view(-1, 1, 1, 1)
    opened, closed = F.logsigmoid(c), F.logsigmoid(-c)
    if z.shape[1] == 1:
        inside, outside = F.logsigmoid(z), F.logsigmoid(-z)
        result = inside + opened - torch.logaddexp(outside, inside + closed)
    else:
        log_p = F.log_softmax(z, 1)
        foreground = log_p[:, 1:]
        background = torch.logaddexp(log_p[:, :1], torch.logsumexp(foreground, 1, keepdim=True) + closed)
        result = torch.cat([background, foreground + opened], 1)
    return result.to(logits.dtype)


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()
