"""conv3x3 against float64: values, gradients, layouts, instruction sets, NaN, threads, registration, input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.compiled import check_compiled_gradients
from tests.convolutions import cpu_level, draw, rms, scale, winograd  # noqa: F401
from tests.places import needs, only
from tests.tolerances import WINOGRAD_ERROR
from unet_fast import reference
from unet_fast.errors import InputError, InputTypeError
from unet_fast.ops import conv3x3, use_convolution
from unet_fast.ops.conv3x3 import conv3x3_pool

pytestmark = [pytest.mark.kernels, needs("cpp")]

ACTIVATIONS = (None, "relu", "leaky_relu")


# batch, input channels, output channels, height, width, padding: full and ragged vectors, tiles that borders cut, a single
# tile, fewer pixels than a tile
# fmt: off
SHAPES = [
    (1, 32, 32, 22, 18, 0), (2, 5, 7, 9, 8, 1), (1, 16, 24, 6, 5, 0), (1, 48, 40, 3, 3, 0),
    (3, 3, 33, 1, 1, 1), (1, 20, 100, 25, 19, 0), (1, 130, 66, 12, 13, 1), (1, 1, 1, 30, 2, 1),
    (2, 64, 17, 40, 3, 0), (2, 1, 32, 21, 19, 0), (2, 2, 40, 18, 33, 1), (1, 4, 17, 20, 17, 1),
    (1, 250, 190, 12, 9, 1), (3, 250, 190, 10, 9, 0),  # weights that are made on the way
]
# fmt: on


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_and_gradients(shape, activation, level, generator):
    n, c, k, h, w, padding = shape
    x, weight, bias = draw(generator, n, c, h, w), draw(generator, k, c, 3, 3), draw(generator, k)
    single = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    double = [tensor.detach().double().requires_grad_() for tensor in single]
    options = {"padding": padding, "activation": activation, "negative_slope": 0.2}
    out, expected = conv3x3(*single, **options), reference.conv3x3(*double, **options)
    assert out.is_contiguous(memory_format=torch.channels_last) or c == 1 or h * w == 1
    assert rms(out - expected) < WINOGRAD_ERROR * scale(expected)
    grad = draw(generator, *out.shape)
    out.backward(grad)
    # the signs of the output as it is: next to 0 that of the truth may be another
    mask = torch.where(out > 0, 1.0, {None: 1.0, "relu": 0.0, "leaky_relu": 0.2}[activation]).double()
    plain = F.conv2d(*double, padding=padding)
    for got, want in zip(single, torch.autograd.grad(plain, double, grad.double() * mask), strict=True):
        assert rms(got.grad - want) < WINOGRAD_ERROR * scale(want)


@pytest.mark.parametrize(("channels", "outputs"), [((16, 16), 21), ((3, 20, 1), 21), ((32, 8), 21), ((130, 111), 200)])
def test_several_inputs_are_one_joined_map(channels, outputs, level, generator):
    """Slices of larger maps in both layouts, read where they lie."""
    maps = [
        draw(generator, 2, c + 3, 17, 15, last=i % 2 == 0)[:, 2 : c + 2, 2:14, 1:12].requires_grad_()
        for i, c in enumerate(channels)
    ]
    weight, bias = (
        draw(generator, outputs, sum(channels), 3, 3).requires_grad_(),
        draw(generator, outputs).requires_grad_(),
    )
    leaves = (*maps, weight, bias)
    out = conv3x3(maps, weight, bias, padding=1, activation="relu")
    expected = F.relu(F.conv2d(torch.cat([m.double() for m in maps], 1), weight.double(), bias.double(), padding=1))
    assert rms(out - expected) < WINOGRAD_ERROR * scale(expected)
    grad = draw(generator, *out.shape)
    wants = torch.autograd.grad(expected, leaves, grad.double())
    for got, want in zip(torch.autograd.grad(out, leaves, grad), wants, strict=True):
        assert rms(got - want) < WINOGRAD_ERROR * scale(want)


@pytest.mark.parametrize("last", [False, True])
def test_result_keeps_the_layout_of_the_input(last, generator):
    x = draw(generator, 2, 16, 9, 8, last=last).requires_grad_()
    weight = draw(generator, 20, 16, 3, 3, last=not last).requires_grad_()
    out = conv3x3(x, weight, padding=1)
    layout = torch.channels_last if last else torch.contiguous_format
    assert out.is_contiguous(memory_format=layout)
    out.sum().backward()
    assert x.grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("last", [False, True])
def test_one_channel_takes_the_layout_of_the_weights(last, generator):
    """As torch does it: one channel fits both layouts."""
    layer = torch.nn.Conv2d(1, 20, 3)
    layer.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    x = draw(generator, 2, 1, 9, 8, last=False)
    with use_convolution("direct"):
        expected = conv3x3(x, layer.weight)
    assert expected.is_contiguous(memory_format=torch.channels_last) == last
    assert conv3x3(x, layer.weight).stride() == expected.stride()


@pytest.mark.parametrize(("size", "padding", "skip"), [((21, 18), 0, (9, 11)), ((8, 13), 1, None), ((7, 5), 0, (5, 2))])
def test_pool_and_skip_in_the_epilogue(size, padding, skip, level, generator):
    x, weight, bias = draw(generator, 2, 20, *size), draw(generator, 37, 20, 3, 3), draw(generator, 37)
    x[1, 3, 2, 2] = torch.nan
    pooled, buffer = conv3x3_pool(x, weight, bias, padding, skip, 5)
    out = conv3x3(x, weight, bias, padding=padding, activation="relu")
    expected = reference.relu_pool_skip(out, None, skip_size=skip or out.shape[2:], up_channels=5)
    exact = {"rtol": 0, "atol": 0, "equal_nan": True}
    torch.testing.assert_close(pooled, expected[0], **exact)
    assert buffer.shape == expected[1].shape
    torch.testing.assert_close(buffer[:, :37], expected[1][:, :37], **exact)
    assert conv3x3_pool(x, weight.requires_grad_(), bias, padding, skip, 5) is None


# channels of the image and of both layers, size, padding: rectangles of tiles at all borders, vectors that are not full, several
# images in a block, a second layer whose weights are made on the way
@pytest.mark.parametrize(
    ("channels", "size", "padding", "skip"),
    [
        ((1, 32, 32), (22, 90), 0, (9, 11)),
        ((3, 17, 40), (13, 19), 1, None),
        ((4, 20, 17), (6, 7), 1, (3, 2)),
        ((2, 200, 260), (9, 12), 0, None),
    ],
)
@pytest.mark.parametrize("sliced", [False, True])
def test_first_layer_in_front_of_the_second(channels, size, padding, skip, sliced, level, generator):
    """Bit for bit the two layers one after the other."""
    image, inner, outer = channels
    parameters = [
        torch.empty(shape, memory_format=torch.channels_last).copy_(draw(generator, *shape))
        for shape in ((inner, image, 3, 3), (outer, inner, 3, 3))
    ]
    biases = draw(generator, inner), draw(generator, outer)
    x = draw(generator, 2, image + sliced, *(length + sliced for length in size))[:, sliced:, sliced:, sliced:]
    x[1, 0, 2, 2] = torch.nan
    together = conv3x3_pool(x, parameters[1], biases[1], padding, skip, 5, (parameters[0], biases[0]))
    between = conv3x3(x, parameters[0], biases[0], padding=padding, activation="relu")
    apart = conv3x3_pool(between, parameters[1], biases[1], padding, skip, 5)
    for got, want in zip(together, apart, strict=True):
        assert got.stride() == want.stride()
        torch.testing.assert_close(got[:, :outer], want[:, :outer], rtol=0, atol=0, equal_nan=True)
    recorded = parameters[0].clone().requires_grad_()
    assert conv3x3_pool(x, parameters[1], biases[1], padding, skip, 5, (recorded, biases[0])) is None


def errors(convolution, x, weight, grad, padding):
    """Of the output and of the gradients of the input and of the weights, against float64."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, weight)]
    out = convolution(*leaves, padding=padding)
    found = out, *torch.autograd.grad(out, leaves, grad)
    exact = [tensor.double().requires_grad_() for tensor in (x, weight)]
    truth = F.conv2d(*exact, padding=padding)
    truths = truth, *torch.autograd.grad(truth, exact, grad.double())
    return [rms(a - b) for a, b in zip(found, truths, strict=True)]


