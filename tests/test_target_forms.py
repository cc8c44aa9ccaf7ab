"""Every loss and every metric takes targets in the forms in which people have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import unet_fast as uf
from tests.metric_samples import instances_of, noisy, random_truth
from tests.tolerances import EXACT
from unet_fast import metrics, nn
from unet_fast.errors import InputError, InputTypeError

pytestmark = pytest.mark.core

SMALL = {"MSSSIMLoss": {"scales": 1}, "FocalMSSSIMIoULoss": {"scales": 1}}
LOSSES: dict[str, Callable[..., Tensor]] = {
    name: getattr(nn, name)(**SMALL.get(name, {})) for name in nn.__all__ if name.endswith("Loss")
}
LOSSES["DeepSupervision"] = lambda x, *rest: nn.DeepSupervision(nn.DiceCELoss())([x, x[..., ::2, ::2]], *rest)
LOSSES["head_cross_entropy"] = lambda x, *rest: uf.ops.head_cross_entropy(x, torch.eye(x.shape[1]), None, *rest)
SEVERAL = {"WeightedCrossEntropyLoss", "head_cross_entropy"}  # of two classes or more
OVERLAPPING = {"DiceLoss", "DiceCELoss", "DeepSupervision"}  # take the truth of each class
DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16)


def test_all_losses_are_here() -> None:
    assert len(LOSSES) >= 14 and LOSSES.keys() >= SEVERAL | OVERLAPPING


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, classes: int, generator: torch.Generator) -> None:
    if classes == 1 and name in SEVERAL:
        pytest.skip("left out: it is for two classes or more")
    loss = LOSSES[name]
    logits = torch.randn(2, classes, 16, 12, generator=generator)
    target = torch.randint(0, max(classes, 2), (2, 16, 12), generator=generator)
    weight = torch.rand(2, 16, 12, generator=generator) + 0.5
    truth = loss(logits, target, weight)
    assert truth.isfinite() and truth != loss(logits, (target + 1) % max(classes, 2), weight)
    forms = [target.to(dtype) for dtype in DTYPES]
    if classes <= 2:
        forms.append(target.bool())
    if classes == 1:
        forms.append(target.double())
    forms += [form.unsqueeze(1) for form in forms]
    if classes > 1:
        one_hot = F.one_hot(target, classes).movedim(-1, 1)
        forms += [
            one_hot,
            one_hot.contiguous(),
            one_hot.bool(),
            one_hot.to(torch.int16),
            one_hot.to(torch.uint8),
            one_hot.to(torch.uint16),
        ]
    for form in forms:
        for weights in (weight, weight.unsqueeze(1)):
            torch.testing.assert_close(loss(logits, form, weights), truth, **EXACT)


@pytest.mark.parametrize("name", LOSSES)
def test_truths_that_are_not_one_class(name: str, generator: torch.Generator) -> None:
    logits = torch.randn(2, 3, 16, 12, generator=generator)
    both = F.one_hot(torch.randint(0, 3, (2, 16, 12), generator=generator), 3).movedim(-1, 1).contiguous()
    both[0, :, 3, 4] = 1
    if name in OVERLAPPING:
        assert LOSSES[name](logits, both).isfinite() and LOSSES[name](logits, both.float() / 2).isfinite()
        return
    with pytest.raises(InputError, match=r"target of shape \(2, 3, 16, 12\) is not one-hot.*activation='sigmoid'"):
        LOSSES[name](logits, both)
    with pytest.raises(InputTypeError, match=r"has dtype float32, expected the one-hot.*lambda_dice=0.0"):
        LOSSES[name](logits, both.float())


def test_the_advice_for_probabilities_is_right(generator: torch.Generator) -> None:
    logits, soft = torch.randn(2, 2, 3, 16, 12, generator=generator)
    got = uf.ops.dice_cross_entropy(logits, soft.softmax(1), lambda_dice=0.0)
    torch.testing.assert_close(got, F.cross_entropy(logits, soft.softmax(1)), rtol=2e-6, atol=0)


def test_a_network_takes_them_too(generator: torch.Generator) -> None:
    net = uf.UNet(1, 3, base_channels=4, depth=1, padding="same")
    images, target = (
        torch.randn(1, 1, 16, 16, generator=generator),
        torch.randint(0, 3, (1, 16, 16), generator=generator),
    )
    truth = net.loss(images, target)
    for form in (target.unsqueeze(1), target.to(torch.int16), F.one_hot(target, 3).movedim(-1, 1).bool()):
        torch.testing.assert_close(net.loss(images, form), truth, **EXACT)


def test_compiled_without_a_break(generator: torch.Generator) -> None:
    logits, target = torch.randn(2, 3, 8, 8, generator=generator), torch.randint(0, 3, (2, 8, 8), generator=generator)
    compiled = torch.compile(uf.ops.weighted_cross_entropy, backend="eager", fullgraph=True)
    truth = uf.ops.weighted_cross_entropy(logits, target)
    for form in (target.to(torch.int16).unsqueeze(1), F.one_hot(target, 3).movedim(-1, 1).bool()):
        torch.testing.assert_close(compiled(logits, form), truth, **EXACT)
    torch.compiler.reset()


OF_LABELS = ("adapted_rand_error", "average_precision", "dice", "iou", "seg", "variation_of_information")
OF_PROBABILITIES = ("pixel_error", "rand_error", "warping_error", "v_rand", "v_info", "dice", "iou", "best_threshold")


def numbers(value: Any) -> str:
    """Whatever a metric returns, to be compared."""
    return repr(value)


@pytest.mark.parametrize("name", sorted({*OF_LABELS, *OF_PROBABILITIES}))
def test_metrics(name: str, rng: np.random.Generator) -> None:
    metric = getattr(metrics, name)
    mask = random_truth(rng, 2, 24, 20)
    if name in OF_LABELS:
        guess, truth = instances_of(noisy(rng, mask) > 0.5), instances_of(mask)
        expected = numbers(metric(guess, truth))
        for dtype in ("i2", "u1", "i4"):
            a, b = guess.astype(dtype), truth.astype(dtype)
            for one, other in (
                (a, b),
                (a[:, None], b[:, None]),
                (torch.from_numpy(a)[:, None], torch.from_numpy(b)[:, None]),
            ):
                assert numbers(metric(one, other)) == expected
        if name in ("dice", "iou"):
            assert numbers(metric(guess > 0, mask)) == numbers(metric(guess[:, None] > 0, mask[:, None].astype("i2")))
    if name in OF_PROBABILITIES:
        guess = noisy(rng, mask)
        expected = numbers(metric(guess, mask))
        for one, other in (
            (guess[:, None], mask[:, None]),
            (guess, mask.astype("i2")),
            (guess, torch.from_numpy(mask)[:, None]),
        ):
            assert numbers(metric(one, other)) == expected
