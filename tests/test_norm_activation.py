"""norm_activation against torch's layers and NumPy in float64: norms, activations, layouts, statistics, layers, bad input."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unet_fast as uf
from tests.fuzz.drawing import lay_out
from tests.places import has, needs, slow
from tests.tolerances import NORM, NORM_GRADIENT
from unet_fast.errors import InputError, InputTypeError
from unet_fast.ops import norm_activation

pytestmark = pytest.mark.kernels


def plain(x: Tensor, weight: Tensor, bias: Tensor, slope: Any, o: dict[str, Any]) -> Tensor:
    """torch's functions in float64."""
    means = [None if o[name] is None else o[name].double().clone() for name in ("running_mean", "running_var")]
    if o["norm"] == "group":
        z = F.group_norm(x, o["num_groups"], weight, bias, o["eps"])
    elif o["norm"] == "batch":
        z = F.batch_norm(x, *means, weight, bias, o["training"], 0.1, o["eps"])
    else:
        z = F.instance_norm(x, *means, weight, bias, o["training"] or means[0] is None, 0.1, o["eps"])
    names = {"relu": F.relu, "silu": F.silu, "none": lambda z: z}
    if o["activation"] in names:
        return names[o["activation"]](z)
    return F.prelu(z, slope) if o["activation"] == "prelu" else F.leaky_relu(z, slope)


def random_options(
    generator: torch.Generator, channels: int, norm: str, activation: str, dtype: torch.dtype
) -> dict[str, Any]:
    pick = lambda *values: values[int(torch.randint(len(values), (), generator=generator))]  # noqa: E731
    divisors = [g for g in range(1, channels + 1) if channels % g == 0]
    statistics = norm != "group" and pick(True, False)
    wide = torch.promote_types(dtype, torch.float32)
    return {
        "norm": norm,
        "num_groups": pick(*divisors) if norm == "group" else None,
        "running_mean": torch.randn(channels, generator=generator).to(wide) if statistics else None,
        "running_var": (torch.rand(channels, generator=generator) + 0.5).to(wide) if statistics else None,
        "training": pick(True, False) if statistics else True,
        "eps": pick(1e-5, 0.1),
        "activation": activation,
    }


@pytest.mark.parametrize("activation", ["prelu", "silu", *slow("none", "relu", "leaky_relu")])
@pytest.mark.parametrize("norm", ["instance", "batch", "group"])
def test_agrees_with_torch_in_float64(norm, activation, place, generator):
    """Every layout and dtype, odd shapes in one to three dimensions, whole vectors and their tails, gradients included."""
    shapes = [(2, 6, 9), (3, 5, 7, 5), (2, 24, 17, 33), (1, 48, 12, 11), (2, 16, 3, 5, 6)]
    layouts = ["dense", "channels_last", "slice", "transposed"]
    cases = itertools.product(*((shapes, layouts) if has("speed") else (shapes[1:2], layouts[:2])))
    for (shape, layout), dtype in zip(
        cases, itertools.cycle((torch.float32, torch.float64, torch.bfloat16, torch.float16))
    ):  # noqa: B905
        wide = torch.promote_types(dtype, torch.float32)
        options = random_options(generator, shape[1], norm, activation, dtype)
        x = lay_out((torch.randn(shape, generator=generator) * 2 + 1).to(dtype), layout).to(place)
        numbers = [torch.randn(shape[1], generator=generator).to(wide) for _ in range(3)]
        leaves = [tensor.detach().to(place).requires_grad_() for tensor in (x, *numbers)]
        exact = [tensor.detach().cpu().double().requires_grad_() for tensor in leaves]
        slopes = [tensors[3] if activation == "prelu" else 0.2 for tensors in (leaves, exact)]
        truth = plain(*exact[:3], slopes[1], options)
        there = {name: v.to(place) if isinstance(v, Tensor) else v for name, v in options.items()}
        out = norm_activation(*leaves[:3], slope=slopes[0], **there)
        assert out.dtype == dtype and out.shape == x.shape
        torch.testing.assert_close(out.cpu().double(), truth, **NORM[dtype])
        grad = torch.randn(shape, generator=generator).to(dtype)
        used = 4 if activation == "prelu" else 3
        got = torch.autograd.grad(out, leaves[:used], grad.to(place))
        for mine, its in zip(got, torch.autograd.grad(truth, exact[:used], grad.double()), strict=True):
            assert (mine.cpu() - its).abs().max() <= 2 * NORM_GRADIENT[dtype] * its.abs().max() + 1e-6


