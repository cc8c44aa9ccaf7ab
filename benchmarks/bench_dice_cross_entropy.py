"""dice_cross_entropy, forward and backward, against MONAI's DiceCELoss and the same in plain torch, given the very same tensors.

python -m benchmarks.bench_dice_cross_entropy
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Candidate, Options, Suite, run
from benchmarks.peers import optional
from unet_fast.ops import dice_cross_entropy

CASES = [(2, 2, (256, 256)), (2, 1, (256, 256)), (2, 4, (256, 256)), (1, 3, (64, 64, 64)), (1, 14, (256, 256))]


def plain(logits: Tensor, target: Tensor) -> Tensor:
    """From one-hot targets and probabilities."""
    classes, axes = logits.shape[1], (0, *range(2, logits.dim()))
    if classes == 1:
        p, t = logits.sigmoid(), target.to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, t)
    else:
        p, t = logits.softmax(1), F.one_hot(target.squeeze(1), classes).movedim(-1, 1)
        loss = F.cross_entropy(logits, target.squeeze(1))
    dice = 1 - (2 * (p * t).sum(axes) + 1e-5) / (p.sum(axes) + t.sum(axes) + 1e-5)
    return dice.mean() + loss


def step(loss: Callable[..., Tensor], leaf: Tensor, target: Tensor) -> None:
    """The loss of a network sees no leaf; made anew, since a graph captures no backward of what was made before it."""
    torch.autograd.grad(loss(leaf.view_as(leaf), target), leaf)


def compare(suite: Suite, case: str, monai: Any, logits: Tensor, target: Tensor) -> None:
    """Check the loss and time a step."""
    ours = partial(dice_cross_entropy, over="batch")
    truth = plain(logits.detach().double(), target)
    torch.testing.assert_close(ours(logits, target).double(), truth, rtol=2e-6, atol=0.0)
    timed = {
        **suite.options.ours("dice_cross_entropy", partial(step, ours, logits, target)),
        "plain torch": Candidate(partial(step, plain, logits, target)),
    }
    if monai is not None:
        one = logits.shape[1] == 1
        theirs = monai.DiceCELoss(sigmoid=one, softmax=not one, to_onehot_y=not one, batch=True)
        timed["MONAI DiceCELoss"] = Candidate(partial(step, theirs, logits, target), capture=False)
    suite.measure(case, timed, least_bytes=3 * logits.nbytes + 2 * target.nbytes)


def main(options: Options) -> None:
    torch.manual_seed(0)
    suite = Suite("dice_cross_entropy", options)
    monai = optional("monai.losses")
    for n, classes, size in [(1, 2, (12, 12))] if options.tiny else CASES[: 2 if options.quick else None]:
        for layout in ("NCHW", "channels-last"):
            last = torch.channels_last_3d if len(size) == 3 else torch.channels_last
            form = torch.contiguous_format if layout == "NCHW" else last
            logits = torch.randn(n, classes, *size, device=options.device).to(memory_format=form).requires_grad_()
            target = torch.randint(0, max(classes, 2), (n, 1, *size), device=options.device)
            case = f"{n} x {classes} classes x {'x'.join(map(str, size))}, {layout}"
            compare(suite, f"{case}, forward + backward", monai, logits, target)
            if classes == 1:  # a mask, which people have as floating numbers as well
                compare(suite, f"{case}, floating target, forward + backward", monai, logits, target.to(logits.dtype))
    suite.finish()


if __name__ == "__main__":
    run(main)
