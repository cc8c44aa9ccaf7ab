"""The Triton kernels of bias_relu, relu_pool_skip and conv_bias_relu, interpreted on the CPU."""

from __future__ import annotations

import os

import pytest
import torch

from tests.devices import INTERPRETER, run_interpreted
from tests.tolerances import CHANNEL_SUM, CONVOLUTION, EXACT

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

if os.environ.get("TRITON_INTERPRET") == INTERPRETER["TRITON_INTERPRET"]:
    from unet_fast import reference
    from unet_fast.ops import bias_relu, conv_bias_relu, relu_pool_skip, use_backend
    from unet_fast.triton import bias_relu as bias_relu_kernels
    from unet_fast.triton import relu_pool_skip as pool_kernels

    def draw(generator, *shape, dtype, last):
        tensor = torch.randn(shape, generator=generator).to(dtype)
        return tensor.contiguous(memory_format=torch.channels_last) if last else tensor

    def wide(dtype):
        return torch.float64 if dtype == torch.float64 else torch.float32

    @pytest.fixture(autouse=True)
    def compiled():
        """torch.ops.unet_fast are the compiled CPU kernels; the Triton functions are called by name."""
        with use_backend("cpp"):
            yield

    @pytest.mark.parametrize("last", [False, True])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        ("shape", "crop", "up"),
        [
            ((2, 3, 7, 5), (4, 4), 2),
            ((1, 4, 6, 70), (3, 64), 4),
            ((1, 2, 2, 2), (1, 1), 1),
            ((1, 2, 12, 40), (8, 32), 2),
        ],
    )
    def test_every_junction_has_the_bits_of_the_cpu(shape, crop, up, dtype, last, generator):
        ops, (_, c, *size) = torch.ops.unet_fast, shape
        x = draw(generator, *shape, dtype=dtype, last=last)
        bias = torch.randn(c, generator=generator).to(wide(dtype))
        x[0, 0, 0, 1], x[0, -1, 1, 0] = float("nan"), float("inf")
        got = pool_kernels.relu_pool_skip(x, bias, list(crop), up, True)
        truth = ops.relu_pool_skip(x, bias, crop, up, True)
        torch.testing.assert_close(got, truth, **EXACT, equal_nan=True)  # the rest of the buffer is NaN in both
        assert got[1].stride() == truth[1].stride()
        without = pool_kernels.relu_pool_skip(x, None, list(crop), up, False)
        torch.testing.assert_close(without, ops.relu_pool_skip(x, None, crop, up, False), **EXACT, equal_nan=True)
        grads = [draw(generator, *tensor.shape, dtype=dtype, last=last) for tensor in got[:2]]
        grads[1][:, c:] = float("nan")  # nobody reads there
        for given, want in ((grads, True), ([grads[0], None], True), ([None, grads[1]], False)):
            result = pool_kernels.relu_pool_skip_backward(got[2], *given, size, want)
            expected = ops.relu_pool_skip_backward(truth[2], *given, size, want)
            torch.testing.assert_close(result[0], expected[0], **EXACT)
            torch.testing.assert_close(result[1], expected[1], **CHANNEL_SUM[dtype])

    def test_slices(generator):
        """Strides and crops that no vector divides, and layouts that have to be copied."""
        ops = torch.ops.unet_fast
        base = draw(generator, 2, 8, 12, 18, dtype=torch.float32, last=False)
        last = base.contiguous(memory_format=torch.channels_last)
        for x in (base[:, 3:6, 1:10, 2:15], last[:, 3:6, 1:10, 2:15], base[:, :2].transpose(2, 3), last[:, ::4]):
            size = list(x.shape[2:])
            got = pool_kernels.relu_pool_skip(x, None, [5, 7], 0, True)
            torch.testing.assert_close(got, ops.relu_pool_skip(x, None, [5, 7], 0, True), **EXACT)
            grads = x[:, :, : size[0] // 2, : size[1] // 2], x[:, :, :5, :7].transpose(2, 3).reshape(*x.shape[:2], 5, 7)
            result = pool_kernels.relu_pool_skip_backward(got[2], *grads, size, True)
            expected = ops.relu_pool_skip_backward(got[2], *grads, size, True)
            torch.testing.assert_close(result[0], expected[0], **EXACT)
            torch.testing.assert_close(result[1], expected[1], **CHANNEL_SUM[torch.float32])
            torch.testing.assert_close(bias_relu_kernels.bias_relu(x, None), ops.bias_relu(x, None), **EXACT)

    def test_empty():
        for shape in ((0, 4, 6, 6), (2, 0, 6, 6)):
            x = torch.zeros(shape)
            pooled, buffer, code = pool_kernels.relu_pool_skip(x, None, [4, 4], 3, True)
            assert pooled.shape == (*shape[:2], 3, 3) and buffer.shape == (shape[0], shape[1] + 3, 4, 4)
            grad_x, grad_bias = pool_kernels.relu_pool_skip_backward(code, pooled, buffer, [6, 6], True)
            assert grad_x.shape == shape and grad_bias.tolist() == [0.0] * shape[1]
            assert bias_relu_kernels.bias_relu_backward(x, x, True)[1].tolist() == [0.0] * shape[1]

    def test_tiles_and_parts(monkeypatch, generator):
        """Tiles much smaller than the image: several along each side, and more partial sums than add_parts takes at once."""
        monkeypatch.setattr(bias_relu_kernels, "_TILE", 16)
        monkeypatch.setattr(bias_relu_kernels, "_WIDEST", 8)
        monkeypatch.setattr(pool_kernels, "_WINDOWS", 32)
        monkeypatch.setattr(pool_kernels, "_MOST_CHANNELS", 4)
        ops = torch.ops.unet_fast
        for last in (False, True):
            x = draw(generator, 2, 5, 9, 19, dtype=torch.float32, last=last)
            bias = torch.randn(5, generator=generator)
            out = bias_relu_kernels.bias_relu(x, bias)
            torch.testing.assert_close(out, ops.bias_relu(x, bias), **EXACT)
            got, truth = bias_relu_kernels.bias_relu_backward(x, out, True), ops.bias_relu_backward(x, out, True)
            torch.testing.assert_close(got[0], truth[0], **EXACT)
            torch.testing.assert_close(got[1], truth[1], **CHANNEL_SUM[torch.float32])
            results = pool_kernels.relu_pool_skip(x, bias, [5, 12], 1, True)
            torch.testing.assert_close(results, ops.relu_pool_skip(x, bias, [5, 12], 1, True), **EXACT, equal_nan=True)
            grads = results[0] + 1, results[1].nan_to_num()
            got = pool_kernels.relu_pool_skip_backward(results[2], *grads, [9, 19], True)
            truth = ops.relu_pool_skip_backward(results[2], *grads, [9, 19], True)
            torch.testing.assert_close(got[0], truth[0], **EXACT)
            torch.testing.assert_close(got[1], truth[1], **CHANNEL_SUM[torch.float32])

    def test_all_operators_of_an_op_change_their_backend(monkeypatch, generator):
        """The in-place operator as well; and the public functions agree with the reference."""
        names = []
        kernels = {
            name: lambda *arguments, name=name, run=run: (names.append(name), run(*arguments))[1]
            for name, run in bias_relu_kernels.KERNELS.items()
        }
        monkeypatch.setattr(bias_relu_kernels, "KERNELS", kernels)
        x, weight = (torch.randn(shape, generator=generator).requires_grad_() for shape in ((1, 2, 5, 4), (3, 2, 3, 3)))
        bias = torch.randn(3, generator=generator).requires_grad_()
        with use_backend("triton"):
            in_place = x.detach().clone()
            torch.ops.unet_fast.bias_relu_(in_place, None)
            torch.testing.assert_close(in_place, x.detach().relu(), **EXACT)
            strided = x.detach().clone()[:, :, ::2]
            torch.ops.unet_fast.bias_relu_(strided, None)
            torch.testing.assert_close(strided, x.detach()[:, :, ::2].relu(), **EXACT)
            bias_relu(x).sum().backward()
            out = conv_bias_relu(x, weight, bias, padding=1)
            pooled, _ = relu_pool_skip(out, skip_size=(3, 2))
            got = torch.autograd.grad(pooled.square().sum(), (x, weight, bias))
        assert names == ["bias_relu_"] * 2 + ["bias_relu", "bias_relu_backward"]
        expected_out = reference.conv_bias_relu(x, weight, bias, padding=1)
        torch.testing.assert_close(out, expected_out, **CONVOLUTION[torch.float32])
        expected, _ = reference.relu_pool_skip(expected_out, skip_size=(3, 2))
        expected_grads = torch.autograd.grad(expected.square().sum(), (x, weight, bias))
        torch.testing.assert_close(got, expected_grads, **CONVOLUTION[torch.float32])

else:

    def test_interpreted():
        run_interpreted("tests/test_triton_junctions.py")

    def test_the_tests_of_bias_relu():
        run_interpreted("tests/test_bias_relu.py", "-k", "not gradcheck and not bad_input and not random_shapes")
