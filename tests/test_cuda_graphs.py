"""Every public operator in a captured CUDA graph and on a stream that is not the default one.

A kernel that waits for the device, allocates outside of torch or launches on the default stream fails here.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import unet_fast as uf
from tests.devices import PLACES
from unet_fast.ops import _backends, _library, use_backend
from unet_fast.ops._record import OPS, Draw, Op

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: graph capture and streams were not tested"
)


@pytest.fixture(params=[place for place in PLACES if place[0] == "cuda"], ids=lambda place: place[1])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param[1]


@pytest.fixture(params=OPS)
def op(request: pytest.FixtureRequest, backend: str) -> Iterator[Op]:
    """Every operator that the backend has a kernel for, which it runs on."""
    skip_without_kernel(request.param, backend)
    with use_backend(backend):
        yield OPS[request.param]


def skip_without_kernel(op: str, backend: str) -> None:
    reason = _backends.why_not(backend, op, "cuda") or (backend == "cuda" and _library.CUDA.error)
    if reason:
        pytest.skip(f"{op} with the backend {backend} was not captured: {reason}")


def drawn(op: Op) -> list[Tensor]:
    """Of the same shapes every time, as a replay needs them."""
    return op.with_leaves(op.sample(Draw(torch.default_generator, device="cuda"), 2, 18, 20))


@needs_gpu
def test_captured_and_replayed_with_other_numbers(op):
    static, other = drawn(op), drawn(op)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            op.results(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = op.results(static)
    with torch.no_grad():
        for target, source in zip(static, other, strict=True):
            target.copy_(source)
    graph.replay()
    torch.cuda.synchronize()
    expected = op.results(other)
    for got, want in zip(captured, expected, strict=True):
        torch.testing.assert_close(got, want, equal_nan=True)


@needs_gpu
def test_on_a_stream_of_its_own(op):
    """The inputs are written late on that stream: a launch on another one reads what was there before."""
    tensors, static = drawn(op), drawn(op)
    expected = op.results(tensors)
    op.results(static)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        with torch.no_grad():
            for target, source in zip(static, tensors, strict=True):
                target.copy_(source)
        got = op.results(static)
    stream.synchronize()
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


@needs_gpu
def test_a_whole_training_step_is_captured(backend):
    for op in ("conv_bias_relu", "relu_pool_skip", "up_conv_into", "head_cross_entropy"):
        skip_without_kernel(op, backend)
    net = uf.UNet(base_channels=8, depth=2, fused=True).cuda()
    x, target = torch.randn(2, 1, 44, 44).cuda(), torch.randint(0, 2, (2, 4, 4)).cuda()

    def step() -> Tensor:
        net.zero_grad(set_to_none=True)
        loss = net.loss(x, target)
        loss.backward()
        return loss

    with use_backend(backend):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        grads = [parameter.grad for parameter in net.parameters()]
        x.copy_(torch.randn_like(x))
        graph.replay()
        torch.cuda.synchronize()
        replayed = [grad.clone() for grad in grads if grad is not None]
        torch.testing.assert_close(captured, step())
    for got, parameter in zip(replayed, net.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-4, atol=1e-5)
