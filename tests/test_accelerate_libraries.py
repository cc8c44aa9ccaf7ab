"""Networks of other libraries compute, and learn, the same after uf.accelerate as before, and have the same names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._pytree import tree_leaves

import unet_fast as uf
from tests import peers

# what must run as one in each, whatever else does
JOINED = {
    "milesial": ["join of maps", "3x3 convolution + BatchNorm2d + ReLU (x2)"],
    "milesial bilinear": ["join of maps", "3x3 convolution + BatchNorm2d + ReLU (x2)"],
    "pytorch-3dunet": ["join of maps", "3x3 convolution + ReLU (x2)"],
    "MONAI BasicUNet": ["join of skip and padded map", "InstanceNorm2d + LeakyReLU (x2)"],
    "MONAI UNet": ["InstanceNorm2d + PReLU"],
    "MONAI DynUNet": ["join of maps", "InstanceNorm2d + LeakyReLU (x2)"],
    "MONAI DynUNet residual": ["join of maps", "InstanceNorm2d + LeakyReLU"],
    "MONAI FlexibleUNet": ["join of skip and padded map", "3x3 convolution + BatchNorm2d + ReLU"],
    "nnU-Net PlainConvUNet": ["join of maps (x2)", "InstanceNorm2d + LeakyReLU"],
    "nnU-Net ResidualEncoderUNet": ["join of maps (x2)", "InstanceNorm2d + LeakyReLU"],
    "smp Unet": ["join of maps", "3x3 convolution + BatchNorm2d + ReLU (x2)"],
    "smp Unet timm": ["join of maps", "7x7 convolution + BatchNorm2d + ReLU"],
    "smp UnetPlusPlus": ["join of maps", "3x3 convolution + BatchNorm2d + ReLU (x2)"],
}


@pytest.mark.parametrize("name", peers.NETWORKS)
def test_same_outputs_names_and_training(name: str, generator: torch.Generator) -> None:
    torch.manual_seed(int(torch.randint(1 << 30, (), generator=generator)))
    net = peers.NETWORKS[name]()
    images = torch.randn(2, 1, 32, 64, generator=generator)
    for module in net.modules():  # statistics that a fold must use
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    plain, keys = copy.deepcopy(net), list(net.state_dict())
    before = {key: value.clone() for key, value in net.state_dict().items()}

    report = uf.accelerate(net, images)

    text = str(report)
    assert report.replaced and all(words in text for words in JOINED[name]), text
    assert not [one for one in report.left if "differs" in one.why], text
    assert list(net.state_dict()) == keys and net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())

    # sizes that were not in the example, in both memory orders
    for order in (torch.contiguous_format, torch.channels_last):
        other = torch.randn(1, 1, 64, 32, generator=generator).contiguous(memory_format=order)
        with torch.inference_mode():
            for got, truth in zip(tree_leaves(net.eval()(other)), tree_leaves(plain.eval()(other)), strict=True):
                assert (got - truth).abs().max() <= 1e-4 * truth.abs().max()

    losses = [_train(one, images) for one in (net, plain)]
    assert torch.allclose(*map(torch.tensor, losses), rtol=1e-3, atol=0)
    assert losses[0][-1] < losses[0][0]

    report.undo()
    plain.load_state_dict(net.state_dict())
    assert not [module for module in net.modules() if "forward" in module.__dict__]
    got, truth = (tree_leaves(one.eval()(images)) for one in (net, plain))
    assert all(torch.equal(a, b) for a, b in zip(got, truth, strict=True))


def _train(net: torch.nn.Module, images: torch.Tensor, steps: int = 20) -> list[float]:
    """The losses of some steps of gradient descent."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 1e-2)
    target = (images[:, 0] > 0).long()
    losses = []
    for _ in range(steps):
        head = tree_leaves(net(images))[0]
        if head.dim() == 5:  # DynUNet's stacked heads
            head = head[:, 0]
        loss = torch.nn.functional.cross_entropy(head, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_basic_unet_pads_odd_maps(generator: torch.Generator) -> None:
    net = peers.NETWORKS["MONAI BasicUNet"]().eval()
    plain = copy.deepcopy(net)
    uf.accelerate(net, torch.randn(1, 1, 64, 64, generator=generator))
    image = torch.randn(1, 1, 75, 53, generator=generator)
    truth = plain(image)
    assert (net(image) - truth).abs().max() <= 1e-4 * truth.abs().max()


def test_deep_supervision_is_switched_as_before(generator: torch.Generator) -> None:
    # nnU-Net sets an attribute that its decoder's forward branches on
    net = peers.NETWORKS["nnU-Net PlainConvUNet"]().eval()
    image = torch.randn(1, 1, 32, 32, generator=generator)
    uf.accelerate(net, image)
    assert len(net(image)) == 2
    net.decoder.deep_supervision = False
    alone = net(image)
    net.decoder.deep_supervision = True
    assert torch.allclose(alone, net(image)[0], atol=1e-5)