# sizes whose input's gradient has fewer tiles in the transposed form, and as many
@only("cpu")
@pytest.mark.parametrize(("size", "padding"), [(42, 0), (43, 1)])
@pytest.mark.parametrize("channels", [16, 32, 48, 64, 128])
def test_error_is_of_the_size_of_the_direct_forms(channels, size, padding, generator):
    """At most three times that of torch's channels-last convolution, and of either gradient.

    Not asked of a build for sanitizers, which contracts no product with its sum and rounds more.
    """
    x, weight = draw(generator, 1, channels, size, size), draw(generator, channels, channels, 3, 3)
    grad = draw(generator, 1, channels, size + 2 * padding - 2, size + 2 * padding - 2)
    ours, torchs = (errors(form, x, weight, grad, padding) for form in (conv3x3, F.conv2d))
    limits = (3, 3 if channels >= 32 else 4, 3)  # of 144 products torch rounds next to nothing
    for error, limit, other in zip(ours, limits, torchs, strict=True):
        assert error <= limit * other


@only("cpu")
@pytest.mark.parametrize("channels", [32, 64])
def test_error_of_the_gradients_in_the_other_layout(channels, generator):
    """Torch's contiguous form adds up short pieces, whose errors do not grow with the channels."""
    x, weight = draw(generator, 1, channels, 30, 30, last=False), draw(generator, channels, channels, 3, 3, last=False)
    grad = draw(generator, 1, channels, 28, 28, last=False)
    ours, torchs = (errors(form, x, weight, grad, 0) for form in (conv3x3, F.conv2d))
    assert ours[0] <= 4 * torchs[0] and ours[1] <= 3 * torchs[1] and ours[2] <= 1.5 * torchs[2]