@pytest.mark.parametrize("layout", ["dense", "channels_last"])
def test_statistics_keep_their_digits(layout, place, generator):
    """A mean 10,000 times the deviation; a dark border; one bright pixel: where E[x^2] - E[x]^2 has no digits left."""
    x = torch.randn(2, 16, 40, 48, generator=generator)
    far, border, bright = x + 1e4, x * 0.1 + 3000, x.clone()
    border[:, :, :2] = 0
    bright[:, :, 0, 0] = 1e6
    for image in (far, border, bright):
        truth = F.instance_norm(image.double())
        got = norm_activation(lay_out(image, layout).to(place)).cpu()
        assert (got - truth).abs().max() <= 2e-6 * truth.abs().max() + 1.2e-7 * image.abs().max() / image.double().std(
            (2, 3)
        ).min()


def test_constant_images_and_zero_gradients_at_kinks(place):
    """Their variance is exactly 0, so that the result is the bias; at 0 the slopes are those of torch."""
    x = torch.full((2, 8, 9, 10), 0.1).to(place).requires_grad_()
    zero = torch.zeros(8, device=place)
    for activation, slope in (("relu", 0.0), ("leaky_relu", 0.5), ("none", 1.0), ("silu", 0.5)):
        bias = zero.clone().requires_grad_()
        out = norm_activation(x, None, bias, activation=activation, slope=0.5)
        assert out.eq(0).all()
        (grad,) = torch.autograd.grad(out.sum(), bias)
        torch.testing.assert_close(grad.cpu(), torch.full((8,), 2 * 90 * slope))


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_running_statistics_move_as_those_of_torch(norm, place, generator):
    layer = (nn.BatchNorm2d if norm == "batch" else nn.InstanceNorm2d)(
        6, affine=True, track_running_stats=True, momentum=0.3
    )
    means, variances = (getattr(layer, f"running_{name}").clone().to(place) for name in ("mean", "var"))
    for _ in range(3):
        x = torch.randn(3, 6, 5, 7, generator=generator) * 3 + 2
        layer(x)
        norm_activation(x.to(place), norm=norm, running_mean=means, running_var=variances, momentum=0.3)
    torch.testing.assert_close((means.cpu(), variances.cpu()), (layer.running_mean, layer.running_var))
    norm_activation(torch.zeros(0, 6, 5, 7, device=place), norm=norm, running_mean=means, running_var=variances)
    torch.testing.assert_close((means.cpu(), variances.cpu()), (layer.running_mean, layer.running_var))


@needs("threads")
@pytest.mark.parametrize("layout", ["dense", "channels_last"])
@pytest.mark.parametrize("norm", ["instance", "batch", "group"])
def test_the_number_of_threads_changes_nothing(norm, layout, generator):
    x = lay_out(torch.randn(3, 32, 60, 70, generator=generator), layout).requires_grad_()
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        out = norm_activation(x, norm=norm, num_groups=4 if norm == "group" else None, activation="relu")
        results.append((out, *torch.autograd.grad(out.square().sum(), x)))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs("host")
