"""fill_buffer against an assignment and a concatenation, with gradients, in graphs and under transforms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import unet_fast as uf
from tests.tolerances import BY_DTYPE, EXACT
from unet_fast.errors import InputError, InputTypeError
from unet_fast.ops import fill_buffer, relu_pool_skip

pytestmark = pytest.mark.core
FORMS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_of_a_concatenation(form, fresh, generator):
    buffer, up, head = (
        torch.randn(2, c, 6, 5, generator=generator, dtype=torch.float64).contiguous(memory_format=form)
        for c in (5, 2, 5)
    )
    leaves = [t.clone().requires_grad_() for t in (buffer, up)]
    out = fill_buffer(leaves[0] * 1, leaves[1], fresh=fresh)
    truth = torch.cat([leaves[0][:, :3], leaves[1]], 1)
    torch.testing.assert_close(out, truth, **EXACT)
    got, expected = (torch.autograd.grad((one * head).sum(), leaves) for one in (out, truth))
    torch.testing.assert_close(got[1], expected[1], **EXACT)
    torch.testing.assert_close(got[0][:, :3], expected[0][:, :3], **EXACT)
    if not fresh:
        torch.testing.assert_close(got[0], expected[0], **EXACT)


@pytest.mark.parametrize("form", FORMS)
def test_behind_relu_pool_skip_it_is_written_in_place(form, generator):
    x = torch.randn(1, 4, 12, 16, generator=generator).contiguous(memory_format=form).requires_grad_()
    low = torch.randn(1, 3, 5, 7, generator=generator).contiguous(memory_format=form).requires_grad_()
    pooled, buffer = relu_pool_skip(x, skip_size=(10, 14), up_channels=3)
    place = buffer.data_ptr()
    out = fill_buffer(buffer, F.interpolate(low, scale_factor=2), fresh=True)
    assert out.data_ptr() == place
    y = F.relu(x)
    truth = torch.cat([y[:, :, 1:11, 1:15], F.interpolate(low, scale_factor=2)], 1)
    torch.testing.assert_close(out, truth, **EXACT)
    factors = torch.randn(truth.shape, generator=generator), torch.randn(pooled.shape, generator=generator)
    got = torch.autograd.grad((out * factors[0]).sum() + (pooled * factors[1]).sum(), (x, low))
    expected = torch.autograd.grad((truth * factors[0]).sum() + (F.max_pool2d(y, 2) * factors[1]).sum(), (x, low))
    torch.testing.assert_close(got, expected, **BY_DTYPE[torch.float32])


def test_graphs_transforms_and_views_are_functional(generator):
    buffer, up = torch.randn(1, 5, 4, 4, generator=generator), torch.randn(1, 2, 4, 4, generator=generator)
    truth = torch.cat([buffer[:, :3], up], 1)
    before = buffer.clone()
    compiled = torch.compile(fill_buffer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(buffer, up), truth) and torch.equal(buffer, before)
    torch.compiler.reset()
    assert torch.equal(torch.vmap(fill_buffer)(buffer[None], up[None])[0], truth) and torch.equal(buffer, before)
    leaf = torch.randn(2, 2, 4, 4, generator=generator).requires_grad_()
    both = torch.stack([before[0], before[0]])
    assert torch.equal(fill_buffer(both[:1], leaf[:1]), torch.cat([before[:, :3], leaf[:1]], 1))
    assert torch.equal(both[0], before[0])
    wanting = before.clone().requires_grad_()
    joined = fill_buffer(wanting, up)
    assert torch.equal(joined, truth) and torch.equal(wanting, before)
    (grad,) = torch.autograd.grad(joined.sum(), wanting)
    assert grad[:, :3].eq(1).all() and grad[:, 3:].eq(0).all()

    class Net(torch.nn.Module):
        def forward(self, buffer, up):
            return uf.ops.fill_buffer(buffer, up)

    program = torch.export.export(Net(), (buffer, up))
    assert not [
        node for node in program.graph.nodes if getattr(node.target, "_schema", None) and node.target._schema.is_mutable
    ]
    assert torch.equal(program.module()(buffer, up), truth)


@pytest.mark.parametrize(
    ("buffer", "up", "error", "message"),
    [
        (
            torch.zeros(1, 2, 4, 4),
            torch.zeros(1, 3, 4, 4),
            InputError,
            r"up has shape \(1, 3, 4, 4\), expected \(1, at most 2",
        ),
        (torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 5), InputError, r"up has shape \(1, 1, 4, 5\)"),
        (
            torch.zeros(1, 2, 4, 4),
            torch.zeros(1, 1, 4, 4).double(),
            InputTypeError,
            "buffer has dtype torch.float32 but up",
        ),
        (torch.zeros(2, 4, 4), torch.zeros(1, 4, 4), InputError, "buffer has 3 dimensions"),
        (None, torch.zeros(1, 1, 4, 4), InputTypeError, "buffer is a NoneType"),
    ],
)
def test_bad_input(buffer, up, error, message):
    with pytest.raises(error, match=message):
        fill_buffer(buffer, up)
