"""upsample_concat against F.interpolate and torch.cat, forward and backward, in both layouts.

python -m benchmarks.bench_upsample_concat
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Candidate, Options, Suite, run
from unet_fast.ops import upsample_concat

CASES = [(32, 64, 128), (128, 256, 32)]  # channels of the skip, channels and side of the map that is up-sampled
LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}


def plain(skip: Tensor, x: Tensor, mode: str) -> Tensor:
    """As decoders write it."""
    return torch.cat([F.interpolate(x, scale_factor=2, mode=mode), skip], 1)


def main(options: Options) -> None:
    torch.manual_seed(0)
    suite = Suite("upsample_concat", options)
    for c1, c2, side in [(4, 4, 6)] if options.tiny else CASES[: 1 if options.quick else None]:
        for layout, form in LAYOUTS.items():
            sizes = ((2, c1, 2 * side, 2 * side), (2, c2, side, side))
            leaves = [torch.randn(s, device=options.device).to(memory_format=form).requires_grad_() for s in sizes]
            grad = torch.randn(2, c1 + c2, 2 * side, 2 * side, device=options.device).to(memory_format=form)
            for mode in ("nearest", "bilinear"):
                ours, theirs = partial(upsample_concat, mode=mode, order="up_first"), partial(plain, mode=mode)
                torch.testing.assert_close(ours(*leaves), theirs(*leaves), rtol=1e-5, atol=1e-5)

                def both(function: Callable[..., Tensor], leaves: list[Tensor] = leaves, grad: Tensor = grad) -> None:
                    torch.autograd.grad(function(*leaves), leaves, grad)

                case = f"{mode}, 2 x {c2}x{side}x{side} + {c1}, {layout}"
                read = leaves[0].nbytes + leaves[1].nbytes
                for what, call, least in (
                    ("forward", lambda function, leaves=leaves: function(*leaves), read + grad.nbytes),
                    ("forward + backward", both, read + 2 * grad.nbytes + leaves[1].nbytes),
                ):
                    with torch.set_grad_enabled(call is both):
                        timed = {
                            **options.ours("upsample_concat", partial(call, ours)),
                            "F.interpolate, torch.cat": Candidate(partial(call, theirs)),
                        }
                        suite.measure(f"{case}, {what}", timed, least_bytes=least)
    suite.finish()


if __name__ == "__main__":
    run(main)
