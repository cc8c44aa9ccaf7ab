"""The legal sizes of a network and its receptive radius, against step-by-step traces and against what moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import unet_fast as uf
from tests.networks import small_networks  # noqa: F401
from unet_fast.errors import InputError, InputTypeError
from unet_fast.models.geometry import unet_geometry

pytestmark = pytest.mark.core


def trace_valid_sizes(size: int, depth: int) -> int | None:
    """Follow a size through the valid network; None where a pooling would drop a row or nothing is left."""
    sizes = []
    for _ in range(depth):
        size -= 4
        if size <= 0 or size % 2:
            return None
        sizes.append(size)
        size //= 2
    size -= 4
    for skip in reversed(sizes):
        if size <= 0:
            return None
        size = 2 * size
        assert skip >= size
        size -= 4
    return size if size > 0 else None


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_valid_sizes_equal_a_step_by_step_trace(depth: int) -> None:
    geometry = unet_geometry(depth, "valid")
    legal = 0
    for size in range(1, geometry.smallest_input + 5 * geometry.step + 2):
        expected = trace_valid_sizes(size, depth)
        assert geometry.accepts(size) == (expected is not None), size
        if expected is None:
            with pytest.raises(InputError, match="legal input size"):
                geometry.output_size(size)
        else:
            assert geometry.output_size(size) == expected
            assert geometry.input_size(expected) == size
            assert geometry.covering_output(expected) == expected
            assert geometry.covering_output(expected - 1) in (expected, geometry.smallest_output)
            assert geometry.covering_output(expected + 1) == expected + geometry.step
            legal += 1
    assert legal == 6


def test_error_names_the_nearest_legal_sizes() -> None:
    net = uf.UNet(base_channels=2)
    with pytest.raises(InputError, match="input height 570 .* nearest legal input sizes are 556 and 572"):
        net.output_size(570)
    with pytest.raises(InputError, match="input width 573 .* 572 and 588"):
        net.output_size((572, 573))
    with pytest.raises(InputError, match="input height 100 is too small .* smallest legal input size is 188"):
        net.output_size(100)
    with pytest.raises(InputError, match="output height 390 .* 388 and 404"):
        net.input_size(390)
    with pytest.raises(InputTypeError, match="size is 'big'"):
        net.output_size("big")  # type: ignore[arg-type]
    assert uf.UNet(base_channels=2, padding="same").output_size((16, 512)) == (16, 512)
    with pytest.raises(InputError, match="500 .* 496 and 512"):
        uf.UNet(base_channels=2, padding="same").output_size(500)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_the_receptive_radius_bounds_what_a_pixel_sees(rng: np.random.Generator, padding: str) -> None:
    """Positive weights and no ReLU cut-off: every connection counts, so the reach is exactly the architecture's."""
    net = uf.UNet(base_channels=2, depth=2, padding=padding).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.rand_like(parameter) * 0.2 + 0.1)
    radius, step, margin = net.geometry.receptive_radius, net.geometry.step, net.margin
    size = net.geometry.smallest_input + 20 * step
    x = torch.rand(
        1, 1, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(int(rng.integers(99)))
    )
    base = net(x)
    reach = 0
    for offset in range(step):
        changed = x.clone()
        changed[0, 0, size // 2 + offset, size // 2] += 1e3  # large, so that it wins every max-pool
        rows = ((net(changed) - base).abs().amax(dim=(0, 1, 3)) > 0).nonzero().flatten() + margin
        reach = max(reach, int((rows - (size // 2 + offset)).abs().max()))
    assert reach == radius
