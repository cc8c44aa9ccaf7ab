"""The training step as a function of tensors that stay where they are, so that a GPU can replay it as one CUDA graph.

Without a GPU two things stand in for one: a mode that refuses what a capture refuses, and a recording of all that the step
dispatches, which is played back without the Python code of the step, as a graph is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from unet_fast import data
from unet_fast.augment import augmenter
from unet_fast.errors import InputError
from unet_fast.nn.losses import _inputs
from unet_fast.ops import _record
from unet_fast.train import LOSSES, default_config
from unet_fast.train.average import RunningAverage
from unet_fast.train.dataset import prepare
from unet_fast.train.graph import GraphedStep
from unet_fast.train.speed import measure
from unet_fast.train.trainer import Trainer, _channels_last

# each makes the host wait for a GPU, or depend on what it waited for
WAITING = (
    "_local_scalar_dense", "nonzero", "equal", "item", "is_nonzero", "unique", "_unique2", "unique_consecutive",
    "masked_select", "bincount", "repeat_interleave",
)  # fmt: skip
# each brings values from the host's memory: torch.tensor, torch.as_tensor and the like
FROM_HOST = ("lift_fresh", "lift_fresh_copy", "lift")


@pytest.fixture
def stack(rng) -> data.Pair:
    labels = np.kron(rng.integers(0, 2, (3, 6, 6)), np.ones((1, 12, 12), dtype=np.int64)).astype(np.int32)
    images = labels[:, None] + 0.3 * rng.standard_normal((3, 1, 72, 72))
    return data.Pair(images.astype(np.float32), labels, "mask", 2, ["a", "b", "c"])


def trainer(stack: data.Pair, **settings: Any) -> Trainer:
    options = {"steps": 50, "base_channels": 4, "tile": 32, "batch_size": 2, "amp": False, **settings}
    if "resnet" not in str(options.get("model")):
        options.setdefault("depth", 2)
    options["num_classes"] = stack.num_classes
    config = default_config("cpu", **options)
    return Trainer(config, prepare(stack, torch.device("cpu"), balance=config.loss.balance))


@pytest.fixture
def as_on_a_gpu(monkeypatch) -> None:
    """Leave out what is looked at only where a look is free, on the CPU."""
    monkeypatch.setattr(augmenter, "_refuse_nan", lambda lowest: None)
    monkeypatch.setattr(_inputs, "_check_values", lambda *arguments: None)
    monkeypatch.setattr(_record, "is_plain_one", lambda grad: False)


class Refusing(TorchDispatchMode):
    """Raises at an operation that a CUDA graph cannot hold, or that moves values between host and device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITING or name in FROM_HOST:
            raise AssertionError(f"the step calls {func}")
        if name in ("index", "index_put", "index_put_"):
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"the step calls {func} with a mask, whose pixels are counted first"
        devices = {leaf.device for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)}
        assert len(devices) <= 1, f"{func} joins {devices}"
        return func(*args, **(kwargs or {}))


def test_the_refusing_mode_refuses():
    ones = torch.ones(3)
    for waits in (
        lambda: torch.ones(1).item(),
        lambda: ones.nonzero(),
        lambda: torch.tensor([1.0]),
        lambda: ones[ones > 0],
    ):
        with pytest.raises(AssertionError, match="the step calls"), Refusing():
            waits()


@pytest.mark.parametrize("loss", list(LOSSES))
def test_no_step_waits_or_copies_from_the_host(stack, as_on_a_gpu, loss):
    for settings in ({}, {"average_decay": 0.0, "optimizer": "sgd", "w0": 5.0, "image_padding": "zeros"}):
        ours = trainer(stack, loss=loss, **settings)
        ours.train_step()
        with Refusing():
            ours.train_step()


@pytest.mark.parametrize("model", ["unet", "unet-bn", "unet++", "unet3+", "unet-dental", "unet-em", "unet-resnet18"])
def test_no_network_waits_or_copies_from_the_host(stack, as_on_a_gpu, model):
    ours = trainer(stack, model=model, **({} if "resnet" in model else {"depth": 3}))
    ours.train_step()
    with Refusing():
        ours.train_step()