@pytest.mark.parametrize(
    ("theirs", "ours", "activation"),
    [
        (nn.BatchNorm2d(6), uf.nn.BatchNormActivation(6), nn.ReLU()),
        (nn.BatchNorm2d(6, momentum=None), uf.nn.BatchNormActivation(6, momentum=None, activation="silu"), nn.SiLU()),
        (
            nn.BatchNorm2d(6, track_running_stats=False),
            uf.nn.BatchNormActivation(6, track_running_stats=False),
            nn.ReLU(),
        ),
        (nn.InstanceNorm2d(6), uf.nn.InstanceNormActivation(6), nn.LeakyReLU()),
        (
            nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
            uf.nn.InstanceNormActivation(6, affine=True, track_running_stats=True, activation="prelu", num_slopes=6),
            nn.PReLU(6),
        ),
        (nn.GroupNorm(3, 6), uf.nn.GroupNormActivation(3, 6, activation="none"), nn.Identity()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_are_torchs_layers(theirs, ours, activation, generator):
    """In training, then in evaluation; parameters, buffers and their names are the same."""
    theirs, ours = copy.deepcopy(theirs), copy.deepcopy(ours)
    keys = set(ours.state_dict()) - {"slope"}
    assert keys == set(theirs.state_dict())
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, generator=generator)
    ours.load_state_dict(theirs.state_dict(), strict=not isinstance(activation, nn.PReLU))
    for training in (True, True, False):
        theirs.train(training), ours.train(training)
        x = torch.randn(2, 6, 8, 9, generator=generator)
        torch.testing.assert_close(ours(x), activation(theirs(x)), rtol=1e-5, atol=1e-5)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    assert "activation=" in repr(ours) and copy.deepcopy(ours)(x).shape == x.shape


@needs("host")
def test_other_modules_have_no_such_form():
    with pytest.raises(InputTypeError, match="norm is a LayerNorm, expected a batch, instance or group normalisation"):
        uf.nn.norm_activation.normalised(nn.LayerNorm(4), torch.zeros(1, 4, 3, 3))


X, C = torch.zeros(2, 4, 5, 5), torch.zeros(4)


@needs("host")
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((np.zeros((2, 4)),), {}, InputTypeError, "x is a ndarray, expected a torch.Tensor"),
        ((X.long(),), {}, InputTypeError, "x has dtype int64"),
        ((X, torch.zeros(3)), {}, InputError, r"weight has shape \(3,\), expected \(4,\)"),
        ((X, None, C.int()), {}, InputTypeError, "bias has dtype int32"),
        ((X,), {"norm": "layer"}, InputError, "norm is 'layer', expected one of 'instance', 'batch', 'group'"),
        ((X,), {"norm": "group"}, InputError, "num_groups is None for the norm 'group'"),
        ((X,), {"num_groups": 2}, InputError, "num_groups is 2 for the norm 'instance'"),
        ((X,), {"norm": "group", "num_groups": 3}, InputError, "num_groups is 3, expected a divisor of the 4 channels"),
        ((X,), {"norm": "group", "num_groups": 2.0}, InputTypeError, "num_groups is 2.0, expected an integer"),
        ((X,), {"running_mean": C}, InputError, "running_mean and running_var come together"),
        ((X,), {"norm": "group", "num_groups": 2, "running_mean": C, "running_var": C}, InputError, "'group' has none"),
        ((X[..., :1, :1],), {}, InputError, "has one number for each mean and variance of the norm 'instance'"),
        ((X[:1, ..., :1, :1],), {"norm": "batch"}, InputError, "has one number for each mean and variance"),
        ((X,), {"eps": -1.0}, InputError, "eps is -1.0, expected a number of at least 0"),
        ((X,), {"momentum": 1.5}, InputError, "momentum is 1.5, expected a number from 0 to 1"),
        ((X,), {"activation": "gelu"}, InputError, "activation is 'gelu', expected one of 'none', 'relu'"),
        ((X,), {"activation": "prelu"}, InputTypeError, "slope is a float, expected a torch.Tensor"),
        (
            (X,),
            {"activation": "prelu", "slope": torch.zeros(3)},
            InputError,
            r"slope has shape \(3,\), expected \(4,\)",
        ),
        ((X,), {"activation": "leaky_relu", "slope": C}, InputError, "expected a finite number for 'leaky_relu'"),
    ],
)
def test_bad_input(arguments, options, error, message):
    with pytest.raises(error, match=message):
        norm_activation(*arguments, **options)