@pytest.mark.parametrize("size", [30, 31])  # with fewer tiles in the output than in the input, and with as many
def test_error_of_the_gradient_is_of_the_size_of_the_outputs(size, generator):
    x, weight = draw(generator, 1, 64, size, size).requires_grad_(), draw(generator, 64, 64, 3, 3)
    out, truth = conv3x3(x, weight), F.conv2d(x.double(), weight.double())
    grad = draw(generator, *out.shape)
    exact = F.conv_transpose2d(grad.double(), weight.double())
    error = rms(torch.autograd.grad(out, x, grad)[0] - exact) / scale(exact)
    assert error <= 1.2 * rms(out - truth) / scale(truth)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_finite_never_vanishes(bad, activation, level, generator):
    """Wherever the direct form is not finite this is not either; and nothing is, further off than the tile."""
    x, weight = draw(generator, 1, 20, 21, 18), draw(generator, 18, 20, 3, 3)
    x[0, 7, 9, 10] = bad
    out = conv3x3(x, weight, padding=1)
    direct = F.conv2d(x, weight, padding=1)
    assert (~out.isfinite())[~direct.isfinite()].all()
    assert out[:, :, :4].isfinite().all() and out[:, :, 16:].isfinite().all()
    if activation and bad is torch.nan:
        assert conv3x3(x, weight, padding=1, activation=activation).isnan()[direct.isnan()].all()
    weight[3, 0, 1, 1] = bad
    assert not conv3x3(draw(generator, 1, 20, 9, 9), weight)[:, 3].isfinite().any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("size", [10, 11])  # of which the gradient has as many tiles as the output, and more
