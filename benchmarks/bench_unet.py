"""The whole U-Net: plain layers of torch, eager and compiled, against ours, also as one CUDA graph; forward pass and training step.

A training step is forward, weighted loss, backward and the optimizer. "plain" is what a user writes: torch's layers, and
cross-entropy times a weight per pixel. Eager candidates pay for their launches, as they do in use.

python -m benchmarks.bench_unet
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import unet_fast as uf
from benchmarks.common import BATCHES, Candidate, Options, Suite, run
from unet_fast.models.fusion import AUTO
from unet_fast.ops._tolerances import NETWORK_LOW_PRECISION

# base channels, side, batch, bfloat16 autocast
CPU = [(32, 188, 1, False), (32, 380, 1, True), (64, 572, 1, False)]
GPU = [(64, 572, 8, True), (64, 572, 1, True)]
TINY = [(4, 60 + 16 * 8, 1, True)]

Call = Callable[..., Any]


def networks(base: int, device: str, padding: str = "valid") -> dict[str, uf.UNet]:
    """The same weights twice: "ours" as "auto" has it, or all fused where that is not decided; and torch's layers."""
    plain = uf.UNet(base_channels=base, padding=padding, fused=False)
    ours = uf.UNet(base_channels=base, padding=padding, fused="auto" if device in AUTO else True)
    ours.load_state_dict(plain.state_dict())
    both = {"ours": ours, "plain": plain}
    return {name: net.to(device, memory_format=torch.channels_last) for name, net in both.items()}


def plain_loss(net: Call, x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """What users write."""
    return (F.cross_entropy(net(x).float(), target, reduction="none") * weight).mean()


def main(options: Options) -> None:
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    suite = Suite("unet", options, picture=True)
    gpu = options.device == "cuda"
    cases = TINY if options.tiny else GPU if gpu else CPU
    if gpu and options.batches != BATCHES:
        cases = [case for case in cases if case[2] in options.batches]
    for case in cases if gpu else cases[: 1 if options.quick else None]:
        measure(suite, *case)
    if gpu and options.peers != "compiled" and 1 in options.batches:
        whole_image(suite)
    suite.finish()


def whole_image(suite: Suite) -> None:
    """The forward pass of one image of 512 x 512 with same padding, the size of a published yardstick."""
    nets, (x, _, _) = problem(64, 512, 1, suite.options.device, padding="same")
    compare_forward(suite, "base 64 same padding, 1 x 512x512, bfloat16", nets, x, low=True)


def problem(
    base: int, side: int, batch: int, device: str, padding: str = "valid"
) -> tuple[dict[str, uf.UNet], tuple[Tensor, Tensor, Tensor]]:
    """Both networks; images, target and weights of the pixels."""
    nets = networks(base, device, padding)
    x = torch.randn(batch, 1, side, side, device=device).contiguous(memory_format=torch.channels_last)
    out = nets["plain"].output_size(side)
    target = torch.randint(0, 2, (batch, out, out), device=device)
    return nets, (x, target, torch.rand(batch, out, out, device=device) + 1)


def candidates(options: Options, ours: Call, plain: Call, compiled: Call) -> dict[str, Candidate]:
    """Every way to run a pass that is asked for; those of one launch a pass only where there is a GPU."""
    passes = {"plain": plain, "plain, torch.compile": compiled, "ours": ours}
    if options.peers != "all":
        del passes["plain" if options.peers == "compiled" else "plain, torch.compile"]
    roles = {name: "ours" if name == "ours" else "peer" for name in passes}
    found = {name: Candidate(call, capture=False, role=roles[name]) for name, call in passes.items()}
    if options.device == "cuda":
        found |= {f"{name}, one graph": Candidate(call, role=roles[name]) for name, call in passes.items()}
    return found


def compare_forward(suite: Suite, case: str, nets: dict[str, uf.UNet], x: Tensor, low: bool) -> None:
    """Check that both agree, then time them."""
    device = suite.options.device

    def forward(net: Call) -> Tensor:
        # no_grad and not inference_mode: what a graph captures may be called in either
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=low, cache_enabled=False):
            return net(x)

    expected = forward(nets["plain"]).double()
    error = (forward(nets["ours"]).double() - expected).square().mean().sqrt()
    assert error <= NETWORK_LOW_PRECISION * expected.square().mean().sqrt(), "the networks differ"
    passes = (partial(forward, net) for net in (nets["ours"], nets["plain"], suite.options.compile(nets["plain"])))
    calls = candidates(suite.options, *passes)
    suite.measure(f"{case}, forward", calls, rounds=5, images=len(x), peaks=True)


def measure(suite: Suite, base: int, side: int, batch: int, low: bool) -> None:
    """One case: check that all agree, then the two tables."""
    device = suite.options.device
    nets, tensors = problem(base, side, batch, device)
    case = f"base {base}, {batch} x {side}x{side}, {'bfloat16' if low else 'float32'}"
    compare_forward(suite, case, nets, tensors[0], low)

    def step(net: uf.UNet, optimizer: torch.optim.Optimizer | None, loss: Call) -> Tensor:
        net.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=low, cache_enabled=False):
            value = loss(*tensors)
        value.backward()
        if optimizer is not None:
            optimizer.step()
        return value.detach()

    plain = partial(plain_loss, nets["plain"])
    torch.testing.assert_close(
        step(nets["ours"], None, nets["ours"].loss), step(nets["plain"], None, plain), rtol=1e-2, atol=1e-3
    )
    optimizers = {
        # the rate is nothing: the weights stay what they are, and the work is the same
        name: torch.optim.AdamW(net.parameters(), 0.0, fused=True, capturable=device == "cuda")
        for name, net in nets.items()
    }
    calls = (
        partial(step, nets["ours"], optimizers["ours"], nets["ours"].loss),
        partial(step, nets["plain"], optimizers["plain"], plain),
        partial(step, nets["plain"], optimizers["plain"], suite.options.compile(plain)),
    )
    suite.measure(f"{case}, training step", candidates(suite.options, *calls), rounds=5, images=batch, peaks=True)


if __name__ == "__main__":
    run(main)
