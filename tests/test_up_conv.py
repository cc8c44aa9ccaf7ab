"""up_conv_into and up_conv_crop_concat against torch's transposed convolution: values, gradients, registration, bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.places import needs, opcheck
from tests.tolerances import CONVOLUTION, EXACT
from unet_fast import reference
from unet_fast.errors import InputError, InputTypeError
from unet_fast.nn import UpConvCropConcat
from unet_fast.ops import relu_pool_skip, up_conv_crop_concat, up_conv_into
from unet_fast.ops.up_conv_into import up_conv

pytestmark = pytest.mark.kernels


def draw(generator, *shape, dtype=torch.float32, channels_last=False, device="cpu"):
    tensor = torch.randn(shape, generator=generator).to(device, dtype)
    return tensor.to(memory_format=torch.channels_last) if channels_last else tensor


def operands(generator, n, c_in, c_out, size, **layout):
    """x, weight and bias; small integers halved, so that all dtypes agree on their sums."""
    x = draw(generator, n, c_in, *size, **layout).mul(2).round().div(2)
    layout = {key: value for key, value in layout.items() if key != "channels_last"}
    weight = draw(generator, c_in, c_out, 2, 2, **layout).mul(2).round().div(4)
    bias = draw(generator, c_out, device=x.device).to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    return x, weight, bias.mul(2).round()


def truth(x, weight, bias):
    """Transposed convolution as four matrix products, in float64: no convolution library is asked."""
    n, _, h, w = x.shape
    out = x.new_zeros((n, weight.shape[1], 2 * h, 2 * w), dtype=torch.float64)
    for dy in range(2):
        for dx in range(2):
            out[:, :, dy::2, dx::2] = torch.einsum("nihw,io->nohw", x.double(), weight[:, :, dy, dx].double())
    return out if bias is None else out + bias.double()[:, None, None]


SMALL = [(2, 5, 7, (3, 4)), (1, 1, 1, (1, 1)), (1, 33, 16, (5, 6)), (0, 2, 3, (4, 4))]
LARGE = (3, 8, 40, (2, 9))
# many short rows, long rows, weights that are multiplied image by image in 16 bits, and products of more than 1 MB
FORMS = [(2, 4, 3, (70, 9)), (1, 3, 2, (2, 70)), (2, 130, 65, (3, 2)), (3, 4, 40, (30, 50))]
PRODUCTS = [
    *((shape, dtype) for shape in SMALL for dtype in (torch.float32, torch.float64, torch.bfloat16)),
    *(pytest.param(shape, torch.float16, marks=needs("speed")) for shape in SMALL),
    *(pytest.param(LARGE, dtype, marks=needs("speed")) for dtype in (torch.float32, torch.float64, torch.float16)),
    (LARGE, torch.bfloat16),
    *(pytest.param(shape, dtype, marks=needs("speed")) for shape in FORMS for dtype in (torch.float32, torch.bfloat16)),
]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("shape", "dtype"), PRODUCTS)
def test_matches_four_matrix_products(shape, channels_last, dtype, place, generator):
    layout = {"dtype": dtype, "device": place, "channels_last": channels_last}
    x, weight, bias = operands(generator, *shape, **layout)
    n, _, c_out, (h, w) = shape
    skip = draw(generator, n, 3, 2 * h + 3, 2 * w + 2, **layout)
    for leaf in (x, weight, bias, skip):
        leaf.requires_grad_()
    out = up_conv_crop_concat(x, weight, bias, skip)
    expected = truth(x, weight, bias)
    torch.testing.assert_close(out[:, 3:].double(), expected, **CONVOLUTION[dtype])
    torch.testing.assert_close(out[:, :3], skip[:, :, 1 : 1 + 2 * h, 1 : 1 + 2 * w], **EXACT)
    grad = draw(generator, *out.shape, dtype=dtype, device=place).mul(2).round()
    got = torch.autograd.grad(out, (x, weight, bias, skip), grad)
    want = torch.autograd.grad(expected, (x, weight, bias), grad[:, 3:].double())
    for a, b in zip(got[:3], want, strict=True):
        torch.testing.assert_close(a.double(), b.double(), **CONVOLUTION[dtype])
    torch.testing.assert_close(got[3], F.pad(grad[:, :3], (1, 1, 1, 2)), **EXACT)

    buffer = draw(generator, n, 4 + c_out, 2 * h, 2 * w, **layout)
    before = buffer.clone()
    with torch.no_grad():
        assert up_conv_into(x, weight, None, buffer) is buffer
    torch.testing.assert_close(buffer[:, :4], before[:, :4], **EXACT)
    torch.testing.assert_close(buffer[:, 4:].double(), truth(x, weight, None), **CONVOLUTION[dtype])


@needs("speed")
@pytest.mark.parametrize("channels_last", [False, True])
def test_both_junctions_share_one_buffer(channels_last, generator):
    """relu_pool_skip -> up_conv_into, forward and backward, against the same in plain torch."""
    x = draw(generator, 2, 6, 12, 10, channels_last=channels_last).requires_grad_()
    weight, bias = draw(generator, 6, 4, 2, 2).requires_grad_(), draw(generator, 4).requires_grad_()
    results = []
    for plain in (False, True):
        module = reference if plain else __import__("unet_fast.ops", fromlist=["ops"])
        pooled, buffer = module.relu_pool_skip(x * 2, skip_size=(8, 6), up_channels=4)
        low = pooled[:, :, 1:-1, 1:-1]
        joined = module.up_conv_into(low, weight, bias, buffer, fresh=True)
        assert joined.shape == (2, 10, 8, 6)
        results.append((joined, *torch.autograd.grad(joined.square().sum(), (x, weight, bias))))
    torch.testing.assert_close(*results, **CONVOLUTION[torch.float32])


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_skip_without_channels(channels_last, place, generator):
    """Nothing is cropped then, and no kernel gets memory that is not there."""
    form = torch.channels_last if channels_last else torch.contiguous_format
    skip = draw(generator, 2, 0, 7, 9).to(place, memory_format=form).requires_grad_()
    inputs = (*(t.to(place).requires_grad_() for t in operands(generator, 2, 5, 3, (3, 4))), skip)
    out, want = up_conv_crop_concat(*inputs), reference.up_conv_crop_concat(*inputs)
    torch.testing.assert_close(out, want, **CONVOLUTION[torch.float32])
    grad = draw(generator, *out.shape).to(place)
    got = torch.autograd.grad(out, inputs, grad)
    torch.testing.assert_close(got, torch.autograd.grad(want, inputs, grad), **CONVOLUTION[torch.float32])


@pytest.mark.kernels
@needs("cpp")
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_up_sampled_map_alone(channels_last, generator):
    form = torch.channels_last if channels_last else torch.contiguous_format
    inputs = [t.contiguous(memory_format=form) if t.dim() == 4 else t for t in operands(generator, 2, 5, 3, (3, 4))]
    inputs = [t.requires_grad_() for t in inputs]
    out, want = up_conv(*inputs), torch.nn.functional.conv_transpose2d(*inputs, stride=2)
    assert out.is_contiguous(memory_format=form)
    torch.testing.assert_close(out, want, **CONVOLUTION[torch.float32])
    grad = draw(generator, *out.shape)
    got = torch.autograd.grad(out, inputs, grad)
    torch.testing.assert_close(got, torch.autograd.grad(want, inputs, grad), **CONVOLUTION[torch.float32])
    opcheck(torch.ops.unet_fast.up_conv.default, [t.detach().requires_grad_() for t in inputs])
    assert up_conv(inputs[0][:0], *inputs[1:]).shape == (0, 3, 6, 8)


def test_a_buffer_that_was_written_before_gets_no_gradient_there(generator):
    x, weight, bias = operands(generator, 1, 2, 3, (2, 2))
    base = draw(generator, 1, 5, 4, 4).requires_grad_()
    up_conv_into(x.requires_grad_(), weight, bias, base * 1).sum().backward()
    assert base.grad[:, :2].eq(1).all() and base.grad[:, 2:].eq(0).all()
    for buffer, words in ((base, "a leaf that requires gradients"), ((base * 1)[:, :], "a view of another tensor")):
        with pytest.raises(InputError, match=f"buffer is {words}"):
            up_conv_into(x, weight, bias, buffer)
    kept = base.exp()  # its backward needs its output
    up_conv_into(x, weight, bias, kept)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()


@needs("host")
def test_layer_takes_the_state_of_conv_transpose(generator):
    plain = torch.nn.ConvTranspose2d(4, 2, 2, stride=2)
    layer = UpConvCropConcat(4, 2)
    layer.load_state_dict(plain.state_dict())
    x, skip = draw(generator, 1, 4, 3, 3), draw(generator, 1, 3, 9, 8)
    torch.testing.assert_close(layer(x, skip)[:, 3:], plain(x), **CONVOLUTION[torch.float32])
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, skip)
        expected = plain(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out[:, 3:], expected, **CONVOLUTION[torch.bfloat16])
    out.float().sum().backward()
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32
    without = UpConvCropConcat(4, 2, bias=False)
    assert without.bias is None and without(x, skip).shape == (1, 5, 6, 6)


@needs("numeric")
def test_gradcheck_and_registration(generator):
    x, weight, bias = (t.requires_grad_() for t in operands(generator, 2, 3, 2, (2, 3), dtype=torch.float64))
    skip = draw(generator, 2, 2, 5, 7, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(up_conv_crop_concat, (x, weight, bias, skip))

    def junction(x, weight, bias, y):
        return up_conv_into(x, weight, bias, y * 2)

    wide = draw(generator, 2, 3, 4, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(junction, (x, weight, bias, wide))
    ops = torch.ops.unet_fast
    for last in (False, True):
        form = torch.channels_last if last else torch.contiguous_format
        arguments = x.detach().to(memory_format=form), weight.detach(), bias.detach()
        grads = [tensor.clone().requires_grad_() for tensor in arguments]
        opcheck(ops.up_conv_crop_concat.default, (*grads, skip.detach()))
        buffer = wide.detach().to(memory_format=form)
        opcheck(ops.up_conv_into.default, (*arguments, buffer.clone()))
        opcheck(ops.up_conv_into_backward.default, (buffer, *arguments[:2], True, True, True))
        opcheck(ops.up_conv_into_backward.default, (buffer, *arguments[:2], False, True, False))


@needs("compiler", "speed")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_a_graph_break(backend, generator):
    def step(x, weight, bias):
        pooled, buffer = relu_pool_skip(x + 1, skip_size=(x.shape[2] - 4, x.shape[3] - 4), up_channels=2)
        low = pooled[:, :, 1:-1, 1:-1] * 2
        return up_conv_into(low, weight, bias, buffer, fresh=True).square().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    weight, bias = draw(generator, 3, 2, 2, 2).requires_grad_(), draw(generator, 2).requires_grad_()
    for size in ((8, 10), (12, 6)):
        x = draw(generator, 1, 3, *size).requires_grad_()
        want = torch.autograd.grad(step(x, weight, bias), (x, weight, bias))
        torch.testing.assert_close(torch.autograd.grad(compiled(x, weight, bias), (x, weight, bias)), want)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, weight, bias), step(x, weight, bias))


@needs("host")
def test_second_derivative_raises(generator):
    x, weight, bias = operands(generator, 1, 2, 3, (2, 2))
    x.requires_grad_()
    skip = draw(generator, 1, 1, 4, 4)
    for name, out in (
        ("up_conv_into", up_conv_into(x, weight, bias, draw(generator, 1, 3, 4, 4))),
        ("up_conv_crop_concat", up_conv_crop_concat(x, weight, bias, skip)),
    ):
        with pytest.raises(InputError, match=f"^{name} has no second derivative"):
            torch.autograd.grad(out.square().sum(), x, create_graph=True)


@needs("host")
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(2, 3, 3)}, InputError, "x has 3 dimensions"),
        (
            {"weight": torch.zeros(2, 3, 3, 3)},
            InputError,
            r"weight has shape \(2, 3, 3, 3\), expected \(2, C_out, 2, 2\)",
        ),
        ({"weight": torch.zeros(2, 3, 2, 2).double()}, InputTypeError, "weight has torch.float64"),
        ({"bias": torch.zeros(2)}, InputError, r"bias has shape \(2,\), expected \(3,\)"),
        (
            {"buffer": torch.zeros(1, 5, 4, 5)},
            InputError,
            r"buffer has shape \(1, 5, 4, 5\), expected \(1, at least 3, 4, 4\)",
        ),
        ({"buffer": torch.zeros(1, 2, 4, 4)}, InputError, "at least 3"),
        ({"buffer": torch.zeros(1, 5, 4, 4).half()}, InputTypeError, "float16"),
        ({"buffer": torch.zeros(1, 5, 4, 8)[..., ::2]}, InputError, "neither contiguous nor channels-last"),
        ({"skip": torch.zeros(1, 5, 4, 3)}, InputError, "twice the size of x"),
        ({"skip": torch.zeros(2, 5, 4, 4)}, InputError, r"skip has shape \(2, 5, 4, 4\), expected \(1, C, H, W\)"),
    ],
)
def test_bad_input(changes, error, message):
    given = {
        "x": torch.zeros(1, 2, 2, 2),
        "weight": torch.zeros(2, 3, 2, 2),
        "bias": torch.zeros(3),
        ("skip" if "skip" in changes else "buffer"): torch.zeros(1, 5, 4, 4),
    } | changes
    with pytest.raises(error, match=message):
        (up_conv_crop_concat if "skip" in changes else up_conv_into)(*given.values())