def test_what_is_not_finite_never_vanishes_from_the_gradient(bad, size, level, generator):
    x, weight = draw(generator, 1, 20, size, size).requires_grad_(), draw(generator, 18, 20, 3, 3)
    for y in range(size - 2):
        grad = draw(generator, 1, 18, size - 2, size - 2)
        grad[0, 11, y, 5] = bad
        got = torch.autograd.grad(conv3x3(x, weight), x, grad)[0]
        assert not got[:, :, y : y + 3, 5:8].isfinite().any()
        assert got[:, :, : y // 4 * 4].isfinite().all() and got[:, :, y // 4 * 4 + 8 :].isfinite().all()


# small: the threads share every part of the work; large: each sums up tiles of its own, or shares them with some
@pytest.mark.parametrize("size", [(40, 36, 45, 38), (20, 12, 130, 122)])
def test_equal_bits_for_any_number_of_threads(size, level, generator):
    in_channels, out_channels, height, width = size
    x, weight = draw(generator, 1, in_channels, height, width), draw(generator, out_channels, in_channels, 3, 3)
    bias, results, threads = draw(generator, out_channels), [], torch.get_num_threads()
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    try:
        for count in (1, 2, 3, 4, 7):
            torch.set_num_threads(count)
            out = conv3x3(*inputs, activation="relu")
            results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    truth = torch.autograd.grad(F.conv2d(*exact).relu().square().sum(), exact)
    for got, want in zip(results[0][1:], truth, strict=True):
        assert rms(got - want) <= 1e-5 * rms(want)


def test_dtypes_that_torch_computes(generator):
    x, weight = draw(generator, 2, 16, 9, 9).double(), draw(generator, 16, 16, 3, 3).double()
    bias = draw(generator, 16).double()
    assert torch.equal(
        conv3x3([x[:, :4], x[:, 4:]], weight, bias, activation="relu"), F.relu(F.conv2d(x, weight, bias))
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert conv3x3(x.float(), weight.float()).dtype == torch.bfloat16


def test_registration(generator):
    maps = [draw(generator, 2, c, 7, 9).requires_grad_() for c in (3, 4)]
    weight, bias = draw(generator, 5, 7, 3, 3).requires_grad_(), draw(generator, 5).requires_grad_()
    ops = torch.ops.unet_fast
    for activation in (0, 1, 2):
        torch.library.opcheck(ops.conv3x3.default, (maps, weight, bias, None, 1, activation, 0.1))
    torch.library.opcheck(ops.conv3x3.default, ([maps[0].contiguous()], weight[:, :3], None, None, 0, 0, 0.0))
    plain = [m.detach() for m in maps]
    # how many numbers there are depends on the processor, so that no graph can hold this one
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.conv3x3_weights.default, (weight.detach(), [3, 4]), test_utils=tests)
    torch.library.opcheck(ops.fingerprint.default, (plain,))
    torch.library.opcheck(ops.conv3x3_pool.default, (plain, weight.detach(), bias.detach(), None, 1, [5, 6], 0))
    front, second = draw(generator, 6, 3, 3, 3), draw(generator, 5, 6, 3, 3)
    torch.library.opcheck(
        ops.conv3x3_pool.default, (plain[:1], second, None, None, 0, [2, 2], 0, front, draw(generator, 6))
    )
    out = ops.conv3x3(plain, weight.detach(), None, None, 0, 1, 0.0)
    for wants in ((True, True, True), (False, True, False), (True, False, False), (False, False, True)):
        torch.library.opcheck(ops.conv3x3_backward.default, (out.clone(), plain, weight.detach(), out, 0, 0.0, *wants))


@needs("compiler")
def test_compiles_without_a_graph_break(generator):
    def step(x, weight, bias):
        return conv3x3([x, x * 2], weight, bias, padding=1, activation="leaky_relu").square().sum()

    parameters = draw(generator, 16, 32, 3, 3).requires_grad_(), draw(generator, 16).requires_grad_()
    inputs = [draw(generator, 2, 16, *size) for size in ((16, 17), (19, 15))]
    check_compiled_gradients(step, parameters, inputs)


def test_empty_batch(generator):
    x, weight = torch.empty(0, 16, 8, 8).requires_grad_(), draw(generator, 16, 16, 3, 3).requires_grad_()
    out = conv3x3(x, weight, activation="relu")
    assert out.shape == (0, 16, 6, 6)
    out.sum().backward()
    assert x.grad.shape == x.shape and torch.equal(weight.grad, torch.zeros_like(weight))


def test_second_derivative(generator):
    x, weight = draw(generator, 1, 16, 8, 8).requires_grad_(), draw(generator, 16, 16, 3, 3).requires_grad_()

    def second(out):
        (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (x, weight))

    got = second(conv3x3(x, weight, activation="leaky_relu", negative_slope=0.1))
    for ours, truth in zip(got, second(F.leaky_relu(F.conv2d(x, weight), 0.1)), strict=True):
        assert rms(ours - truth) < WINOGRAD_ERROR * scale(truth)


def test_bad_input_is_one_clear_line(generator):
    x, weight = torch.zeros(1, 4, 8, 8), torch.zeros(3, 4, 3, 3)
    for call, error, match in (
        (lambda: conv3x3([], weight), InputError, "inputs is empty"),
        (lambda: conv3x3(x[0], weight), InputError, "3 dimensions"),
        (lambda: conv3x3([x, x[:, :, 1:]], weight), InputError, r"inputs\[1\] has shape"),
        (lambda: conv3x3([x, x], weight), InputError, r"expected \(K, 8, 3, 3\)"),
        (lambda: conv3x3(x, torch.zeros(3, 4, 5, 5)), InputError, r"expected \(K, 4, 3, 3\)"),
        (lambda: conv3x3(x, weight, padding=2), InputError, "padding is 2"),
        (lambda: conv3x3(x, weight, activation="gelu"), InputError, "activation is 'gelu'"),
        (lambda: conv3x3(x, weight, negative_slope=-1.0), InputError, "negative_slope is -1"),
        (lambda: conv3x3(x[:, :, :2, :2], weight), InputError, "smaller than the kernel"),
        (lambda: conv3x3(x, weight, torch.zeros(4)), InputError, "bias has shape"),
        (lambda: conv3x3(x, weight.double()), InputTypeError, "float64"),
        (lambda: conv3x3(x.int(), weight), InputTypeError, "int32"),
        (lambda: conv3x3("x", weight), InputTypeError, "is a str"),
    ):
        with pytest.raises(error, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)
