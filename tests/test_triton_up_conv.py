"""The Triton kernels of up_conv_into and up_conv_crop_concat, interpreted on the CPU: the tests of the ops once more, and
their own."""

from __future__ import annotations

import os

import pytest
import torch

from tests.devices import INTERPRETER, run_interpreted
from tests.tolerances import CHANNEL_SUM, CONVOLUTION

if os.environ.get("TRITON_INTERPRET") == INTERPRETER["TRITON_INTERPRET"]:
    from unet_fast import reference
    from unet_fast.triton import up_conv_into as kernels

    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize("shape", [(2, 70, 40, 9, 12), (1, 5, 3, 1, 150), (2, 3, 20, 17, 1)])
    @pytest.mark.parametrize("first", [0, 3])
    def test_several_tiles_and_odd_strides(first, shape, channels_last, generator):
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

    @pytest.mark.parametrize("precision", ["tf32", "ieee"])
    def test_products_are_as_exact_as_torch_is_asked_to_be(precision):
        """By the setting's new name, after which torch refuses to read the old one."""
        settings = torch.backends.cuda.matmul
        before = settings.fp32_precision
        settings.fp32_precision = precision
        try:
            assert kernels._product_options(torch.zeros(1), 64)["PRECISION"] == precision
            assert kernels._product_options(torch.zeros(1, dtype=torch.bfloat16), 64)["PRECISION"] == "ieee"
        finally:
            settings.fp32_precision = before

else:

    def test_the_tests_of_the_ops():
        # left out: what compiles, numeric derivatives and half of the large shapes, which are slow here
        chosen = "not graph_break and not bad_input and not gradcheck and not share_one_buffer and not layer_takes"
        chosen = f"{chosen} and not (four_matrix_products and (dtype2 or shape3 and (dtype0 or dtype1)))"
        run_interpreted("tests/test_triton_up_conv.py", "tests/test_up_conv.py", "-k", chosen)
