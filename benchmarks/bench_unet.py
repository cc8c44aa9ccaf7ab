"""The whole U-Net, plain and fused, eager and compiled: the forward pass and a training step, with peak memory.

python -m benchmarks.bench_unet
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import unet_fast as uf
from benchmarks.common import Options, Suite, run
from benchmarks.memory import named
from tests.tolerances import NETWORK_LOW_PRECISION
from unet_fast.models.fusion import AUTO

# base channels, side, batch, bfloat16 autocast; the paper's network on 572 pixels last
CPU = [(32, 188, 1, False), (32, 380, 1, True), (64, 572, 1, False)]
GPU = [(64, 572, 1, False), (64, 572, 1, True), (64, 572, 8, True)]


def networks(base: int, device: str) -> dict[str, uf.UNet]:
    """The same weights twice: "fused" as "auto" has it, or everything where that is not decided; and torch's layers."""
    plain = uf.UNet(base_channels=base, fused=False)
    fused = uf.UNet(base_channels=base, fused="auto" if device in AUTO else True)
    fused.load_state_dict(plain.state_dict())
    both = {"fused": fused, "plain": plain}
    return {name: net.to(device, memory_format=torch.channels_last) for name, net in both.items()}


def main(options: Options) -> None:
    torch.manual_seed(0)
    suite = Suite("unet", options)
    cases = GPU if options.device == "cuda" else CPU
    for base, side, batch, low in cases[:1] if options.quick else cases:
        measure(suite, base, side, batch, low)
    suite.finish()


def measure(suite: Suite, base: int, side: int, batch: int, low: bool) -> None:
    """One case: check that all agree, then the two tables."""
    device = suite.options.device
    nets = networks(base, device)
    x = torch.randn(batch, 1, side, side, device=device)
    out = nets["plain"].output_size(side)
    target = torch.randint(0, 2, (batch, out, out), device=device)
    weight = torch.rand(batch, out, out, device=device) + 1

    def forward(net: Callable[..., Any]) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=low):
            return net(x)

    def step(net: uf.UNet, loss: Callable[..., torch.Tensor]) -> torch.Tensor:
        net.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=low):
            value = loss(x, target, weight)
        value.backward()
        return value.detach()

    expected = forward(nets["plain"]).double()
    error = (forward(nets["fused"]).double() - expected).square().mean().sqrt()
    assert error <= NETWORK_LOW_PRECISION * expected.square().mean().sqrt(), "the networks differ"
    torch.testing.assert_close(
        step(nets["fused"], nets["fused"].loss), step(nets["plain"], nets["plain"].loss), rtol=1e-2, atol=1e-3
    )
    forwards: dict[str, Callable[[], Any]] = {}
    steps: dict[str, Callable[[], Any]] = {}
    for name, net in nets.items():
        compiled, compiled_loss = torch.compile(net), torch.compile(net.loss)
        for how, call, loss in ((name, net, net.loss), (f"{name}, torch.compile", compiled, compiled_loss)):
            forwards[how] = partial(forward, call)
            steps[how] = partial(step, net, loss)
    case = f"base {base}, {batch} x {side}x{side}, {'bfloat16' if low else 'float32'}"
    for kind, calls in (("forward", forwards), ("training step", steps)):
        timed = {named(name, call, device): call for name, call in calls.items()}
        suite.measure(f"{case}, {kind}", timed, rounds=5)


if __name__ == "__main__":
    run(main)
