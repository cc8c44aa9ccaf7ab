"""norm_activation against torch's normalisation and activation one after the other, forward and backward, in both layouts.

python -m benchmarks.bench_norm_activation
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Candidate, Options, Suite, run
from unet_fast.ops import norm_activation

CASES = [(2, 32, 256), (2, 128, 64), (2, 512, 16)]  # the levels of a network of 32 channels on images of 256
LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}


def instance(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As in BasicUNet, DynUNet and nnU-Net."""
    return F.leaky_relu(F.instance_norm(x, None, None, weight, bias), 0.1, inplace=True)


def batch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As in most others."""
    return F.relu(F.batch_norm(x, None, None, weight, bias, True), inplace=True)


NORMS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "instance norm, leaky ReLU": (partial(norm_activation, activation="leaky_relu", slope=0.1), instance),
    "batch norm, ReLU": (partial(norm_activation, norm="batch", activation="relu"), batch),
}


def main(options: Options) -> None:
    torch.manual_seed(0)
    suite = Suite("norm_activation", options)
    for n, channels, side in [(1, 4, 8)] if options.tiny else CASES[: 2 if options.quick else None]:
        for layout, form in LAYOUTS.items():
            x = torch.randn(n, channels, side, side, device=options.device).to(memory_format=form)
            leaves = [x, torch.randn(channels, device=options.device), torch.randn(channels, device=options.device)]
            leaves = [leaf.requires_grad_() for leaf in leaves]
            grad = torch.randn_like(x)
            for name, (ours, plain) in NORMS.items():
                torch.testing.assert_close(ours(*leaves), plain(*leaves), rtol=1e-4, atol=1e-4)

                def both(function: Callable[..., Tensor], leaves: list[Tensor] = leaves, grad: Tensor = grad) -> None:
                    torch.autograd.grad(function(*leaves), leaves, grad)

                case = f"{name}, {n} x {channels}x{side}x{side}, {layout}"
                for what, call, least in (
                    ("forward", lambda function, leaves=leaves: function(*leaves), 2),
                    ("forward + backward", both, 5),
                ):
                    with torch.set_grad_enabled(call is both):
                        timed = {
                            **options.ours("norm_activation", partial(call, ours)),
                            "torch": Candidate(partial(call, plain)),
                            "copy of the map": Candidate(lambda x=x: x.detach().clone(), role="floor"),
                        }
                        suite.measure(f"{case}, {what}", timed, least_bytes=least * x.nbytes)
    suite.finish()


if __name__ == "__main__":
    run(main)
