"""Every public operator in a captured CUDA graph and on a stream that is not the default one.

A kernel that waits for the device, allocates outside of torch or launches on the default stream fails here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import unet_fast as uf
from tests.devices import PLACES
from unet_fast import ops
from unet_fast.ops import _backends, _library, use_backend

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: graph capture and streams were not tested"
)

Call = Callable[..., Any]


def floats(*shape: int) -> Tensor:
    return torch.randn(shape)


def labels(*shape: int, classes: int = 3) -> Tensor:
    return torch.randint(0, classes, shape)


# operator -> a call, and a draw of its tensors; a second draw has the same shapes, for the replay
SAMPLES: dict[str, tuple[Call, Callable[[], tuple[Tensor, ...]]]] = {
    "crop_concat": (ops.crop_concat, lambda: (floats(2, 3, 18, 20), floats(2, 5, 12, 14))),
    "elastic_warp": (
        lambda image, displacement: ops.elastic_warp(image, displacement),
        lambda: (floats(2, 2, 33, 40), floats(2, 2, 3, 3) * 5),
    ),
    "nearest_two": (ops.nearest_two, lambda: (labels(2, 40, 37, classes=5),)),
    "distance_transform": (ops.distance_transform, lambda: (labels(2, 40, 37, classes=2),)),
    "weight_map": (ops.weight_map, lambda: (labels(2, 40, 37, classes=5),)),
    "weighted_cross_entropy": (
        ops.weighted_cross_entropy,
        lambda: (floats(2, 3, 16, 18), labels(2, 16, 18), torch.rand(2, 16, 18)),
    ),
    "bias_relu": (ops.bias_relu, lambda: (floats(2, 8, 12, 14), floats(8))),
    "conv_bias_relu": (ops.conv_bias_relu, lambda: (floats(2, 4, 16, 18), floats(8, 4, 3, 3), floats(8))),
    "relu_pool_skip": (
        lambda x, bias: ops.relu_pool_skip(x, bias, skip_size=(8, 10)),
        lambda: (floats(2, 8, 12, 14), floats(8)),
    ),
    "up_conv_into": (
        lambda x, weight, bias, skip: ops.up_conv_into(x, weight, bias, skip.clone()),
        lambda: (floats(2, 8, 6, 7), floats(8, 4, 2, 2), floats(4), floats(2, 9, 12, 14)),
    ),
    "up_conv_crop_concat": (
        ops.up_conv_crop_concat,
        lambda: (floats(2, 8, 6, 7), floats(8, 4, 2, 2), floats(4), floats(2, 4, 16, 18)),
    ),
    "head_cross_entropy": (
        ops.head_cross_entropy,
        lambda: (floats(2, 8, 16, 18), floats(3, 8), floats(3), labels(2, 16, 18), torch.rand(2, 16, 18)),
    ),
}


def test_every_public_operator_has_a_sample():
    assert set(SAMPLES) == set(ops.__all__) - {"use_backend"}


@pytest.mark.parametrize("op", SAMPLES)
def test_the_samples_have_the_gradients_that_a_gpu_would_capture(op):
    """On the CPU, so that a machine with a GPU does not find out first."""
    tensors = SAMPLES[op][1]()
    leaves = [leaf.requires_grad_() for leaf in leaves_of(tensors, op)]
    outputs = 2 if op in ("nearest_two", "relu_pool_skip") else 1
    assert len(results(SAMPLES[op][0], tensors, leaves)) == outputs + len(leaves)


@pytest.fixture(params=[place for place in PLACES if place[0] == "cuda"], ids=lambda place: place[1])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param[1]


def skip_without_kernel(op: str, backend: str) -> None:
    reason = _backends.why_not(backend, op, "cuda") or (backend == "cuda" and _library.CUDA.error)
    if reason:
        pytest.skip(f"{op} with the backend {backend} was not captured: {reason}")


def leaves_of(tensors: tuple[Tensor, ...], op: str) -> list[Tensor]:
    """Those that get gradients: floating, but for weights of pixels and displacements."""
    constant = {"weighted_cross_entropy": 2, "head_cross_entropy": 4, "elastic_warp": 1}.get(op)
    return [tensor for index, tensor in enumerate(tensors) if tensor.is_floating_point() and index != constant]


def results(call: Call, tensors: tuple[Tensor, ...], leaves: list[Tensor]) -> list[Tensor]:
    """Outputs and, where there are any, gradients."""
    out = call(*tensors)
    outputs = list(out) if isinstance(out, tuple) else [out]
    if not any(output.requires_grad for output in outputs):
        return outputs
    heads = [output for output in outputs if output.requires_grad]
    grads = torch.autograd.grad(heads, leaves, [torch.ones_like(head) for head in heads], allow_unused=True)
    return [*outputs, *(grad for grad in grads if grad is not None)]


def drawn(op: str) -> tuple[Tensor, ...]:
    return tuple(tensor.cuda() for tensor in SAMPLES[op][1]())


@needs_gpu
@pytest.mark.parametrize("op", SAMPLES)
def test_captured_and_replayed_with_other_numbers(op, backend):
    skip_without_kernel(op, backend)
    call, tensors, other = SAMPLES[op][0], drawn(op), drawn(op)
    static = tuple(tensor.clone() for tensor in tensors)
    leaves = [leaf.requires_grad_() for leaf in leaves_of(static, op)]
    other_leaves = [leaf.requires_grad_() for leaf in leaves_of(other, op)]
    with use_backend(backend):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                results(call, static, leaves)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = results(call, static, leaves)
        with torch.no_grad():
            for target, source in zip(static, other, strict=True):
                target.copy_(source)
        graph.replay()
        torch.cuda.synchronize()
        expected = results(call, other, other_leaves)
    for got, want in zip(captured, expected, strict=True):
        torch.testing.assert_close(got, want, equal_nan=True)


@needs_gpu
@pytest.mark.parametrize("op", SAMPLES)
def test_on_a_stream_of_its_own(op, backend):
    """The inputs are written late on that stream: a launch on another one reads what was there before."""
    skip_without_kernel(op, backend)
    call, tensors, static = SAMPLES[op][0], drawn(op), drawn(op)
    leaves = [leaf.requires_grad_() for leaf in leaves_of(static, op)]
    plain_leaves = [leaf.requires_grad_() for leaf in leaves_of(tensors, op)]
    with use_backend(backend):
        expected = results(call, tensors, plain_leaves)
        results(call, static, leaves)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            with torch.no_grad():
                for target, source in zip(static, tensors, strict=True):
                    target.copy_(source)
            got = results(call, static, leaves)
        stream.synchronize()
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


@needs_gpu
def test_a_whole_training_step_is_captured(backend):
    for op in ("conv_bias_relu", "relu_pool_skip", "up_conv_into", "head_cross_entropy"):
        skip_without_kernel(op, backend)
    net = uf.UNet(base_channels=8, depth=2, fused=True).cuda()
    x, target = torch.randn(2, 1, 44, 44).cuda(), labels(2, 4, 4, classes=2).cuda()

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
