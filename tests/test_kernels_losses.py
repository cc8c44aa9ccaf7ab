"""The kernels of weighted_cross_entropy for GPUs below the public function, against the C++ ones: paths that only they have."""

from __future__ import annotations

import math

import pytest
import torch

from tests.places import only
from tests.tolerances import CROSS_ENTROPY, CROSS_ENTROPY_GRADIENT, EXACT
from unet_fast.ops import use_backend, weighted_cross_entropy

pytestmark = pytest.mark.kernels


@only("emulated")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_bad_target_makes_its_pixel_nan_and_no_other(dtype, classes, channels_last, kernels, generator):
    logits = torch.randn(2, classes, 8, 12, generator=generator).to(dtype)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    target = torch.randint(0, classes, (2, 8, 12), generator=generator)
    target[0, 3, 5], target[1, 7, 11] = classes, -1
    bad = (target < 0) | (target >= classes)
    for reduction in range(4):
        loss, grad = kernels.weighted_cross_entropy(logits, target, None, -100, reduction, True)
        assert torch.equal(loss.isnan(), bad if reduction == 0 else torch.tensor(True))
        assert torch.equal(grad.isnan().any(1), bad) and torch.equal(grad.isnan().all(1), bad)


@only("emulated")
@pytest.mark.parametrize("classes", [2, 5])
def test_more_tiles_than_blocks_and_the_same_bits_in_every_run(classes, kernels, generator):
    """Blocks walk on to other tiles and images; odd sizes leave every last tile incomplete."""
    logits = torch.randn(3, classes, 601, 603, generator=generator).contiguous(memory_format=torch.channels_last)
    target = torch.randint(0, classes, (3, 601, 603), generator=generator)
    weight = torch.rand(3, 601, 603, generator=generator)
    first = kernels.weighted_cross_entropy(logits, target, weight, -100, 2, True)
    again = kernels.weighted_cross_entropy(logits, target, weight, -100, 2, True)
    torch.testing.assert_close(again, first, **EXACT)
    loss, grad = torch.ops.unet_fast.weighted_cross_entropy(logits, target, weight, -100, 2, True)
    torch.testing.assert_close(first[0], loss, **CROSS_ENTROPY[torch.float32])
    assert (first[1] - grad).abs().max() <= CROSS_ENTROPY_GRADIENT[torch.float32] * grad.abs().max()


@only("emulated")
@pytest.mark.parametrize("reduction", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(2, 5, 33, 31), (2, 21, 16, 24), (1, 150, 9, 8), (1, 300, 5, 8), (2, 16, 1, 3)])
def test_many_classes_in_both_layouts(shape, dtype, reduction, kernels, generator):
    """Channels-last goes through shared memory in tiles of 256 pixels or fewer, or not at all for 300 classes."""
    n, k, *size = shape
    logits = (torch.randn(shape, generator=generator) * 3).to(dtype)
    target, weight = torch.randint(0, k, (n, *size), generator=generator), torch.rand((n, *size), generator=generator)
    target[0, 0, 1] = 255
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    arguments = (target, weight.to(wide), 255, reduction, True)
    last = kernels.weighted_cross_entropy(logits.contiguous(memory_format=torch.channels_last), *arguments)
    truth = torch.ops.unet_fast.weighted_cross_entropy(logits, *arguments)
    for loss, grad in (last, kernels.weighted_cross_entropy(logits, *arguments)):
        torch.testing.assert_close(loss, truth[0], **CROSS_ENTROPY[dtype])
        error, largest = (grad.double() - truth[1].double()).abs().max(), truth[1].double().abs().max()
        assert error <= CROSS_ENTROPY_GRADIENT[dtype] * largest
    no_grad = kernels.weighted_cross_entropy(logits, target, weight.to(wide), 255, reduction, False)[0]
    torch.testing.assert_close(no_grad, last[0], **CROSS_ENTROPY[dtype])


@only("emulated")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 8])
def test_misaligned_slices(classes, channels_last, kernels, generator):
    """A slice that starts in the middle of a vector takes the narrow path: the wide one would trap here."""
    storage = torch.randn(1 + 2 * classes * 8 * 8, generator=generator)
    logits = storage[1:].view(2, classes, 8, 8)
    if channels_last:
        logits = storage[1:].view(2, 8, 8, classes).permute(0, 3, 1, 2)
    target, weight = torch.ones(129, dtype=torch.int32)[1:].view(2, 8, 8), torch.ones(129)[1:].view(2, 8, 8)
    assert logits.data_ptr() % 16 and target.data_ptr() % 16 and weight.data_ptr() % 16
    sliced = kernels.weighted_cross_entropy(logits, target, weight, -100, 1, True)
    whole = kernels.weighted_cross_entropy(logits.clone(), target.clone(), weight.clone(), -100, 1, True)
    torch.testing.assert_close(sliced[1], whole[1], **EXACT)


@only("interpreted")
@pytest.mark.parametrize("k", [2, 3, 300])
@pytest.mark.parametrize("bad", [-1, 300])
def test_a_target_outside_the_classes_is_nan(k, bad):
    """A GPU cannot raise without making the host wait; and nothing but the pixel's own gradient is spoiled."""
    logits, target = torch.zeros(2, k, 3, 4, requires_grad=True), torch.zeros(2, 3, 4, dtype=torch.int64)
    target[1, 2, 3] = bad
    with use_backend("triton"):
        loss = weighted_cross_entropy(logits, target)
        each = weighted_cross_entropy(logits, target, reduction="none")
    assert math.isnan(loss)
    assert each.isnan().sum() == 1 and each[1, 2, 3].isnan()
    loss.backward()
    broken = logits.grad.isnan().any(1)
    assert broken.sum() == 1 and broken[1, 2, 3]


@only("interpreted")
def test_the_loop_over_tiles(monkeypatch, generator):
    """More tiles than programs: each program takes several, of several images."""
    from unet_fast.triton import weighted_cross_entropy as kernels

    logits = torch.randn(3, 2, 40, 60, generator=generator)
    target = torch.randint(0, 2, (3, 40, 60), generator=generator)
    weight = torch.rand(3, 40, 60, generator=generator)
    whole = kernels.weighted_cross_entropy(logits, target, weight, -100, 3, True)
    monkeypatch.setattr(kernels, "_LOSS_PROGRAMS", 2)
    monkeypatch.setattr(kernels, "_DIVISOR_PROGRAMS", 2)
    for once, again in zip(whole, kernels.weighted_cross_entropy(logits, target, weight, -100, 3, True), strict=True):
        torch.testing.assert_close(once, again)