@pytest.mark.parametrize(
    "settings",
    [
        {"quarter_turns": True, "affine": 5.0, "field": "bspline", "grey": True},
        {"field": "bspline_smooth", "elastic_grid": (5, 5), "shift": False},
        {"amp": True},
    ],
)
def test_no_augmentation_waits_or_copies_from_the_host(stack, as_on_a_gpu, settings):
    ours = trainer(stack, **settings)
    ours.train_step()
    with Refusing():
        ours.train_step()


def test_classes_and_ignored_pixels_wait_for_nothing(rng, as_on_a_gpu):
    labels = np.kron(rng.integers(0, 3, (2, 6, 6)), np.ones((1, 12, 12), dtype=np.int64)).astype(np.int32)
    images = rng.standard_normal((2, 1, 72, 72)).astype(np.float32)
    ignored = rng.random(labels.shape) < 0.2
    ours = trainer(data.Pair(images, labels, "classes", 3, ["a", "b"], ignored))
    ours.train_step()
    with Refusing():
        ours.train_step()


def averaged_norms(ours: Trainer) -> Iterator[torch.nn.BatchNorm2d]:
    return (module for module in ours.average.module.modules() if isinstance(module, torch.nn.BatchNorm2d))


def test_statistics_that_stand_are_those_that_were_gathered(stack):
    """Half of a run moves the running statistics; then those of the average stand, and what is trained is what is applied."""
    ours = trainer(stack, steps=8, base_channels=4)
    assert ours.config.optimizer.statistics_until == 0.5
    norm, average = ours.norms[0], next(iter(averaged_norms(ours)))
    seen = []
    for _ in range(8):
        ours.train_step()
        seen.append((norm.running_mean.clone(), norm.running_var.clone(), average.running_mean.clone(), norm.training))
    means, variances, averages, training = zip(*seen, strict=True)
    assert training == (True,) * 4 + (False,) * 4
    assert all(not torch.equal(one, other) for one, other in zip(means[:3], means[1:4], strict=True))
    assert all(torch.equal(mean, averages[3]) for mean in (*means[4:], *averages[4:]))
    assert all(torch.equal(variance, variances[4]) for variance in variances[4:])
    assert not torch.equal(means[3], means[4])
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        ours.model.train()
        for module in ours.norms:
            module.eval()
        torch.testing.assert_close(ours.model(images), ours.model.eval()(images), rtol=1e-3, atol=1e-3)
    taken = trainer(stack, steps=8)
    for _ in range(3):
        taken.train_step()
    assert not torch.equal(taken.norms[0].weight, next(iter(averaged_norms(taken))).weight)
    taken._fix_statistics()  # weights and statistics that belong together
    for value, average_value in zip(
        taken.model.state_dict().values(), taken.average.module.state_dict().values(), strict=True
    ):
        assert torch.equal(value, average_value)
    whole = trainer(stack, steps=8, statistics_until=1.0)
    for _ in range(8):
        whole.train_step()
    assert whole.norms[0].training
    for share in (0.0, 1.5, -1.0):
        with pytest.raises(
            InputError, match="statistics_until is .*expected a part of the budget above 0 and at most 1"
        ):
            default_config("cpu", steps=1, statistics_until=share)


