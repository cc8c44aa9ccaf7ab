"""elastic_warp: gradients, registration, compilation, the NumPy function, the module, bad input."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import unet_fast.numpy
from tests.places import needs
from tests.test_elastic_warp import (
    FIELDS,
    INTERPOLATIONS,
    PADDINGS,
    draw,
    draw_field,
    draw_labels,
    draw_matrix,
)
from tests.tolerances import EXACT, WARP
from unet_fast import reference
from unet_fast.errors import BackendError, InputError, InputTypeError
from unet_fast.nn import ElasticWarp
from unet_fast.ops import elastic_warp, use_backend

pytestmark = [pytest.mark.kernels, needs("speed")]  # smaller ones: test_kernels_warp.py

OP = torch.ops.unet_fast


@needs("numeric", "large")
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_gradients(interpolation, padding, rng):
    image, weight = (draw(rng, 2, c, 4, 5).requires_grad_() for c in (2, 1))
    labels, displacement, matrix = draw_labels(rng, 2, 1, 4, 5), draw_field(rng, 2, 3, 3), draw_matrix(rng, 2)

    def warp(image, weight):
        return elastic_warp(
            (image, labels, weight),
            displacement,
            matrix=matrix,
            output_size=[(3, 4), (4, 5), (5, 5)],
            interpolation=(interpolation, "nearest", "bilinear"),
            padding=padding,
            fill=(0.5, 1, 2),
        )[::2]

    assert torch.autograd.gradcheck(warp, (image, weight))
    assert torch.autograd.gradgradcheck(warp, (image, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradient_dtypes_and_shapes(dtype, rng):
    """Several blocks, bands and channels, against autograd through the reference."""
    image, other = draw(rng, 1, 3, 70, 150, dtype=dtype), draw(rng, 1, 1, 70, 150, dtype=torch.float32)
    displacement, matrix = draw_field(rng, 1, 3, 4), draw_matrix(rng, 1)
    grads = []
    for function, convert in ((elastic_warp, lambda x: x), (reference.elastic_warp, lambda x: x.double())):
        a, b = (convert(x).clone().requires_grad_() for x in (image, other))
        out = function((a, b), displacement, matrix=matrix, output_size=[(70, 150), (33, 80)], padding="nearest")
        (out[0].double().square().sum() + (3 * out[1]).double().sum()).backward()
        grads.append((a.grad, b.grad))
    assert grads[0][0].dtype == dtype and grads[0][1].dtype == torch.float32
    scale = grads[1][0].abs().max()
    torch.testing.assert_close(grads[0][0].double() / scale, grads[1][0] / scale, **WARP[dtype])
    scale = grads[1][1].abs().max()
    torch.testing.assert_close(grads[0][1].double() / scale, grads[1][1] / scale, **WARP[torch.float32])


def test_only_what_needs_a_gradient_gets_one(rng):
    image, constant = draw(rng, 1, 1, 8, 8).requires_grad_(), draw(rng, 1, 1, 8, 8)
    labels = draw_labels(rng, 1, 1, 8, 8)
    out = elastic_warp(
        (constant, labels, image), draw_field(rng, 1, 3, 3), interpolation=("bilinear", "nearest", "bilinear")
    )
    assert not out[1].requires_grad
    out[2].sum().backward()
    assert constant.grad is None and abs(image.grad.sum().item() - 64) < 1e-9


@needs("host")
@pytest.mark.parametrize("matrix", [False, True])
def test_registration(matrix, rng):
    image, labels = draw(rng, 2, 2, 7, 9, dtype=torch.float32).requires_grad_(), draw_labels(rng, 2, 1, 7, 9)
    displacement, m = draw_field(rng, 2, 3, 3).float(), draw_matrix(rng, 2).float() if matrix else None
    torch.library.opcheck(
        OP.elastic_warp.default,
        ([image, labels, image.detach().to(memory_format=torch.channels_last)], displacement, m)
        + ([5, 5, 7, 9, 12, 3], [1, 0, 2], [0.0, 0.0, 0.5], 0, 1),
    )
    torch.library.opcheck(
        OP.elastic_warp_backward.default, ([image, image[:, :1].detach()], displacement, m, [9, 9], [1, 2], 1, 0, True)
    )


@needs("compiler")
def test_compiles_without_a_graph_break_for_changing_sizes(rng):
    def step(image, labels, displacement):
        size = (image.shape[2] - 2, image.shape[3] - 3)
        options = {"interpolation": ("bilinear", "nearest"), "output_size": size}
        options |= {"padding": "zeros", "fill": (0.0, 3)}
        image, labels = elastic_warp((image * 2, labels), displacement, **options)
        return image.relu(), labels

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((9, 8), (6, 73)):
        image, labels = draw(rng, 2, 2, *size).requires_grad_(), draw_labels(rng, 2, 1, *size)
        displacement = draw_field(rng, 2, 3, 3)
        out, out_labels = compiled(image, labels, displacement)
        expected, expected_labels = step(image, labels, displacement)
        torch.testing.assert_close(out, expected, **EXACT)
        torch.testing.assert_close(out_labels, expected_labels, **EXACT)
        (grad,) = torch.autograd.grad(out.sum(), image)
        torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), image)[0], **EXACT)


def test_empty_batches_and_channels():
    out, labels = elastic_warp(
        (torch.zeros(0, 2, 5, 6), torch.zeros(0, 1, 5, 6, dtype=torch.int32)),
        torch.zeros(0, 2, 3, 3),
        output_size=[(3, 3), (2, 2)],
        interpolation=("bilinear", "nearest"),
    )
    assert out.shape == (0, 2, 3, 3) and labels.shape == (0, 1, 2, 2) and labels.dtype == torch.int32
    image = torch.zeros(2, 0, 5, 6, requires_grad=True)
    out = elastic_warp(image, torch.zeros(2, 2, 3, 3))
    assert out.shape == (2, 0, 5, 6)
    assert torch.autograd.grad(out.sum(), image)[0].shape == image.shape


@needs("host")
def test_output_sizes(rng):
    image = draw(rng, 1, 1, 9, 8)
    zero = torch.zeros(1, 2, 3, 3)
    for size, shapes in (
        (None, [(9, 8), (9, 8)]),
        (4, [(4, 4), (4, 4)]),
        ((4, 5), [(4, 5), (4, 5)]),
        ([4, (2, 3)], [(4, 4), (2, 3)]),
        (torch.Size([4, 5]), [(4, 5), (4, 5)]),
    ):
        outs = elastic_warp([image, image], zero, output_size=size)
        assert [tuple(out.shape[2:]) for out in outs] == shapes
    assert isinstance(elastic_warp((image,), zero), tuple)


@needs("host")
def test_numpy_equals_torch(rng):
    image, labels = draw(rng, 2, 3, 40, 75, dtype=torch.float32), draw_labels(rng, 2, 1, 40, 75)
    displacement, matrix = draw_field(rng, 2, 3, 3), draw_matrix(rng, 2)
    for field in FIELDS[:2]:
        options = {"interpolation": ("bilinear", "nearest"), "output_size": [(30, 80), 7], "field": field}
        options |= {"padding": "zeros", "fill": (0.5, 9)}
        out = elastic_warp((image, labels), displacement, matrix=matrix, **options)
        arrays = (image.numpy()[:, :, ::-1][:, :, ::-1], labels.numpy())
        got = unet_fast.numpy.elastic_warp(arrays, displacement.numpy(), matrix=matrix.numpy(), **options)
        for a, b in zip(got, out, strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b, **EXACT)
    single = unet_fast.numpy.elastic_warp(image[0, 0].numpy(), displacement[0].numpy(), matrix=matrix[0].numpy())
    expected = elastic_warp(image[:1, :1], displacement[:1], matrix=matrix[:1])
    np.testing.assert_array_equal(single, expected[0, 0].numpy())


@needs("host")
def test_numpy_arrays_with_channels(rng):
    """Channels in front or last, beside labels without any, one image or a batch: the same pixels as planes."""
    planes, labels = (rng.random((2, 3, 31, 70)) * 255).astype("u1"), rng.integers(0, 9, (2, 31, 70))
    field = draw_field(rng, 2, 3, 3).numpy()
    options = {"interpolation": ("bilinear", "nearest"), "output_size": (20, 33)}
    image, classes = unet_fast.numpy.elastic_warp((planes, labels[:, None]), field, **options)
    assert image.shape == (2, 3, 20, 33) and len(np.unique(image)) > 100
    last = np.moveaxis(planes, 1, -1)
    cases = [
        (planes, labels, field, {}, image, classes[:, 0]),
        (last, labels, field, {"channel_axis": -1}, np.moveaxis(image, 1, -1), classes[:, 0]),
        (last, labels[..., None], field, {"channel_axis": 3}, np.moveaxis(image, 1, -1), np.moveaxis(classes, 1, -1)),
        (planes[0], labels[0], field[0], {}, image[0], classes[0, 0]),
        (planes[0], labels[0], field[0], {"channel_axis": 0}, image[0], classes[0, 0]),
        (last[0], labels[0], field[0], {"channel_axis": -1}, np.moveaxis(image[0], 0, -1), classes[0, 0]),
        (last[0], labels[0], field[0], {"channel_axis": 2}, np.moveaxis(image[0], 0, -1), classes[0, 0]),
    ]
    for picture, truth, displacement, axis, *expected in cases:
        got = unet_fast.numpy.elastic_warp((picture, truth), displacement, **options, **axis)
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == b.dtype and a.flags.c_contiguous
            np.testing.assert_array_equal(a, b)


@needs("host")
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", ">u2", "u4", "u8", "i8", "?", "f2", "f8", ">f4"])
def test_numpy_dtypes(dtype, rng):
    image = (rng.random((33, 70)) * 100).astype(dtype)
    floating = image.dtype.kind == "f"
    out = unet_fast.numpy.elastic_warp(
        image, np.zeros((2, 3, 3)), interpolation="bilinear" if floating else "nearest", output_size=(20, 70)
    )
    assert out.dtype == image.dtype.newbyteorder("=")
    np.testing.assert_array_equal(out, image[6:26])


@needs("host")
def test_numpy_does_not_import_torch():
    code = (
        "import sys, numpy as np, unet_fast.numpy as n; n.elastic_warp(np.ones((4, 4)), np.zeros((2, 3, 3))); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@needs("host")
def test_module(rng, generator):
    image, labels = draw(rng, 2, 1, 40, 50, dtype=torch.float32), draw_labels(rng, 2, 1, 40, 50)
    warp = ElasticWarp(10.0, (4, 5), interpolation=("bilinear", "nearest"), output_size=30)
    state = generator.get_state()
    first, first_labels = warp((image, labels), generator=generator)
    assert first.shape == (2, 1, 30, 30) and first_labels.dtype == torch.int64
    assert not torch.equal(first, image[:, :, 5:35, 10:40])
    generator.set_state(state)
    displacement = torch.randn(2, 2, 4, 5, generator=generator) * 10
    again = elastic_warp((image, labels), displacement, interpolation=("bilinear", "nearest"), output_size=30)
    torch.testing.assert_close((first, first_labels), again, **EXACT)
    warp.eval()
    torch.testing.assert_close(warp((image, labels))[0], image[:, :, 5:35, 10:40], **EXACT)
    assert "sigma=10, grid=(4, 5)" in repr(warp)
    with pytest.raises(InputError, match="sigma is -1"):
        ElasticWarp(-1)
    with pytest.raises(InputError, match=r"grid is \(0, 3\)"):
        ElasticWarp(grid=(0, 3))


IMAGE, FIELD = torch.zeros(2, 1, 8, 8), torch.zeros(2, 2, 3, 3)
LABELS = torch.zeros(2, 1, 8, 8, dtype=torch.int64)


@needs("host")
@pytest.mark.parametrize(
    ("inputs", "displacement", "options", "error", "message"),
    [
        (np.zeros((2, 1, 8, 8)), FIELD, {}, InputTypeError, "inputs is a ndarray, expected a torch.Tensor or a tuple"),
        ([IMAGE, 3], FIELD, {}, InputTypeError, r"inputs\[1\] is a int, expected a torch.Tensor"),
        ([], FIELD, {}, InputError, "inputs is empty"),
        (IMAGE[0], FIELD, {}, InputError, r"inputs\[0\] has shape \(1, 8, 8\), expected \(N, C, H, W\)"),
        (IMAGE.to(torch.complex64), FIELD, {}, InputTypeError, r"inputs\[0\] has dtype complex64"),
        ((IMAGE, IMAGE[:, :, 1:]), FIELD, {}, InputError, r"inputs\[1\] has shape \(2, 1, 7, 8\) but inputs\[0\]"),
        (IMAGE[:, :, :0], FIELD, {}, InputError, "0 x 8 pixels, expected sides from 1"),
        ((IMAGE, IMAGE.to("meta")), FIELD, {}, InputError, r"inputs\[0\] is on cpu but inputs\[1\] is on meta"),
        (IMAGE, FIELD.to("meta"), {}, InputError, "but displacement is on meta"),
        (IMAGE, FIELD[:, :1], {}, InputError, r"displacement has shape \(2, 1, 3, 3\), expected \(N, 2, gh, gw\)"),
        (IMAGE, FIELD[:1], {}, InputError, "displacement has batch size 1 but the inputs have 2"),
        (IMAGE, FIELD.long(), {}, InputTypeError, "displacement has dtype int64"),
        (IMAGE, FIELD.clone().requires_grad_(), {}, InputError, r"displacement requires gradients.*detach\(\)"),
        (IMAGE, FIELD, {"field": "bspline_smooth"}, InputError, "3 x 3 control points.*needs at least 4"),
        (IMAGE, FIELD, {"field": "cubic"}, InputError, "field is 'cubic', expected one of 'bicubic', 'bspline'"),
        (IMAGE, FIELD, {"padding": "reflect"}, InputError, "padding is 'reflect', expected one of 'mirror'"),
        (IMAGE, FIELD, {"interpolation": "linear"}, InputError, "interpolation is 'linear', expected one of 'nearest'"),
        (IMAGE, FIELD, {"interpolation": ("nearest",) * 2}, InputError, "interpolation has 2 entries for 1 inputs"),
        (
            (IMAGE, LABELS),
            FIELD,
            {},
            InputError,
            r"inputs\[1\] has dtype int64, for which no interpolation was named: use 'nearest' for labels",
        ),
        (
            (IMAGE, LABELS),
            FIELD,
            {"interpolation": "bilinear"},
            InputError,
            r"inputs\[1\] has dtype int64.*'bilinear'.*use interpolation 'nearest'",
        ),
        (LABELS.byte(), FIELD, {}, InputError, "uint8, for which no interpolation was named.*'bicubic' for the grey"),
        (LABELS.byte(), FIELD, {"interpolation": "bicubic", "fill": 0.5}, InputError, "whole number from 0 to 255"),
        (
            LABELS,
            FIELD,
            {"interpolation": "nearest", "fill": 0.5},
            InputError,
            "fill is 0.5 .* int64: expected a whole",
        ),
        (LABELS, FIELD, {"interpolation": "nearest", "fill": float("nan")}, InputError, "fill is nan but inputs"),
        (LABELS.byte(), FIELD, {"interpolation": "nearest", "fill": -1}, InputError, "whole number from 0 to 255"),
        (IMAGE, FIELD, {"fill": "0"}, InputTypeError, "fill is '0', expected a number"),
        (IMAGE, FIELD, {"fill": (0.0, 1.0)}, InputError, "fill has 2 entries for 1 inputs"),
        (IMAGE, FIELD, {"matrix": torch.eye(3)}, InputError, r"matrix has shape \(3, 3\), expected \(2, 2, 3\)"),
        (IMAGE, FIELD, {"output_size": 0}, InputError, "output_size is 0, expected sides from 1"),
        (IMAGE, FIELD, {"output_size": "8"}, InputTypeError, "output_size is '8', expected a side"),
        (IMAGE, FIELD, {"output_size": [(1, 2), (3, 4)]}, InputError, "output_size has 2 entries for 1 inputs"),
        ((IMAGE, IMAGE), FIELD, {"output_size": [4, (3, 4, 5)]}, InputTypeError, r"entry \(3, 4, 5\), expected a side"),
    ],
)
def test_bad_input(inputs, displacement, options, error, message):
    with pytest.raises(error, match=message):
        elastic_warp(inputs, displacement, **options)


@needs("host")
def test_bad_numpy_input():
    image, field = np.zeros((8, 8)), np.zeros((2, 3, 3))
    with pytest.raises(
        InputError, match=r"inputs\[0\] has shape \(1, 1, 8, 8\), but displacement \(2, gh, gw\) goes with"
    ):
        unet_fast.numpy.elastic_warp(image[None, None], field)
    with pytest.raises(
        InputError, match=r"inputs\[0\] has shape \(8, 8\), but displacement \(N, 2, gh, gw\) goes with"
    ):
        unet_fast.numpy.elastic_warp(image, field[None])
    with pytest.raises(
        InputError, match=r"inputs\[0\] has shape \(8, 8, 1\) and channel_axis is 1; expected the axis of C"
    ):
        unet_fast.numpy.elastic_warp(image[:, :, None], field, channel_axis=1)
    with pytest.raises(InputTypeError, match=r"inputs\[0\] has dtype complex128"):
        unet_fast.numpy.elastic_warp(image + 1j, field)
    with pytest.raises(InputError, match="uint8, for which no interpolation was named"):
        unet_fast.numpy.elastic_warp(image.astype(np.uint8), field)
    with pytest.raises(InputError, match="displacement has batch size 2 but the inputs have 1"):
        unet_fast.numpy.elastic_warp(image[None, None], np.zeros((2, 2, 3, 3)))


@needs("host")
def test_a_backend_that_is_not_there():
    with use_backend("triton"), pytest.raises(BackendError, match="the backend .triton. was asked for, but "):
        elastic_warp(IMAGE, FIELD)
