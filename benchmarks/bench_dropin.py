"""Networks of other libraries before and after ``uf.accelerate``: forward in evaluation and training step, both memory orders.

One thread, default settings of each library, 2 images of 256 pixels. The baseline is the better of the network's two memory
orders, and so is what is compared with it. A library that is not installed is left out (``pip install --group test``).

python -m benchmarks.bench_dropin
python -m benchmarks.bench_dropin training "MONAI UNet"    # piece by piece, into the same result file
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import unet_fast as uf
from benchmarks.common import Candidate, Options, Suite, one_thread, run
from benchmarks.peers import optional
from tools.peers import Milesial, let_torchvision_load

PARTS = ("forward", "training")
ORDERS = {"channels-last": torch.channels_last, "NCHW": torch.contiguous_format}


def networks(tiny: bool) -> dict[str, Callable[[], nn.Module]]:
    """The rows: name and how the network is made."""
    rows: dict[str, Callable[[], nn.Module]] = {
        "milesial": partial(Milesial, base=16 if tiny else 32, depth=1 if tiny else 4)
    }
    if tiny:
        return rows
    monai, nnunet = optional("monai.networks.nets"), optional("dynamic_network_architectures.architectures.unet")
    if monai is not None:
        halved = {"kernel_size": (3,) * 5, "strides": (1, 2, 2, 2, 2), "upsample_kernel_size": (2,) * 4}
        rows["MONAI BasicUNet"] = partial(monai.BasicUNet, spatial_dims=2, in_channels=1, out_channels=2)
        rows["MONAI DynUNet"] = partial(monai.DynUNet, spatial_dims=2, in_channels=1, out_channels=2, **halved)
        widths = {"channels": (16, 32, 64, 128, 256), "strides": (2, 2, 2, 2), "num_res_units": 2}
        rows["MONAI UNet"] = partial(monai.UNet, spatial_dims=2, in_channels=1, out_channels=2, **widths)
    if nnunet is not None:
        rows["nnU-Net PlainConvUNet"] = partial(
            nnunet.PlainConvUNet, 1, 6, (32, 64, 128, 256, 512, 512), nn.Conv2d, 3, (1, 2, 2, 2, 2, 2), 2, 2, 2,
            conv_bias=True, norm_op=nn.InstanceNorm2d, norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        )  # fmt: skip
    let_torchvision_load()
    smp = optional("segmentation_models_pytorch")
    if smp is not None:
        rows["smp Unet, ResNet-18"] = partial(smp.Unet, "resnet18", encoder_weights=None, in_channels=1, classes=2)
    return rows


def forward(net: nn.Module, image: Tensor) -> None:
    """One call in evaluation."""
    net.eval()
    with torch.inference_mode():
        net(image)


def step(net: nn.Module, optimizer: torch.optim.Optimizer, image: Tensor, target: Tensor) -> None:
    """One training step."""
    net.train()
    loss = F.cross_entropy(tree_leaves(net(image))[0], target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def accelerated(net: nn.Module, form: torch.memory_format) -> nn.Module:
    """A copy with what can run faster replaced, checked on a small image."""
    one = copy.deepcopy(net).to(memory_format=form)
    report = uf.accelerate(one, torch.randn(2, 1, 64, 64).contiguous(memory_format=form))
    assert report.replaced and report.largest_difference <= 1e-4 * report.scale, report
    return one


def network(suite: Suite, name: str, net: nn.Module, side: int, training: bool) -> None:
    """One row: before and after, in both memory orders."""
    image, target = torch.randn(2, 1, side, side), torch.randint(0, 2, (2, side, side))
    calls: dict[str, Candidate] = {}
    for order, form in ORDERS.items():
        x = image.contiguous(memory_format=form)
        for what, one in (
            ("accelerated", accelerated(net, form)),
            ("as it is", copy.deepcopy(net).to(memory_format=form)),
        ):
            optimizer = torch.optim.SGD(one.parameters(), 1e-3)
            call = partial(step, one, optimizer, x, target) if training else partial(forward, one, x)
            calls[f"{what}, {order}"] = Candidate(call, role="ours" if what == "accelerated" else "peer")
    suite.measure(f"{name}, 2 x {side} x {side}", calls, rounds=3, seconds=0.0, images=2)


def measure(options: Options, training: bool) -> None:
    """One result file."""
    suite = Suite("dropin_training" if training else "dropin", options, picture=True)
    rows = networks(options.tiny)
    asked = [name for name in options.only if name not in PARTS]
    unknown = sorted(set(asked) - set(rows))
    if unknown:
        raise SystemExit(f"there is no {', '.join(unknown)}; expected {', '.join(PARTS)} or one of {', '.join(rows)}")
    for name in asked or rows:
        torch.manual_seed(0)
        network(suite, name, rows[name](), 32 if options.tiny else 256, training)
    suite.finish()


def main(options: Options) -> None:
    if options.device != "cpu":
        return
    parts = [part for part in PARTS if part in options.only] or PARTS
    with one_thread():
        for part in parts:
            measure(options, part == "training")


if __name__ == "__main__":
    run(main)