class Recording(TorchDispatchMode):
    """Keeps every operation with the tensors it read and wrote, to do them again without the code that called them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = tree_flatten(func(*args, **kwargs))[0]
            for new, kept in zip(again, tree_flatten(result)[0], strict=True):
                if isinstance(kept, torch.Tensor) and kept.numel() and new.data_ptr() != kept.data_ptr():
                    kept.copy_(new)


def weights(ours: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in ours.state()[0].items() if not name.startswith("log")}


@pytest.mark.parametrize(
    "settings",
    [
        {"w0": 4.0, "balance": True},
        {"optimizer": "sgd", "dropout": 0.3},
        {"model": "unet-bn", "loss": "dice", "schedule": "step"},
        {"model": "unet++", "depth": 3, "loss": "bce"},
        {"amp": True, "w0": 0.0},
    ],
)
def test_replaying_the_step_gives_the_weights_of_the_loop(stack, as_on_a_gpu, settings):
    loop, replayed = trainer(stack, **settings), trainer(stack, **settings)
    torch.manual_seed(5)
    losses = [float(loop.train_step()) for _ in range(8)]
    expected = weights(loop)
    torch.manual_seed(5)
    got = [float(replayed.train_step()) for _ in range(2)]
    recording = Recording()
    replayed.run_step, compute = (lambda: recording_of(recording, compute)), replayed.run_step
    got.append(float(replayed.train_step()))
    replayed.run_step = recording.replay
    got += [float(replayed.train_step()) for _ in range(5)]
    assert got == losses
    result = weights(replayed)
    assert result.keys() == expected.keys()
    assert [name for name in result if not torch.equal(result[name], expected[name])] == []


def recording_of(recording: Recording, compute: Any) -> None:
    with recording:
        compute()


def test_the_average_is_that_of_its_formula(generator):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    average = RunningAverage(net, 0.7)
    expected = None
    for n in range(1, 30):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
            net[1].num_batches_tracked += 3
        average.update(net)
        keep = 0.0 if n == 1 else min(0.7, n / (n + 9))
        current = [parameter.detach().double().clone() for parameter in net.parameters()]
        if expected is None:
            expected = current
        expected = [keep * a + (1 - keep) * c for a, c in zip(expected, current, strict=True)]
        for got, want in zip(average.module.parameters(), expected, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    assert int(average.n_averaged) == 29 and int(average.module[1].num_batches_tracked) == 87


@pytest.mark.parametrize("channels", [1, 2])
def test_tiles_have_the_strides_of_channels_last(channels):
    tiles = torch.randn(2, channels, 6, 8)
    ours = _channels_last(tiles)
    assert torch.equal(ours, tiles) and ours.stride() == (48 * channels, 1, 8 * channels, channels)
    weight = torch.randn(4, channels, 3, 3).to(memory_format=torch.channels_last)
    assert torch.conv2d(ours, weight).is_contiguous(memory_format=torch.channels_last)


def test_losses_are_summed_until_they_are_taken(stack):
    ours = trainer(stack, model="unet++", depth=3, loss="bce")
    assert ours.take_losses() is None
    each = [float(ours.train_step()) for _ in range(4)]
    total, *heads = ours.take_losses()
    assert total == pytest.approx(np.mean(each), rel=1e-6) and len(heads) == 3
    assert ours.take_losses() is None


def test_the_speed_counts_steps_that_are_timed(stack):
    ours = trainer(stack)
    assert measure(ours, 3) > 0 and ours.step == 8


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the step was not captured")


@needs_gpu
@pytest.mark.parametrize("settings", [{"amp": True}, {"optimizer": "sgd", "dropout": 0.3}, {"model": "unet-bn"}])
def test_a_gpu_captures_the_step_and_replays_the_loop(stack, settings):
    config = default_config(
        "cuda", **{"steps": 50, "base_channels": 8, "depth": 2, "padding": "same", "tile": 32, "amp": False, **settings}
    )
    device = torch.device("cuda")

    def weights_after(graph: bool) -> list[torch.Tensor]:
        ours = Trainer(config, prepare(stack, device, balance=config.loss.balance))
        if not graph:
            ours.run_step = ours.compute
        torch.manual_seed(5)
        for _ in range(12):
            ours.train_step()
        assert not graph or (ours.run_step.captured and ours.run_step.reason is None)
        return [parameter.detach().clone() for parameter in ours.evaluated_model().parameters()]

    for got, want in zip(weights_after(True), weights_after(False), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-3)


@needs_gpu
def test_what_waits_runs_eagerly_and_says_why():
    x = torch.ones(3, device="cuda")

    def add_its_sum() -> None:
        x.add_(x.sum().item())

    step = GraphedStep(add_its_sum, torch.device("cuda"), [])
    for _ in range(6):
        step()
    assert not step.captured and "waits for the GPU" in step.reason
    assert float(x[0]) == 4.0**6


@pytest.mark.parametrize(("model", "tile"), [("unet", 48), ("unet3+", 48), ("unet-resnet18", 64)])
def test_weights_that_are_cast_at_once_train_alike(stack, model, tile):
    """As autocast, which casts each where it is used."""
    options = {"model": model, "amp": True, "tile": tile}
    at_once, one_by_one = trainer(stack, **options), trainer(stack, **options)
    assert at_once._call.names
    one_by_one._call = one_by_one.network
    for _ in range(2):
        assert torch.equal(at_once.train_step(), one_by_one.train_step())
    others = one_by_one.model.state_dict()
    assert all(torch.equal(value, others[name]) for name, value in at_once.model.state_dict().items())
