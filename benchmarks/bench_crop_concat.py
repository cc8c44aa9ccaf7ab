"""crop_concat against slice and torch.cat, and the limit: a copy of the bytes that the op must move."""

from __future__ import annotations

import torch

from benchmarks.common import Suite
from unet_fast import ops, reference

CASES = [  # skip (C, H), up (C, h): the two widest concats of a 572 tile, and a same-padding one
    ((64, 568), (64, 392)),
    ((128, 280), (128, 200)),
    ((64, 192), (64, 192)),
]


def main() -> None:
    suite = Suite("crop_concat")
    for (c1, large), (c2, small) in CASES:
        for name, form in (("NCHW", torch.contiguous_format), ("channels-last", torch.channels_last)):
            skip, up = torch.rand(1, c1, large, large), torch.rand(1, c2, small, small)
            skip, up = (t.to(memory_format=form).requires_grad_() for t in (skip, up))
            grad = torch.rand(1, c1 + c2, small, small).to(memory_format=form)
            torch.testing.assert_close(ops.crop_concat(skip, up), reference.crop_concat(skip, up))
            buffer = torch.empty_like(grad)
            case = f"{c1}x{large}x{large} + {c2}x{small}x{small}, {name}"
            with torch.no_grad():
                suite.measure(
                    f"{case}, forward",
                    {
                        "crop_concat": lambda s=skip, u=up: ops.crop_concat(s, u),
                        "slice + torch.cat": lambda s=skip, u=up: reference.crop_concat(s, u),
                        "copy of the result": lambda b=buffer, g=grad: b.copy_(g),
                    },
                )

            def both(function, s=skip, u=up, g=grad):
                return torch.autograd.grad(function(s, u), (s, u), g)

            suite.measure(
                f"{case}, forward + backward",
                {
                    "crop_concat": lambda b=both: b(ops.crop_concat),
                    "slice + torch.cat": lambda b=both: b(reference.crop_concat),
                },
            )
    suite.finish()


if __name__ == "__main__":
    main()
