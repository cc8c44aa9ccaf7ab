"""Overlap-tile prediction against the network applied once to the whole extended image."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import unet_fast as uf
from tests.networks import extended, grey, lively, small_networks, whole_image  # noqa: F401
from tests.tolerances import EXACT, NETWORK_FLOAT32
from unet_fast.errors import InputError, InputTypeError
from unet_fast.predict import OverlapTile
from unet_fast.predict.overlap_tile import dihedral
from unet_fast.predict.tiling import gather_window, padded_indices, plan_axis

pytestmark = pytest.mark.core

NUMPY_MODES = {"mirror": "reflect", "zeros": "constant", "nearest": "edge"}


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_tiles_equal_the_whole_mirrored_image(
    rng: np.random.Generator, depth: int, padding: str, norm: str | None
) -> None:
    net = lively(uf.UNet(2, 3, base_channels=4, depth=depth, padding=padding, norm=norm), rng)
    for tile in (20, 37, 500):
        height, width = (int(size) for size in rng.integers(30, 120, 2))
        image = grey(rng, 2, 2, height, width)
        result = OverlapTile(net, tile=tile, batch_size=3)(image)
        assert isinstance(result, np.ndarray)
        assert result.dtype == np.float32
        assert result.shape == (2, 3, height, width)
        np.testing.assert_allclose(result, whole_image(net, image), **NETWORK_FLOAT32)


@pytest.mark.parametrize("factor", [2, 4])
def test_tiles_of_a_coarser_network_equal_the_whole_image(rng: np.random.Generator, factor: int) -> None:
    net = lively(uf.UNet(1, 3, base_channels=4, depth=1, padding="same", norm="batch", downsample=factor), rng)
    for tile in (20, 61):
        image = grey(rng, 1, 1, *(int(size) for size in rng.integers(40, 120, 2)))
        np.testing.assert_allclose(OverlapTile(net, tile=tile)(image), whole_image(net, image), **NETWORK_FLOAT32)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 3), (7, 95), (40, 4)])
def test_context_larger_than_the_image_repeats(rng: np.random.Generator, size: tuple[int, int], padding: str) -> None:
    net = lively(uf.UNet(base_channels=4, depth=3, padding=padding), rng)
    assert net.geometry.receptive_radius > min(size)
    image = grey(rng, 1, 1, *size)
    result = OverlapTile(net, tile=20)(image)
    np.testing.assert_allclose(result, whole_image(net, image), **NETWORK_FLOAT32)


@pytest.mark.parametrize("mode", ["zeros", "nearest"])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_other_paddings_equal_np_pad(rng: np.random.Generator, padding: str, mode: str) -> None:
    net = lively(uf.UNet(base_channels=4, depth=2, padding=padding), rng)
    image = grey(rng, 1, 1, 53, 38) + 2.0
    result = OverlapTile(net, tile=16, padding=mode)(image)
    np.testing.assert_allclose(result, whole_image(net, image, NUMPY_MODES[mode]), **NETWORK_FLOAT32)
    assert np.abs(result - whole_image(net, image)).max() > 1e-3  # the padding does matter


def test_the_network_of_the_paper_in_shape(rng: np.random.Generator) -> None:
    """Depth 4, the 388 px tile and the 512 px image of the paper, with narrow layers."""
    net = lively(uf.UNet(base_channels=2), rng)
    image = grey(rng, 1, 1, 512, 400)
    np.testing.assert_allclose(OverlapTile(net)(image), whole_image(net, image), **NETWORK_FLOAT32)


def test_one_class_is_a_sigmoid_and_labels_are_the_most_probable_class(rng: np.random.Generator) -> None:
    image = grey(rng, 2, 1, 45, 33)
    for num_classes in (1, 2, 4):
        net = lively(uf.UNet(1, num_classes, base_channels=4, depth=2), rng)
        probabilities = OverlapTile(net, tile=12)(image)
        np.testing.assert_allclose(probabilities, whole_image(net, image), **NETWORK_FLOAT32)
        labels = OverlapTile(net, tile=12, output="labels")(image)
        assert labels.shape == (2, 45, 33)
        assert labels.dtype == (np.int64 if isinstance(labels, np.ndarray) else torch.int64)
        expected = probabilities[:, 0] > 0.5 if num_classes == 1 else probabilities.argmax(1)
        assert (labels == expected).all()
        assert len(np.unique(labels)) > 1


def test_ranks_containers_and_dtypes(rng: np.random.Generator) -> None:
    net = lively(uf.UNet(base_channels=4, depth=2), rng)
    predict = OverlapTile(net, tile=20)
    image = rng.integers(0, 4, (31, 42), dtype=np.uint8)
    expected = whole_image(net, image[None, None].astype(np.float32))
    views: list[Any] = [
        image,
        image[None],
        image[None, None],
        image.astype(">u2"),
        image.astype(np.float16),
        image.astype(np.float64),
        image.T.copy().T,
        np.repeat(np.repeat(image, 2, 0), 3, 1)[::2, ::3],
        torch.from_numpy(image),
        torch.from_numpy(image)[None].to(torch.bfloat16),
        torch.from_numpy(image)[None, None].double().requires_grad_(),
    ]
    views[2].flags.writeable = False
    for view in views:
        result = predict(view)
        assert type(result) is (Tensor if isinstance(view, Tensor) else np.ndarray)
        np.testing.assert_allclose(np.asarray(result), expected, **NETWORK_FLOAT32)
    colour = lively(uf.UNet(in_channels=3, base_channels=4, depth=2), rng)
    stack = grey(rng, 3, 31, 42)
    np.testing.assert_allclose(OverlapTile(colour)(stack), whole_image(colour, stack[None]), **NETWORK_FLOAT32)


def test_modes_of_all_modules_are_restored_also_after_an_error(rng: np.random.Generator) -> None:
    net = uf.UNet(base_channels=4, depth=2, norm="batch", dropout=0.5)
    net.train()
    net.bottom.eval()  # as when part of a network is frozen
    before = [module.training for module in net.modules()]
    statistics = net.down[0].block[1].running_mean.clone()  # type: ignore[union-attr]
    image = grey(rng, 33, 33)
    first = OverlapTile(net)(image)
    assert np.array_equal(first, OverlapTile(net)(image))  # no dropout
    assert [module.training for module in net.modules()] == before
    assert torch.equal(net.down[0].block[1].running_mean, statistics)  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in net.parameters())

    def fail(*args: object) -> None:
        raise RuntimeError("stop")

    net.head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        OverlapTile(net)(image)
    assert [module.training for module in net.modules()] == before


def test_low_precision_weights_and_autocast(rng: np.random.Generator) -> None:
    net = lively(uf.UNet(base_channels=4, depth=2), rng)
    image = grey(rng, 40, 40)
    expected = OverlapTile(net)(image)
    results = [OverlapTile(net, amp=True)(image), OverlapTile(net.to(torch.bfloat16))(image)]
    for result in results:
        assert result.dtype == np.float32
        error = np.abs(result - expected)
        assert 0 < error.mean() < 0.01
        np.testing.assert_allclose(result.sum(1), 1.0, rtol=0, atol=1e-5)  # the softmax itself is float32


def test_a_compiled_network_works(rng: np.random.Generator) -> None:
    net = lively(uf.UNet(base_channels=4, depth=2), rng)
    image = grey(rng, 40, 40)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    np.testing.assert_allclose(OverlapTile(compiled)(image), OverlapTile(net)(image), **NETWORK_FLOAT32)
    torch.compiler.reset()


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_eight_versions_equal_turning_the_whole_image_by_hand(rng: np.random.Generator, padding: str) -> None:
    net = lively(uf.UNet(1, 3, base_channels=4, depth=2, padding=padding), rng)
    image = grey(rng, 1, 1, 45, 70)
    padded, kept = extended(net, image)
    total = np.zeros((1, 3, 45, 70), np.float64)
    for turns in range(4):
        for flip in (False, True):
            version = np.rot90(padded, turns, (2, 3))
            version = np.flip(version, 2) if flip else version
            with torch.no_grad():
                output = net(torch.from_numpy(version.copy())).softmax(1).numpy()
            output = np.flip(output, 2) if flip else output
            output = np.rot90(output, -turns, (2, 3))
            total += output[:, :, kept : kept + 45, kept : kept + 70]
    result = OverlapTile(net, tile=21, tta=8)(image)
    np.testing.assert_allclose(result, total / 8, **NETWORK_FLOAT32)
    assert np.abs(result - OverlapTile(net, tile=21)(image)).max() > 1e-3


def test_eight_versions_of_an_equivariant_network_change_nothing(rng: np.random.Generator) -> None:
    net = lively(uf.UNet(base_channels=4, depth=2), rng)
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                layer.weight.copy_(torch.stack([dihedral(layer.weight, v) for v in range(8)]).mean(0))
    image = grey(rng, 1, 1, 61, 38)
    plain = OverlapTile(net, tile=20)(image)
    assert plain.std() > 1e-3
    np.testing.assert_allclose(OverlapTile(net, tile=20, tta=8)(image), plain, **NETWORK_FLOAT32)


def test_the_symmetries_are_eight_and_are_undone(rng: np.random.Generator) -> None:
    x = torch.from_numpy(grey(rng, 1, 2, 3, 3))
    versions = [dihedral(x, v) for v in range(8)]
    assert len({tuple(version.flatten().tolist()) for version in versions}) == 8
    y = torch.from_numpy(grey(rng, 2, 4, 7))
    for v in range(8):
        assert torch.equal(dihedral(dihedral(y, v), v, inverse=True), y)


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_norms_of_the_instance_warn_once_and_only_with_several_tiles(rng: np.random.Generator, norm: str) -> None:
    net = uf.UNet(base_channels=4, depth=2, norm=norm)
    image = grey(rng, 1, 1, 60, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single = OverlapTile(net, tile=60)(image)
        np.testing.assert_allclose(single, whole_image(net, image), **NETWORK_FLOAT32)
    predict = OverlapTile(net, tile=20)
    with pytest.warns(UserWarning, match="normalises by the statistics of its input"):
        predict(image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(image)


@given(st.integers(1, 3000), st.integers(1, 600), st.integers(1, 5), st.booleans())
@settings(max_examples=300, deadline=None)
def test_the_tile_plan_covers_and_keeps_the_pooling_grid(length: int, tile: int, depth: int, valid: bool) -> None:
    geometry = uf.models.UNet(base_channels=1, depth=depth, padding="valid" if valid else "same").geometry
    plan = plan_axis(length, tile, geometry.smallest_output, geometry.step)
    assert (plan.size - geometry.smallest_output) % geometry.step == 0
    assert plan.size >= geometry.smallest_output
    assert all(start % geometry.step == 0 for start in plan.starts)
    covered = np.zeros(length, bool)
    for start in plan.starts:
        assert start < length  # no tile lies outside
        covered[start : start + plan.size] = True
    assert covered.all()
    # never larger than asked for, but for the rounding; never a tile more than that size needs
    largest = max(geometry.covering_output(tile), geometry.covering_output(geometry.step))
    assert plan.size <= largest
    stride = largest // geometry.step * geometry.step
    assert len(plan.starts) == 1 or (len(plan.starts) - 2) * stride + largest < length


@given(st.integers(-300, 300), st.integers(1, 200), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_padded_indices_equal_np_pad(start: int, length: int, size: int) -> None:
    line = np.arange(1, size + 1)
    before, after = max(0, -start), max(0, start + length - size)
    for padding, mode in NUMPY_MODES.items():
        expected = np.pad(line, (before, after), mode=mode)[start + before :][:length]  # type: ignore[call-overload]
        indices, inside = padded_indices(start, length, size, padding)
        actual = line[indices] if inside is None else line[indices] * inside
        np.testing.assert_array_equal(actual, expected)


def test_a_window_reads_only_what_it_needs(rng: np.random.Generator) -> None:
    class Counting(np.ndarray):
        largest = 0

        def astype(self, *args: Any, **kwargs: Any) -> Any:
            Counting.largest = max(Counting.largest, self.size)
            return np.asarray(self).astype(*args, **kwargs)

    image = grey(rng, 2, 900, 1000)
    for start in ((-20, -5), (400, 300), (870, 980)):
        window = gather_window(image.view(Counting), start, (60, 50), "mirror")
        expected = np.pad(image, ((0, 0), (60, 60), (60, 60)), mode="reflect")
        y, x = start[0] + 60, start[1] + 60
        np.testing.assert_allclose(window.numpy(), expected[:, y : y + 60, x : x + 50], **EXACT)
    assert 0 < Counting.largest <= 2 * 60 * 50


def bad_images() -> list[tuple[Any, type[Exception], str]]:
    holed, infinite = np.zeros((2, 1, 9, 9), np.float32), torch.zeros(9, 9)
    holed[1, 0, 3, 4] = np.nan
    infinite[2] = np.inf
    return [
        (holed, InputError, "image 1 of 2 has 1 NaN or infinite values"),
        (infinite, InputError, "image has 9 NaN or infinite values"),
        (np.zeros((3, 9, 9)), InputError, r"image has 3 channels, shape \(3, 9, 9\); the network expects 1"),
        (np.zeros((0, 1, 9, 9)), InputError, "image is empty"),
        (np.zeros((9, 0)), InputError, r"image is empty: shape \(9, 0\)"),
        (np.zeros(9), InputError, "1 dimensions"),
        (np.zeros((1, 1, 1, 9, 9)), InputError, "5 dimensions"),
        (np.zeros((9, 9), complex), InputTypeError, "dtype complex128"),
        (torch.zeros(9, 9, dtype=torch.complex64), InputTypeError, "dtype torch.complex64"),
        (np.array([["a", "b"]]), InputTypeError, "dtype <U1"),
        ([[1.0, 2.0]], InputTypeError, "image is a list"),
    ]


@pytest.mark.parametrize(("image", "error", "message"), bad_images())
def test_bad_images_are_refused(image: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OverlapTile(uf.UNet(base_channels=2, depth=1))(image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 0}, "tile is 0, expected at least 1"),
        ({"tile": -388}, "tile is -388, expected at least 1"),
        ({"tile": 38.5}, "tile is 38.5, expected an int"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"padding": "reflect"}, "padding is 'reflect', expected one of 'mirror', 'zeros', 'nearest'"),
        ({"output": "logits"}, "output is 'logits', expected one of 'probabilities', 'labels'"),
        ({"tta": 4}, "tta is 4, expected 1 .* or 8"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OverlapTile(uf.UNet(base_channels=2, depth=1), **options)


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(InputTypeError, match=r"model is a function, expected a torch.nn.Module or an engine"):
        OverlapTile(dihedral)


def test_progress_counts_tiles(rng: np.random.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    net = uf.UNet(base_channels=2, depth=1)
    OverlapTile(net, tile=10, batch_size=2, progress=True)(grey(rng, 25, 10))
    assert "3/3" in capsys.readouterr().err
    OverlapTile(net, tile=10)(grey(rng, 25, 10))
    assert capsys.readouterr().err == ""
