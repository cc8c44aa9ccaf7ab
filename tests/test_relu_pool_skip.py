"""relu_pool_skip against ReLU, max_pool2d and slices of torch: values, gradients, layouts, registration, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.places import needs, opcheck
from tests.tolerances import BY_DTYPE, CHANNEL_SUM, EXACT
from unet_fast import reference
from unet_fast.errors import InputError, InputTypeError
from unet_fast.ops import relu_pool_skip, use_backend

pytestmark = [pytest.mark.kernels, needs("speed")]  # smaller ones: test_kernels_junctions.py

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
CASES = [
    # x, skip_size, up_channels
    ((2, 16, 12, 14), (8, 9), 16),
    ((1, 3, 7, 5), (4, 4), 2),
    ((2, 40, 9, 33), None, 5),
    ((1, 8, 2, 2), (1, 1), 0),
    ((1, 1, 6, 6), (3, 2), 1),
    ((1, 70, 5, 300), (5, 299), 3),
    ((1, 600, 3, 9), (2, 8), 600),
    ((0, 2, 4, 4), (2, 2), 2),
]


def draw(generator, *shape, dtype=torch.float32, channels_last=False, device="cpu"):
    tensor = torch.randn(shape, generator=generator).to(device, dtype)
    return tensor.to(memory_format=torch.channels_last) if channels_last else tensor


def plain(x, bias, skip_size, up_channels):
    """The steps one by one, with the bias added as the op adds it: in float32 (float64), then rounded."""
    y = F.relu((x.to(bias.dtype) + bias[:, None, None]).to(x.dtype))
    height, width = skip_size or y.shape[2:]
    top, left = (y.shape[2] - height) // 2, (y.shape[3] - width) // 2
    return F.max_pool2d(y, 2), y[:, :, top : top + height, left : left + width]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_matches_the_steps_one_by_one(case, dtype, channels_last, place, generator):
    shape, skip_size, up_channels = case
    layout = {"dtype": dtype, "device": place}
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = draw(generator, *shape, channels_last=channels_last, **layout).requires_grad_()
    bias = draw(generator, shape[1], dtype=wide, device=place).requires_grad_()
    pooled, buffer = relu_pool_skip(x, bias, skip_size=skip_size, up_channels=up_channels)
    x2, bias2 = x.detach().clone().requires_grad_(), bias.detach().clone().requires_grad_()
    expected, skip = plain(x2, bias2, skip_size, up_channels)
    torch.testing.assert_close(pooled, expected, **EXACT)
    assert buffer.shape == (shape[0], shape[1] + up_channels, *skip.shape[2:])
    torch.testing.assert_close(buffer[:, : shape[1]], skip, **EXACT)
    if not shape[0]:
        return
    if up_channels:
        assert buffer[:, shape[1] :].isnan().all()  # nobody writes there
    if channels_last and shape[1] > 1:
        assert buffer.is_contiguous(memory_format=torch.channels_last)
        assert pooled.is_contiguous(memory_format=torch.channels_last)
    grad_pooled = draw(generator, *pooled.shape, channels_last=channels_last, **layout)
    grad_buffer = draw(generator, *buffer.shape, **layout)
    grad_buffer[:, shape[1] :] = torch.nan  # and nobody reads there
    torch.autograd.backward([pooled, buffer], [grad_pooled, grad_buffer])
    torch.autograd.backward([expected, skip], [grad_pooled, grad_buffer[:, : shape[1]]])
    torch.testing.assert_close(x.grad, x2.grad, **BY_DTYPE[dtype])
    torch.testing.assert_close(bias.grad.double(), x.grad.double().sum((0, 2, 3)), **CHANNEL_SUM[dtype])


def test_strided_inputs(place, generator):
    base = draw(generator, 2, 24, 20, 30, device=place)
    last = base.to(memory_format=torch.channels_last)
    for x in (
        base[:, 3:9, 1:12, 2:15],
        last[:, 3:9, 1:12, 2:15],
        base.transpose(2, 3),
        last[:, ::2],
        base[:1].expand(3, -1, -1, -1),
    ):
        pooled, buffer = relu_pool_skip(x, skip_size=(7, 8))
        truth = reference.relu_pool_skip(x, skip_size=(7, 8))
        torch.testing.assert_close((pooled, buffer), truth, **EXACT)


def test_gradients_with_strides_and_one_output_unused(place, generator):
    for channels_last in (False, True):
        x = draw(generator, 2, 6, 9, 8, channels_last=channels_last, device=place).requires_grad_()
        pooled, buffer = relu_pool_skip(x, skip_size=(5, 6), up_channels=1)
        wide = draw(generator, 2, 6, 8, 10, device=place)
        for output, grad in (
            (pooled, wide[:, :, ::2, ::3]),
            (buffer, draw(generator, 2, 5, 7, 6, device=place).transpose(1, 2)),
        ):
            (got,) = torch.autograd.grad(output, x, grad, retain_graph=True)
            truth = reference.relu_pool_skip(x, skip_size=(5, 6), up_channels=1)[output is buffer]
            (expected,) = torch.autograd.grad(truth, x, grad)
            torch.testing.assert_close(got, expected, **EXACT)


def test_ties_nan_infinity_and_zeros_of_both_signs():
    x = torch.tensor(
        [
            [
                [1.0, 1.0, -0.0, -1.0, float("nan"), 2.0, -float("inf"), 0.0],
                [1.0, 0.5, -3.0, 0.0, 5.0, 1.0, float("inf"), 1.0],
            ]
        ]
    )
    x = x[None].requires_grad_()
    pooled, buffer = relu_pool_skip(x)
    assert (
        pooled[0, 0, 0].tolist()[:2] == [1.0, 0.0] and pooled[0, 0, 0, 2].isnan() and pooled[0, 0, 0, 3] == float("inf")
    )
    assert buffer[0, 0, 0, 4].isnan() and not torch.signbit(buffer[~buffer.isnan()]).any()
    pooled.sum().backward()
    # the first of equal maxima; no gradient where nothing is positive
    assert x.grad[0, 0].tolist() == [[1, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0]]
    negative_nan = torch.tensor([-1, 0, 0, 0], dtype=torch.int32).view(torch.float32).reshape(1, 1, 2, 2)
    assert relu_pool_skip(negative_nan)[0].isnan()


@needs("threads")
@pytest.mark.parametrize("channels_last", [False, True])
def test_result_does_not_depend_on_the_number_of_threads(channels_last, generator):
    x = draw(generator, 3, 24, 61, 83, channels_last=channels_last)
    grad = draw(generator, 3, 24, 30, 41, channels_last=channels_last)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            pooled, buffer, code = torch.ops.unet_fast.relu_pool_skip(x, None, [50, 60], 0, True)
            results.append(
                (pooled, buffer, *torch.ops.unet_fast.relu_pool_skip_backward(code, grad, buffer, [61, 83], True))
            )
        finally:
            torch.set_num_threads(1)
    torch.testing.assert_close(*results, **EXACT)


@needs("numeric")
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradcheck_and_registration(channels_last, generator):
    x = draw(generator, 2, 3, 6, 5, dtype=torch.float64, channels_last=channels_last).requires_grad_()
    bias = draw(generator, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, b: relu_pool_skip(x, b, skip_size=(4, 3)), (x, bias))
    op = torch.ops.unet_fast.relu_pool_skip.default
    opcheck(op, (x, bias, [4, 3], 0, True))
    opcheck(op, (x.detach(), None, [6, 5], 0, False))
    _, _, code = op(x.detach(), None, [4, 3], 2, True)
    grads = draw(generator, 2, 3, 3, 2), draw(generator, 2, 5, 4, 3)
    backward = torch.ops.unet_fast.relu_pool_skip_backward.default
    opcheck(backward, (code, *grads, [6, 5], True))
    opcheck(backward, (code, None, grads[1], [6, 5], False))


def test_nothing_of_the_input_is_kept(generator):
    x = draw(generator, 1, 8, 16, 16).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        relu_pool_skip(x)
    assert [(t.dtype, t.numel()) for t in kept] == [(torch.uint8, x.numel() // 4)]


@needs("compiler", "speed")
def test_compiles_without_a_graph_break_for_changing_sizes(generator):
    def step(x, bias):
        pooled, buffer = relu_pool_skip(x * 2, bias, skip_size=(x.shape[2] - 2, x.shape[3] - 3), up_channels=0)
        return pooled.sum() + (buffer * buffer).sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((9, 8), (6, 13)):
        grads = []
        for function in (step, compiled):
            x = torch.ones(2, 3, *size).cumsum(3).sub(4).requires_grad_()
            bias = torch.full((3,), 0.25, requires_grad=True)
            function(x, bias).backward()
            grads.append((x.grad, bias.grad))
        torch.testing.assert_close(*grads)


@needs("host")
def test_second_derivative_raises_and_the_reference_has_it(generator):
    x = draw(generator, 1, 2, 4, 4, dtype=torch.float64).requires_grad_()
    (grad,) = torch.autograd.grad(relu_pool_skip(x)[0].sum(), x)
    assert not grad.requires_grad
    with pytest.raises(InputError, match="relu_pool_skip has no second derivative"):
        torch.autograd.grad(relu_pool_skip(x)[0].square().sum(), x, create_graph=True)
    with use_backend("reference"):
        assert torch.autograd.gradgradcheck(lambda x: relu_pool_skip(x)[0].square(), x)


@needs("host")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros((1, 1, 4, 4)),), InputTypeError, "x is a ndarray"),
        ((torch.zeros(1, 4, 4),), InputError, r"x has 3 dimensions"),
        ((torch.zeros(1, 1, 4, 4, dtype=torch.int32),), InputTypeError, "x has dtype int32"),
        ((torch.zeros(1, 1, 4, 1),), InputError, "too small to pool"),
        ((torch.zeros(1, 3, 4, 4), torch.zeros(4)), InputError, r"bias has shape \(4,\), expected \(3,\)"),
        ((torch.zeros(1, 3, 4, 4), torch.zeros(3, device="meta")), InputError, "bias is on meta"),
        ((torch.zeros(1, 3, 4, 4), None, (5, 4)), InputError, r"skip_size is \(5, 4\), expected \(h, w\) from"),
        ((torch.zeros(1, 3, 4, 4), None, (4,)), InputError, r"skip_size is \(4,\)"),
        ((torch.zeros(1, 3, 4, 4), None, (4, 4), -1), InputError, "up_channels is -1"),
    ],
)
def test_bad_input(arguments, error, message):
    x, bias, skip_size, up_channels = (*arguments, *(None, None, 0)[len(arguments) - 1 :])
    with pytest.raises(error, match=message):
        relu_pool_skip(x, bias, skip_size=skip_size, up_channels=up_channels)
