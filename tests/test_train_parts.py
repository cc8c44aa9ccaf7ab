"""Configuration, schedule, data preparation and checkpoints: the parts of a training run."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unet_fast import data, models, recipes
from unet_fast._settings import flat_names, from_flat
from unet_fast.errors import InputError
from unet_fast.train import TrainConfig, default_config, default_validation, hold_out, separate_touching
from unet_fast.train.checkpoint import flatten_optimizer, load_tensors, restore_optimizer, save_tensors
from unet_fast.train.dataset import prepare
from unet_fast.train.loop import _Run
from unet_fast.train.losses import HeadLoss, WeightedCrossEntropy
from unet_fast.train.schedule import learning_rate
from unet_fast.train.settings import Budget
from unet_fast.train.validation import Validation

pytestmark = pytest.mark.core


def config(**changes) -> TrainConfig:
    return default_config("cpu", steps=10, base_channels=4, depth=2, **changes)


def test_config_round_trip(tmp_path):
    written = config(sigma=4.0, data={"images": "a.tif"})
    written.save(tmp_path / "config.json")
    assert TrainConfig.load(tmp_path / "config.json") == written
    assert json.loads((tmp_path / "config.json").read_text())["sigma"] == 4.0


def test_a_config_of_a_version_that_wrote_records_inside_loads(tmp_path):
    written = config(sigma=4.0, learning_rate=0.5, elastic_grid=(4, 5), image_padding="zeros")
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(written)))
    assert TrainConfig.load(tmp_path / "config.json") == written


# what the first versions wrote, line breaks aside
FLAT = """{"model": {"name": "unet-dental", "in_channels": 1, "num_classes": 2, "base_channels": 2, "depth": 2}, "minutes": null,
 "steps": 12, "batch_size": 1, "processes": 1, "tile": 384, "loss": "weighted_cross_entropy", "loss_options": {},
 "head_weights": [1.0, 0.5, 0.25], "encoder_weights": null, "optimizer": "sgd", "learning_rate": 0.0001, "momentum": 0.99,
 "betas": [0.9, 0.999], "weight_decay": 0.0, "schedule": "constant", "decay": 0.1, "decay_steps": 500, "warmup": 0.0,
 "w0": 0.0, "sigma": 5.0, "balance": false, "shift": true, "rotation": 180.0, "quarter_turns": false, "flips": true,
 "affine": 0.0, "elastic_sigma": 10.0, "elastic_grid": [4, 5], "field": "bicubic", "grey": true, "average_decay": 0.0,
 "amp": false, "device": "cpu", "seed": 0, "tta": 1, "best_by": "score", "threshold": 0.5, "border": "zeros",
 "validations": 8, "checkpoint_seconds": 60.0, "checkpoint_steps": 7, "data": {}}"""


def test_a_run_folder_of_the_first_versions_loads(tmp_path):
    (tmp_path / "config.json").write_text(FLAT)
    loaded = TrainConfig.load(tmp_path / "config.json")
    expected = config(
        recipe=recipes.get("dental"), elastic_grid=(4, 5), head_weights=(1.0, 0.5, 0.25), checkpoint_steps=7, amp=False
    )
    assert loaded == expected.changed(steps=12, model={**expected.model, "base_channels": 2})
    assert (loaded.padding, loaded.budget.steps, loaded.checkpoints.steps) == ("zeros", 12, 7)


def test_every_setting_has_one_flat_name():
    names = flat_names(TrainConfig)
    assert len(set(names)) == len(names)
    old, later = set(json.loads(FLAT)) - {"border"} | {"image_padding"}, {"separate", "min_size", "statistics_until"}
    assert old | later == set(names), (
        "the flat names are those that people and old files know, and those of later settings"
    )
    written = config(learning_rate=0.5, loss="focal", loss_options={"gamma": 1.0})
    assert from_flat(TrainConfig, written.flat()) == written
    with pytest.raises(InputError, match="unknown setting colour"):
        written.changed(colour=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, expected a number above 0"),
        ({"sigma": -1.0}, "sigma is -1.0"),
        ({"optimizer": "adamm"}, "'adamm', expected one of 'adam', 'sgd'"),
        ({"schedule": "cosine"}, "expected one of 'polynomial'"),
        ({"tta": 3}, "tta is 3, expected 1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"colour": 1}, "unknown setting colour"),
        ({"minutes": 1.0}, "set exactly one"),
    ],
)
def test_config_rejects(changes, message):
    with pytest.raises(InputError, match=message):
        config(**changes)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": {}}', '{"model": {}, "colour": 1}', "\x00\x01"])
def test_a_foreign_config_is_one_clear_error(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match="config.json"):
        TrainConfig.load(tmp_path / "config.json")


def test_unknown_devices():
    with pytest.raises(InputError, match="'gpu', expected auto"):
        default_config("gpu", steps=1)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="torch finds 0 CUDA devices"):
            default_config("cuda", steps=1)


def test_the_network_of_a_cpu_grows_with_the_budget():
    width = [default_config("cpu", **b).model["base_channels"] for b in ({}, {"minutes": 10.0}, {"steps": 4000})]
    assert width == [32, 32, 32]
    width = [default_config("cpu", **b).model["base_channels"] for b in ({"minutes": 9.9}, {"steps": 3999})]
    assert width == [16, 16]
    small = default_config("cpu", minutes=4.0)
    assert (small.model["norm"], small.optimizer.learning_rate, small.optimizer.statistics_until) == (
        "batch",
        3e-3,
        0.5,
    )
    objects = default_config("cpu", minutes=4.0, kind="instances")
    assert (objects.model["norm"], objects.optimizer.learning_rate, objects.optimizer.statistics_until) == (
        "batch",
        3e-3,
        1.0,
    )
    plain = default_config("cpu", minutes=4.0, norm="none")
    assert (plain.model["norm"], plain.optimizer.learning_rate, plain.optimizer.statistics_until) == (None, 1e-3, 1.0)
    assert default_config("cpu", steps=1, recipe=recipes.get("keras")).model["base_channels"] == 64


def test_what_a_pixel_weighs_unless_it_is_said():
    def weighing(**options):
        loss = default_config("cpu", minutes=4.0, **options).loss
        return loss.w0, loss.balance

    alike = (0.0, False)
    assert [weighing(kind=kind) for kind in ("mask", "classes", None)] == [alike] * 3
    assert weighing(kind="mask", model="unet++") == alike
    assert weighing(kind="mask", w0=4.0) == (4.0, False)
    assert weighing(kind="mask", balance=True) == (0.0, True)
    assert weighing(kind="instances") == (4.0, False)  # borders of objects that touch
    assert weighing(kind="instances", separate="ridge") == weighing(kind="classes", num_classes=3) == (4.0, True)
    assert weighing(kind="mask", recipe=recipes.get("paper-2015")) == (10.0, True)


def test_images_that_a_prediction_takes_whole_are_normalised_one_by_one():
    def normalised(side, **options):
        config = default_config("cpu", minutes=4.0, image_side=side, **options)
        return config.model["norm"], config.optimizer.learning_rate, config.optimizer.statistics_until

    assert normalised(512, kind="mask") == normalised(64) == ("instance", 3e-3, 1.0)
    assert normalised(513, kind="mask") == normalised(None, kind="mask") == ("batch", 3e-3, 0.5)
    assert normalised(512, kind="mask", norm="batch") == ("batch", 3e-3, 0.5)
    assert normalised(512, kind="classes", num_classes=3) == ("batch", 3e-3, 0.5)
    assert normalised(512, kind="instances") == ("batch", 3e-3, 1.0)
    keras = recipes.get("keras")
    assert default_config("cpu", steps=1, image_side=512, recipe=keras) == default_config("cpu", steps=1, recipe=keras)


def test_schedules():
    base = config(learning_rate=2.0, warmup=0.1).optimizer
    assert learning_rate(base, 0.05) == pytest.approx(2.0 * 0.95**0.9 * 0.5)
    assert learning_rate(base, 1.0) == 0.0
    step = dataclasses.replace(base, schedule="step", warmup=0.0)
    assert [learning_rate(step, t) for t in (0, 0.49, 0.5, 0.8)] == pytest.approx([2, 2, 0.2, 0.02])
    constant = dataclasses.replace(base, schedule="constant", warmup=0.0)
    assert {learning_rate(constant, t) for t in (0.0, 0.5, 0.99)} == {2.0}


def test_separated_instances_no_longer_touch(rng):
    coarse = rng.integers(0, 5, (3, 6, 7))
    labels = np.kron(coarse, np.ones((1, 5, 5), dtype=np.int64))
    cut = separate_touching(labels)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        a = cut[:, dy:, max(dx, 0) : cut.shape[2] + min(dx, 0)]
        b = cut[:, : cut.shape[1] - dy, max(-dx, 0) : cut.shape[2] - max(dx, 0)]
        assert not np.any((a > 0) & (b > 0) & (a != b))
    # only pixels beside another instance are cut: 3x3 cores of all 5x5 squares stay
    core = np.zeros((5, 5), dtype=bool)
    core[1:4, 1:4] = True
    kept = np.kron(np.ones_like(coarse, dtype=bool), core[None])
    assert np.array_equal(cut[kept], labels[kept])


def pair(rng, kind="mask", n=4, classes=2) -> data.Pair:
    labels = rng.integers(0, classes, (n, 12, 10)).astype(np.int32)
    return data.Pair(rng.random((n, 1, 12, 10), dtype=np.float32), labels, kind, classes, [str(i) for i in range(n)])


def test_prepared_data(rng):
    stack = pair(rng)
    ready = prepare(stack, torch.device("cpu"), balance=True)
    images, _ = ready.take(torch.arange(4))
    torch.testing.assert_close(images.mean((2, 3)), torch.zeros(4, 1), atol=1e-5, rtol=0)
    classes, instances = ready.split(ready.maps)
    # balanced: every class has the same summed weight, and the mean weight is 1
    weights = ready.class_weights[classes]
    assert weights.mean() == pytest.approx(1.0, abs=1e-5)
    assert weights[classes == 0].sum() == pytest.approx(float(weights[classes == 1].sum()), rel=1e-4)
    assert torch.equal(classes > 0, instances > 0)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float16", "float32", "float64"]
)
def test_images_are_kept_as_stored_and_normalised_on_the_way(rng, dtype):
    stack = pair(rng)
    low, high = (-3, 3) if dtype.startswith("float") else (np.iinfo(dtype).min, min(np.iinfo(dtype).max, 2**24))
    stack.images = rng.uniform(low, high, (4, 2, 12, 10)).astype(dtype)
    stack.images[1] = 7  # constant: 0 after normalisation
    ready = prepare(stack, torch.device("cpu"), balance=True)
    assert ready.images.element_size() <= max(2, min(4, np.dtype(dtype).itemsize))
    images, maps = ready.take(torch.tensor([3, 1, 0]))
    np.testing.assert_allclose(images.numpy(), data.normalize(stack.images)[[3, 1, 0]], rtol=1e-4, atol=1e-4)
    assert not images[1].any() and torch.equal(maps[0], ready.maps[0][[3, 1, 0]])


@pytest.mark.parametrize(("largest", "dtype"), [(255, torch.uint8), (256, torch.int16), (40_000, torch.int32)])
def test_instances_are_kept_in_narrow_integers(rng, largest, dtype):
    labels = np.zeros((3, 30, 30), np.int32)
    labels[0, 3:9, 3:9], labels[1, 4:9, 2:9] = 5, largest
    ready = prepare(
        data.Pair(rng.random((3, 1, 30, 30)), labels, "instances", 2, list("abc")), torch.device("cpu"), balance=True
    )
    assert ready.maps[0].dtype == dtype and torch.equal(ready.maps[0].int(), torch.from_numpy(labels))


def test_prepared_classes(rng):
    stack = pair(rng, "classes", classes=3)
    ready = prepare(stack, torch.device("cpu"), balance=False)
    classes, instances = ready.split(ready.maps)
    assert np.array_equal(classes.numpy(), stack.labels)
    assert ready.class_weights.tolist() == [1, 1, 1]
    assert instances.max() > 2
    stack.labels[stack.labels == 2] = 0
    with pytest.raises(InputError, match="class 2 does not occur"):
        prepare(stack, torch.device("cpu"), balance=True)


def test_held_out_slices(rng):
    assert default_validation(25) == [20, 21, 22, 23, 24]
    assert default_validation(4) == []
    fitting, validation = hold_out(pair(rng), [1, 3])
    assert (fitting.names, validation.names) == (["0", "2"], ["1", "3"])
    assert hold_out(pair(rng), [])[1] is None
    everything, _ = hold_out(pair(rng), [0, 1, 2, 3])
    with pytest.raises(InputError, match="no training images"):
        prepare(everything, torch.device("cpu"), balance=True)


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_optimizer_state_survives_the_file(tmp_path, name, generator):
    def make():
        parameters = [torch.zeros(3, 2, requires_grad=True), torch.ones(4, requires_grad=True)]
        options = {"momentum": 0.9} if name == "SGD" else {}
        return parameters, getattr(torch.optim, name)(parameters, 0.1, **options)

    gradients = [[torch.rand(p, generator=generator) for p in ((3, 2), (4,))] for _ in range(4)]

    def steps(parameters, optimizer, some):
        for both in some:
            for parameter, gradient in zip(parameters, both, strict=True):
                parameter.grad = gradient
            optimizer.step()

    straight, optimizer = make()
    steps(straight, optimizer, gradients)
    first, optimizer = make()
    steps(first, optimizer, gradients[:2])
    save_tensors(tmp_path / "c.safetensors", flatten_optimizer(optimizer), {})
    second, optimizer = make()
    with torch.no_grad():
        for a, b in zip(second, first, strict=True):
            a.copy_(b)
    restore_optimizer(optimizer, load_tensors(tmp_path / "c.safetensors")[0])
    steps(second, optimizer, gradients[2:])
    for a, b in zip(second, straight, strict=True):
        assert torch.equal(a, b)


def test_damaged_checkpoints(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(InputError, match="there is no file"):
        load_tensors(path)
    save_tensors(path, {"a": torch.arange(1000.0)}, {"step": 1})
    whole = path.read_bytes()
    for broken in (whole[:-100], whole[:7], b"", b"PK\x03\x04" + whole, json.dumps({"a": 1}).encode()):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="damaged or was not written"):
            load_tensors(path)


def test_the_loss_of_a_network_is_that_of_its_logits(generator):
    """However the two are joined: in a pass of their own, or through the logits, several heads included."""
    images = torch.randn(2, 1, 16, 16, generator=generator)
    target = torch.randint(0, 2, (2, 16, 16), generator=generator)
    weight = torch.rand(2, 16, 16, generator=generator)
    small = {"base_channels": 4, "depth": 2}
    for network in (
        models.create("unet", padding="same", fused=True, **small),
        models.create("unet", padding="same", fused=False, **small),
        models.create("unet", padding="same", num_classes=1, **small),
        models.create("unet-dental", num_classes=2, **small),
        torch.nn.Conv2d(1, 2, 1),
    ):
        loss = HeadLoss(WeightedCrossEntropy())
        expected = loss(network(images), target, weight)
        heads = loss.head_losses
        torch.testing.assert_close(loss.of_network(network, images, target, weight), expected)
        torch.testing.assert_close(loss.head_losses, heads)
    with pytest.raises(InputError, match="2 entries, but this network has one head"):
        HeadLoss(WeightedCrossEntropy(), (1.0, 1.0)).of_network(
            models.create("unet", padding="same", **small), images, target, weight
        )


def test_by_what_the_best_network_is_chosen():
    def score(**changes):
        return Validation(**{"loss": 0.2, "pixel_error": 0.05, "rand_error": 0.1, "dice": 0.95, **changes}).criterion

    # a gap in one line of a mask moves the Rand error by hundredths, and must not choose the weights
    assert score(pixel_error=0.046, rand_error=0.2) < score(pixel_error=0.05, rand_error=0.1)
    objects = {"average_precision": 0.8, "mean_average_precision": 0.6}
    assert score(**objects) == pytest.approx(0.075)
    assert score(**objects, by_cores=True) == pytest.approx(0.4)
    assert score(rand_error=None) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("minutes", "validated", "last", "seconds", "affordable"),
    [
        (6.0, 0.0, 0.0, 45.0, True),  # the first one shows what they cost
        (6.0, 4.0, 4.0, 90.0, False),  # 8 s of 90
        (6.0, 4.0, 4.0, 270.0, True),  # 8 s of 270
        (None, 40.0, 4.0, 90.0, True),  # a budget in steps pays for all
    ],
)
def test_validations_take_little_of_a_budget_in_minutes(minutes, validated, last, seconds, affordable):
    budget = Budget(minutes, None if minutes else 10)
    run = SimpleNamespace(
        config=SimpleNamespace(budget=budget),
        trainer=SimpleNamespace(seconds=seconds, reserved=last),
        _validated=validated,
    )
    assert _Run._affordable(run) is affordable
