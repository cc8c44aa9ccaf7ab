"""UNet++ in full and pruned to each level: what deep supervision buys at prediction.

Pruned networks are built without the nodes that their head does not need, so that weights and work vanish with the time.

python -m benchmarks.bench_unet_plus_plus
"""

from __future__ import annotations

import torch

from benchmarks.common import Candidate, Options, Suite, run
from unet_fast.models.plusplus import UNetPlusPlus


def main(options: Options) -> None:
    suite = Suite("unet_plus_plus", options, picture=True)
    torch.manual_seed(0)
    full = UNetPlusPlus().to(options.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    fast = UNetPlusPlus(mode="fast").to(options.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    fast.load_state_dict(full.state_dict())
    networks = {"all heads, averaged": full, "the last head": fast}
    for level in (3, 2, 1):
        networks[f"pruned to level {level}"] = full.pruned(level).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(1, 1, 256, 256, device=options.device).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(full.pruned(4)(images), fast(images), rtol=1e-4, atol=1e-5)
        candidates = {}
        for name, network in networks.items():
            weights = sum(parameter.numel() for parameter in network.parameters())
            candidates[f"{name}, {weights / 1e6:.2f} M weights"] = Candidate(
                lambda network=network: network(images), role="ours"
            )
        suite.measure("1x1x256x256, channels-last, float32", candidates, rounds=9)
    suite.finish()


if __name__ == "__main__":
    run(main)
