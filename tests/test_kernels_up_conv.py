"""The kernels of up_conv_into for GPUs below the public function, against the C++ ones."""

from __future__ import annotations

import pytest
import torch

from tests.places import only
from tests.tolerances import CHANNEL_SUM, CONVOLUTION, EXACT
from unet_fast import reference

pytestmark = pytest.mark.kernels


def up_conv_operands(generator, n, c_in, c_out, h, w, channels_last, dtype):
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(n, c_in, h, w, generator=generator).to(dtype).to(memory_format=form)
    weight = torch.randn(c_in, c_out, 2, 2, generator=generator).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    return x, weight, torch.randn(c_out, generator=generator).to(wide), form


@only("emulated")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(2, 5, 64, 9, 12), (1, 16, 24, 5, 7), (3, 3, 300, 4, 4), (2, 4, 2, 37, 40)])
def test_up_conv_whole_vectors_and_single_elements(shape, dtype, channels_last, kernels, generator):
    """Rows and channels that 16 bytes divide and others, several chunks of a plane, several blocks of channels."""
    x, weight, bias, form = up_conv_operands(generator, *shape, channels_last, dtype)
    n, _, c_out, h, w = shape
    for first in (0, 8, 3):  # channels in front of the buffer's last ones; 3 misalign them for channels-last
        buffers = [torch.ones(n, first + c_out, 2 * h, 2 * w, dtype=dtype).to(memory_format=form) for _ in range(2)]
        kernels.up_conv_into(x, weight, bias, buffers[0])
        torch.ops.unet_fast.up_conv_into(x, weight, bias, buffers[1])
        torch.testing.assert_close(*buffers, **CONVOLUTION[dtype])
        assert buffers[0][:, :first].eq(1).all()
        grad = torch.randn(buffers[0].shape, generator=generator).to(dtype).to(memory_format=form)
        got = kernels.up_conv_into_backward(grad, x, weight, True, True, True)
        want = torch.ops.unet_fast.up_conv_into_backward(grad, x, weight, True, True, True)
        for a, b, tolerance in zip(got, want, (CONVOLUTION, CONVOLUTION, CHANNEL_SUM), strict=True):
            assert a.dtype == b.dtype and a.stride() == b.stride()
            torch.testing.assert_close(a, b, **tolerance[dtype])


@only("emulated")
@pytest.mark.parametrize("channels_last", [False, True])
def test_up_conv_misaligned_and_expanded_memory(channels_last, kernels, generator):
    """A buffer that starts in the middle of a vector, and gradients that are slices or one number for all."""
    x, weight, bias, form = up_conv_operands(generator, 2, 4, 8, 4, 8, channels_last, torch.bfloat16)
    storage = torch.zeros(1 + 2 * 8 * 8 * 16, dtype=torch.bfloat16)
    buffer = storage[1:].view(2, 8, 16, 8).permute(0, 3, 1, 2) if channels_last else storage[1:].view(2, 8, 8, 16)
    whole = torch.zeros(2, 8, 8, 16, dtype=torch.bfloat16).to(memory_format=form)
    for out in (buffer, whole):
        kernels.up_conv_into(x, weight, bias, out)
    torch.testing.assert_close(buffer, whole, **EXACT)
    wide = torch.randn(2, 8, 9, 33, generator=generator).to(torch.bfloat16).to(memory_format=form)
    for grad in (
        wide[:, :, 1:, 1:17],
        wide[:, :, :8, ::2][..., :16],
        torch.ones((), dtype=x.dtype).expand(whole.shape),
    ):
        got = kernels.up_conv_into_backward(grad, x, weight, True, True, True)
        layout = grad.contiguous(
            memory_format=torch.channels_last if got[0].stride(1) == 1 else torch.contiguous_format
        )
        torch.testing.assert_close(got, kernels.up_conv_into_backward(layout, x, weight, True, True, True))


@only("emulated")
def test_up_conv_repeats_its_bits(kernels, generator):
    x, weight, _, form = up_conv_operands(generator, 2, 3, 5, 60, 70, True, torch.float32)
    grad = torch.randn(2, 5, 120, 140, generator=generator).to(memory_format=form)
    first = kernels.up_conv_into_backward(grad, x, weight, False, False, True)[2]
    torch.testing.assert_close(kernels.up_conv_into_backward(grad, x, weight, False, False, True)[2], first, **EXACT)
    torch.testing.assert_close(first, grad.double().sum((0, 2, 3)).float(), rtol=1e-5, atol=1e-4)


@only("interpreted")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(2, 70, 40, 9, 12), (1, 5, 3, 1, 150), (2, 3, 20, 17, 1)])
@pytest.mark.parametrize("first", [0, 3])
def test_several_tiles_and_odd_strides(first, shape, channels_last, kernels, generator):
    """More pixels, channels and depth than one tile; strides of a buffer that are odd. Against the C++ kernels."""
    n, c_in, c_out, h, w = shape
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(n, c_in, h, w, generator=generator).to(memory_format=form)
    weight, bias = torch.randn(c_in, c_out, 2, 2, generator=generator), torch.randn(c_out, generator=generator)
    odd = torch.zeros(n, first + c_out, 2 * h + 1, 2 * w + 1).to(memory_format=form)
    want = torch.zeros(n, first + c_out, 2 * h, 2 * w).to(memory_format=form)
    for bias_given in (bias, None):
        reference.up_conv_into(x, weight, bias_given, want)
        for buffer in (torch.zeros_like(want), odd[:, :, :-1, :-1]):
            kernels.up_conv_into(x, weight, bias_given, buffer)
            torch.testing.assert_close(buffer[:, first:], want[:, first:], **CONVOLUTION[torch.float32])
            assert buffer[:, :first].eq(0).all()
    grad = torch.randn(odd.shape, generator=generator).to(memory_format=form)[:, :, 1:, :-1]
    got = kernels.up_conv_into_backward(grad, x, weight, True, True, True)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    out = torch.nn.functional.conv_transpose2d(*leaves, stride=2)
    exact = torch.autograd.grad(out, leaves, grad[:, first:])
    for a, b, tolerance in zip(got, exact, (CONVOLUTION, CONVOLUTION, CHANNEL_SUM), strict=True):
        torch.testing.assert_close(a, b, **tolerance[torch.float32])


@only("interpreted")
@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_products_are_as_exact_as_torch_is_asked_to_be(precision):
    """By the setting's new name, after which torch refuses to read the old one."""
    from unet_fast.triton.up_conv_into import _product_options

    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = precision
    try:
        assert _product_options(torch.zeros(1), 64)["PRECISION"] == precision
        assert _product_options(torch.zeros(1, dtype=torch.bfloat16), 64)["PRECISION"] == "ieee"
    finally:
        settings.fp32_precision = before
