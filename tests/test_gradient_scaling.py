"""The stored gradients of the losses times that of the loss, in place: where kernels for GPUs run."""

from __future__ import annotations

import pytest
import torch

from tests import places
from tests.places import only
from tests.tolerances import EXACT
from unet_fast.ops import head_cross_entropy, weighted_cross_entropy
from unet_fast.ops.weighted_cross_entropy import _IN_PLACE_ON

pytestmark = [pytest.mark.kernels, only("cuda", "emulated", "interpreted")]


@pytest.fixture
def device(place):
    """A device on which gradients are scaled in place: the CPU where a kernel of a GPU is in its place."""
    _IN_PLACE_ON.add(place)
    yield place
    if place == "cpu":
        _IN_PLACE_ON.remove(place)


@pytest.mark.parametrize("factor", [1.0, 3.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(8, 12), (7, 5)])
def test_kernel(size, dtype, factor, device, generator):
    stored = torch.float32 if dtype == torch.float16 else dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    planar = torch.randn(2, 3, *size, generator=generator).to(stored).to(device)
    last = planar.to(memory_format=torch.channels_last)
    every_second = planar.repeat_interleave(2, -1)[..., ::2]
    small, empty = torch.randn(3, 5, generator=generator).to(device), torch.zeros(0, device=device)
    grads = [planar, last, every_second, small.to(wide), empty, planar.flatten()[1:]]
    wanted = [(grad.to(wide) * factor).to(grad.dtype) for grad in grads[:5]]
    torch.ops.unet_fast.weighted_cross_entropy_backward_(
        [grads[0].clone(), *grads[1:5]], torch.tensor(factor, dtype=wide, device=device)
    )
    # the interpreter cuts float32 off to bfloat16, where a GPU rounds
    tolerance = {"rtol": 2**-7, "atol": 0.0} if places.PLACE == "interpreted" and dtype == torch.bfloat16 else EXACT
    for grad, want in zip(grads[1:5], wanted[1:], strict=True):
        torch.testing.assert_close(grad, want, **tolerance)
    tail = grads[5].clone()  # starts in the middle of a vector where it shares memory
    torch.ops.unet_fast.weighted_cross_entropy_backward_([grads[5]], torch.tensor(factor, dtype=wide, device=device))
    torch.testing.assert_close(grads[5], (tail.to(wide) * factor).to(stored), **tolerance)


def test_registration(device, generator):
    grads = [torch.randn(2, 3, 4, 5, generator=generator).to(device), torch.randn(3, generator=generator).to(device)]
    operator = torch.ops.unet_fast.weighted_cross_entropy_backward_.default
    torch.library.opcheck(operator, (grads, torch.tensor(2.0, device=device)))


def losses(generator, device, dtype):
    """A loss by each operator, as a function of leaves, behind a network (nothing that is saved is a leaf) or on leaves."""
    features = torch.randn(2, 5, 6, 7, generator=generator).to(device, dtype)
    weight = torch.randn(3, 5, generator=generator).to(device, torch.promote_types(dtype, torch.float32))
    target = torch.randint(0, 3, (2, 6, 7), generator=generator).to(device)
    return (
        (lambda x, w: weighted_cross_entropy(x[:, :3] * 1, target), (features, weight)),
        (lambda x, w: weighted_cross_entropy(x, target), (features[:, :3].contiguous(), weight)),
        (lambda x, w: head_cross_entropy(x * 1, w * 1, None, target), (features, weight)),
        (lambda x, w: head_cross_entropy(x, w, None, target, relu=True), (features, weight)),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("case", range(4))
def test_factors_and_kept_graphs(case, dtype, device, generator):
    """The gradient of factor * loss is factor times that of loss, and a kept graph gives the same twice."""
    call, tensors = losses(generator, device, dtype)[case]
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]

    def gradients(factor: float, **options: bool) -> list[torch.Tensor | None]:
        return list(torch.autograd.grad(call(*leaves) * factor, leaves, allow_unused=True, **options))

    plain = [None if grad is None else grad.clone() for grad in gradients(1.0)]
    kept = gradients(1.0, retain_graph=True)
    scaled = gradients(4.0)  # exact in every dtype
    loss = call(*leaves)
    first, second = ((loss * factor, leaves) for factor in (4.0, 1.0))
    twice = [torch.autograd.grad(*first, allow_unused=True, retain_graph=True)]
    twice.append(torch.autograd.grad(*second, allow_unused=True))
    for i, want in enumerate(plain):
        if want is None:
            assert kept[i] is None and scaled[i] is None
            continue
        for got, factor in ((kept[i], 1), (scaled[i], 4), (twice[0][i], 4), (twice[1][i], 1)):
            torch.testing.assert_close(got, want * factor, rtol=1e-6 if dtype != torch.float16 else 1e-3, atol=1e-7)
    assert any(want is not None and want.abs().max() > 0 for want in plain)


def test_gradients_of_leaves_add_up(device, generator):
    """A leaf may keep what it gets as its own gradient, and add to it."""
    for call, tensors in losses(generator, device, torch.float32):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        loss = call(*leaves)
        loss.backward(retain_graph=True)
        loss.backward()
        once = [tensor.clone().requires_grad_() for tensor in tensors]
        (call(*once) * 2).backward()
        for leaf, other in zip(leaves, once, strict=True):
            torch.testing.assert_close(leaf.grad, other.grad)
