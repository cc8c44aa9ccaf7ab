"""bias_relu and conv_bias_relu against torch: values, gradients, layouts, registration, bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.compiled import check_compiled_gradients
from tests.devices import DEVICES
from tests.places import needs, opcheck
from tests.tolerances import CHANNEL_SUM, CONVOLUTION, EXACT
from unet_fast import reference
from unet_fast.errors import InputError, InputTypeError
from unet_fast.nn import ConvReLU
from unet_fast.ops import bias_relu, conv_bias_relu

pytestmark = pytest.mark.kernels

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def draw(generator, *shape, dtype=torch.float32, channels_last=False, device="cpu"):
    tensor = torch.randn(shape, generator=generator).to(device, dtype)
    return tensor.to(memory_format=torch.channels_last) if channels_last else tensor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "shape", [(2, 16, 9, 11), (1, 1, 1, 1), (3, 70, 5, 4), (1, 3, 64, 80), (0, 4, 3, 3), (2, 5, 0, 4)]
)
def test_matches_torch(shape, channels_last, dtype, place, generator):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = draw(generator, *shape, dtype=dtype, channels_last=channels_last, device=place).requires_grad_()
    bias = draw(generator, shape[1], dtype=wide, device=place).requires_grad_()
    out = bias_relu(x, bias)
    torch.testing.assert_close(out, F.relu((x.detach().to(wide) + bias.detach()[:, None, None]).to(dtype)), **EXACT)
    grad = draw(generator, *shape, dtype=dtype, device=place)
    out.backward(grad)
    torch.testing.assert_close(x.grad, grad * (out > 0), **EXACT)
    torch.testing.assert_close(bias.grad.double(), x.grad.double().sum((0, 2, 3)), **CHANNEL_SUM[dtype])
    without = bias_relu(x.detach())
    torch.testing.assert_close(without, x.detach().relu(), **EXACT)
    assert x.numel() == 0 or without.stride() == x.stride()


def test_strides_volumes_and_nan(generator):
    base = draw(generator, 2, 8, 10, 12)
    bias = draw(generator, 8)
    for x in (base[:, :, ::2, 1:9], base.to(memory_format=torch.channels_last)[:, :, 2:], base.transpose(2, 3)):
        torch.testing.assert_close(bias_relu(x, bias), F.relu(x + bias[:, None, None]), **EXACT)
        in_place = x.clone() if x.is_contiguous() else x
        expected = F.relu(in_place + bias[:, None, None])
        torch.ops.unet_fast.bias_relu_(in_place, bias)
        torch.testing.assert_close(in_place, expected, **EXACT)
    volume = draw(generator, 2, 3, 4, 5, 6)
    torch.testing.assert_close(bias_relu(volume, bias[:3]), F.relu(volume + bias[:3, None, None, None]), **EXACT)
    row = torch.tensor([[[float("nan"), -0.0, -1.0, 1.0, float("inf")]]]).requires_grad_()
    out = bias_relu(row)
    assert out[0, 0, 0].isnan() and out[0, 0, 1:].tolist() == [0, 0, 1, float("inf")]
    out.backward(torch.ones_like(out))
    assert row.grad.tolist() == [[[1, 0, 0, 1, 1]]]


# torch's float16 convolutions on the CPU are not exact enough to compare with
CONVOLUTIONS = [(device, dtype) for device in DEVICES for dtype in DTYPES if (device, dtype) != ("cpu", torch.float16)]


@pytest.mark.parametrize(("device", "dtype"), CONVOLUTIONS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
def test_convolution_matches_torch(padding, channels_last, dtype, device, generator):
    x = draw(generator, 2, 5, 9, 8, dtype=dtype, channels_last=channels_last, device=device).requires_grad_()
    layer = ConvReLU(5, 7, 3, padding=padding).to(device, dtype)
    plain = torch.nn.Conv2d(5, 7, 3, padding=padding).to(device, dtype)
    plain.load_state_dict(layer.state_dict())
    if channels_last:
        layer.to(memory_format=torch.channels_last)
    x2 = x.detach().clone().requires_grad_()
    out, expected = layer(x), F.relu(plain(x2))
    torch.testing.assert_close(out, expected, **CONVOLUTION[dtype])
    grad = draw(generator, *out.shape, dtype=dtype, device=device)
    out.backward(grad)
    expected.backward(grad * (out > 0) if dtype == torch.bfloat16 else grad)
    torch.testing.assert_close(x.grad, x2.grad, **CONVOLUTION[dtype])
    for got, want in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, **CONVOLUTION[dtype])


def test_convolution_under_autocast_keeps_float32_gradients(generator):
    layer, x = ConvReLU(3, 4, 3), draw(generator, 1, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
        expected = F.relu(F.conv2d(x, layer.weight, layer.bias))
    assert out.dtype == torch.bfloat16 == expected.dtype
    torch.testing.assert_close(out, expected, **CONVOLUTION[torch.bfloat16])
    out.float().sum().backward()
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32


@needs("numeric")
def test_gradcheck_and_registration(generator):
    x = draw(generator, 2, 3, 5, 4, dtype=torch.float64).requires_grad_()
    weight = draw(generator, 2, 3, 3, 3, dtype=torch.float64).requires_grad_()
    bias3, bias2 = (draw(generator, c, dtype=torch.float64).requires_grad_() for c in (3, 2))
    assert torch.autograd.gradcheck(bias_relu, (x, bias3))
    assert torch.autograd.gradcheck(lambda x, w, b: conv_bias_relu(x, w, b, padding=1), (x, weight, bias2))
    ops = torch.ops.unet_fast
    single = [tensor.detach().float().requires_grad_() for tensor in (x, weight, bias3, bias2)]
    last = single[0].detach().to(memory_format=torch.channels_last).requires_grad_()
    for image in (single[0], last):
        opcheck(ops.bias_relu.default, (image, single[2]))
        opcheck(ops.conv_bias_relu.default, (image, single[1], single[3], 1))
        opcheck(ops.bias_relu_.default, (image.detach().clone(), None))
        out = bias_relu(image.detach())
        opcheck(ops.bias_relu_backward.default, (out.clone(), out, True))
    opcheck(ops.conv_bias_relu.default, (x, weight, None, 0))


@needs("compiler", "speed")
def test_compiles_without_a_graph_break(generator):
    def step(x, weight, bias):
        return bias_relu(conv_bias_relu(x, weight, bias, padding=1) - 0.5, bias).square().sum()

    parameters = draw(generator, 4, 3, 3, 3).requires_grad_(), draw(generator, 4).requires_grad_()
    inputs = [draw(generator, 2, 3, *size) for size in ((6, 7), (9, 5))]
    check_compiled_gradients(step, parameters, inputs)


@pytest.mark.parametrize("wants", [(True, True, True), (True, False, False), (False, True, True), (False, False, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backward_operator_of_the_convolution(dtype, wants, generator):
    """Whichever gradients are wanted; the others are empty. Images without pixels or without images as well."""
    ops = torch.ops.unet_fast
    for batch in (2, 0):
        x, weight = draw(generator, batch, 3, 6, 7, dtype=dtype), draw(generator, 4, 3, 3, 3, dtype=dtype)
        x.requires_grad_(), weight.requires_grad_()
        bias = draw(generator, 4, dtype=dtype).requires_grad_()
        expected_out = reference.conv_bias_relu(x, weight, bias, padding=1)
        out = ops.conv_bias_relu(x.detach(), weight.detach(), bias.detach(), 1)
        torch.testing.assert_close(out, expected_out.detach(), **CONVOLUTION[dtype])
        grad = draw(generator, *out.shape, dtype=dtype)
        arguments = (grad, x.detach(), weight.detach(), out, 1, *wants)
        expected = torch.autograd.grad(expected_out, (x, weight, bias), grad)
        for got, want, wanted in zip(ops.conv_bias_relu_backward(*arguments), expected, wants, strict=True):
            if wanted:
                torch.testing.assert_close(got, want, **CONVOLUTION[dtype])
            else:
                assert got.shape == (0,)
        if batch:
            opcheck(ops.conv_bias_relu_backward.default, arguments)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_network_that_has_diverged_shows_it(channels_last, place, generator):
    x = draw(generator, 1, 8, 6, 6, channels_last=channels_last, device=place)
    weight = draw(generator, 8, 8, 3, 3, device=place)
    weight[2, 0, 1, 1] = torch.nan
    out = conv_bias_relu(x, weight, padding=1)
    assert out[:, 2].isnan().all() and out.isnan().sum() == 36


@needs("host")
def test_second_derivative_raises(generator):
    x, weight = draw(generator, 1, 2, 4, 4).requires_grad_(), draw(generator, 2, 2, 3, 3)
    for name, out in (("bias_relu", bias_relu(x)), ("conv_bias_relu", conv_bias_relu(x, weight))):
        with pytest.raises(InputError, match=f"^{name} has no second derivative"):
            torch.autograd.grad(out.square().sum(), x, create_graph=True)


@needs("host")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bias_relu(torch.zeros(2, 3)), InputError, "x has 2 dimensions"),
        (lambda: bias_relu(torch.zeros(1, 3, 2), torch.zeros(2)), InputError, r"expected \(3,\)"),
        (lambda: bias_relu(torch.zeros(1, 3, 2).long()), InputTypeError, "x has dtype int64"),
        (
            lambda: conv_bias_relu(torch.zeros(1, 2, 4, 4), torch.zeros(3, 4, 3, 3)),
            InputError,
            "2 channels, the weight",
        ),
        (
            lambda: conv_bias_relu(torch.zeros(1, 2, 4, 4), torch.zeros(3, 2, 5, 5)),
            InputError,
            "smaller than the kernel",
        ),
        (lambda: conv_bias_relu(torch.zeros(1, 2, 4, 4), torch.zeros(3, 2, 3, 3).half()), InputTypeError, "float16"),
        (lambda: conv_bias_relu(torch.zeros(1, 2, 4, 4), torch.zeros(3, 2, 3, 3), padding=-1), InputError, "is -1"),
        (lambda: ConvReLU(2, 3, 3, stride=2), InputError, "stride"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
