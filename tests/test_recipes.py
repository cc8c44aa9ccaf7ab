"""Recipes, losses by name, networks with several heads or one channel, schedules, and what they need of the others."""

from __future__ import annotations

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

from tests.test_cli import run
from unet_fast import cli, data, models, recipes
from unet_fast.augment import Augmenter
from unet_fast.augment.parameters import draw_affine
from unet_fast.data import synthetic
from unet_fast.errors import InputError
from unet_fast.nn import losses
from unet_fast.predict import OverlapTile, foreground_instances
from unet_fast.train import LOSSES, TrainConfig, default_config, load_model, steps_for, train
from unet_fast.train.checkpoint import load_tensors
from unet_fast.train.dataset import prepare
from unet_fast.train.losses import create_loss, logits_of
from unet_fast.train.schedule import learning_rate
from unet_fast.train.trainer import Trainer


@pytest.fixture(scope="module")
def pair() -> data.Pair:
    images, instances = synthetic.nuclei(6, size=(64, 64), seed=5)
    return data.Pair(images[:, None].astype(np.float32), instances, "instances", 2, [str(i) for i in range(6)])


def tiny(device: str = "cpu", **settings) -> TrainConfig:
    depth = {} if "resnet" in str(settings.get("model", getattr(settings.get("recipe"), "model", ""))) else {"depth": 2}
    return default_config(device, **{"steps": 3, "base_channels": 2, "amp": False, "tile": 32, **depth, **settings})


def loss_of(config: TrainConfig, counts: tuple[float, ...] = (300.0, 100.0)) -> torch.nn.Module:
    return create_loss(config.loss, torch.tensor(counts), config.model, config.tile)


def learn_by_heart(trainer: Trainer) -> None:
    """Every step sees the same batch, so that the loss must fall."""
    batch = trainer.batch()
    trainer.batch = lambda: batch  # type: ignore[method-assign]


@pytest.mark.usefixtures("plain_pictures")
@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_runs_end_to_end(pair, tmp_path, name):
    recipe = recipes.get(name)
    config = tiny(recipe=recipe, validations=1, tile=36 if name == "paper-2015" else 32)
    assert config.model["name"] == recipe.model
    for field in ("loss", "optimizer", "learning_rate", "schedule", "batch_size", "w0", "best_by", "tta", "threshold"):
        assert config.flat()[field] == recipe.settings()[field]
    validation, test = recipe.split_slices(len(pair))
    rest = [index for index in range(len(pair)) if index not in (*validation, *test)]
    summary = train(config, pair.select(rest), pair.select(validation), tmp_path / "run", progress=False)
    assert summary.steps == 3 and math.isfinite(summary.loss)
    model, config = load_model(tmp_path / "run")
    assert config.threshold is not None and 0 <= config.threshold <= 1
    result = OverlapTile(model, tile=64, tta=config.tta, padding=config.padding)(data.normalize(pair.images[:1]))
    assert result.shape == (1, model.num_classes, 64, 64) and np.isfinite(result).all()


def test_recipes_say_what_the_sources_say():
    em = recipes.get("em")
    rates = em.optimizer
    assert (rates.learning_rate, rates.betas, rates.decay, rates.decay_steps) == (3e-4, (0.99, 0.999), 0.99, 500)
    assert (em.batch_size, em.epochs, em.tiles_per_epoch, em.best_by) == (3, 24, 3360, "loss")
    assert tuple(map(len, em.split_slices(30))) == (5, 5)
    assert steps_for(em.epochs, em.tiles_per_epoch, em.batch_size) == 24 * 1120
    paper = default_config("cpu", steps=1, recipe=recipes.get("paper-2015"))
    assert sum(p.numel() for p in models.create(**paper.model).parameters()) == 31_030_658
    assert (paper.optimizer.name, paper.optimizer.momentum, paper.batch_size) == ("sgd", 0.99, 1)
    assert (paper.loss.w0, paper.tile) == (10.0, 388)
    assert models.create(**default_config("cpu", steps=1, recipe=em).model).num_classes == 1
    assert recipes.get("unet3+").settings()["loss"] == "focal_ms_ssim_iou"
    assert default_config("cpu", steps=1, recipe=em, num_classes=3).num_classes == 3
    with pytest.raises(InputError, match="recipe is 'emm', expected one of 'paper-2015', 'em'"):
        recipes.get("emm")


@pytest.mark.parametrize("count", [1, 2, 3, 5, 30])
def test_splits_leave_something_to_train_on(count):
    for recipe in recipes.RECIPES:
        validation, test = recipe.split_slices(count)
        assert len({*validation, *test}) == len(validation) + len(test) < count
        assert sorted(validation + test) == list(range(count - len(validation + test), count))


def test_settings_given_win_over_the_recipe():
    config = default_config("cpu", steps=1, recipe=recipes.get("em"), learning_rate=0.5, loss="dice", base_channels=4)
    assert (config.optimizer.learning_rate, config.loss.name) == (0.5, "dice")
    assert (config.batch_size, config.model["base_channels"]) == (3, 4)
    other = default_config("cpu", steps=1, recipe=recipes.get("em"), model="unet-bn")
    assert (other.model["name"], other.model["base_channels"], other.loss.name) == (
        "unet-bn",
        64,
        "inverse_frequency_bce",
    )
    # weights from a file fit the full width, which a CPU gets by half otherwise
    halved, whole = (default_config("cpu", steps=1, model="unet-resnet18", encoder_weights=w) for w in (None, "r.pth"))
    assert (halved.model["base_channels"], whole.model["base_channels"]) == (32, 64)


@pytest.mark.parametrize("model", ["unet", "unet-bn"])
@pytest.mark.parametrize("loss", list(LOSSES))
def test_every_loss_trains_one_channel_and_two(pair, loss, model):
    config = tiny(model=model, loss=loss, steps=12, learning_rate=1e-2, schedule="constant", warmup=0.0, grey=False)
    assert config.num_classes == (1 if model == "unet-bn" else 2)
    trainer = Trainer(config, prepare(pair, torch.device("cpu"), balance=config.loss.balance))
    learn_by_heart(trainer)
    values = [float(trainer.train_step()) for _ in range(12)]
    assert all(map(math.isfinite, values)) and min(values[-3:]) < values[0]


@pytest.mark.parametrize("name", ["unet++", "unet3+", "unet-dental"])
def test_all_heads_train(pair, name):
    options = {"classification": True} if name == "unet3+" else {}
    config = tiny(model=name, loss="bce_dice", depth=3, learning_rate=1e-2, schedule="constant", warmup=0.0)
    config = dataclasses.replace(config, model={**config.model, **options})
    trainer = Trainer(config, prepare(pair, torch.device("cpu"), balance=False))
    learn_by_heart(trainer)
    history = []
    for _ in range(20):
        trainer.train_step()
        assert trainer.loss.head_losses is not None
        history.append(trainer.loss.head_losses)
    assert len(history[0]) == {"unet++": 3, "unet3+": 4, "unet-dental": 3}[name]
    assert (torch.stack(history[-4:]).mean(0) < history[0]).all()
    if name == "unet3+":
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainer.model.classify.parameters())


@pytest.mark.usefixtures("real_pictures")
@pytest.mark.parametrize("name", ["unet++", "unet3+", "unet-dental"])
def test_the_log_shows_that_every_head_learns(pair, tmp_path, name):
    config = tiny(
        model=name, loss="bce_dice", depth=3, steps=40, learning_rate=1e-2, schedule="constant", base_channels=4,
        validations=1,
    )  # fmt: skip
    train(config, pair, None, tmp_path / "run", progress=False)
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    heads = [key for key in rows[0] if key.startswith("loss_head_")]
    assert heads == [f"loss_head_{n}" for n in range(1, {"unet++": 3, "unet3+": 4, "unet-dental": 3}[name] + 1)]
    for row in rows:
        assert sum(float(row[head]) for head in heads) == pytest.approx(float(row["loss"]), abs=1e-4)
    for head in heads:
        values = np.array([float(row[head]) for row in rows])
        assert values[-10:].mean() < values[:10].mean() - 0.02, f"{head} does not fall: {values}"
    picture = np.asarray(Image.open(tmp_path / "run" / "loss.png"))
    assert picture.shape[0] == 340 + 250 + 120 + 70, "a panel for the heads"


@pytest.mark.usefixtures("plain_pictures")
def test_a_run_with_one_head_logs_no_heads(pair, tmp_path):
    train(tiny(), pair, None, tmp_path / "run", progress=False)
    assert "head" not in (tmp_path / "run" / "metrics.csv").read_text()


def test_head_weights(pair):
    config = tiny(model="unet++", loss="bce", head_weights=(1.0, 0.0))
    trainer = Trainer(config, prepare(pair, torch.device("cpu"), balance=False))
    total = trainer.train_step()
    assert trainer.loss.head_losses is not None
    assert float(total) == pytest.approx(float(trainer.loss.head_losses[0]))
    single = Trainer(tiny(head_weights=(1.0, 1.0)), prepare(pair, torch.device("cpu"), balance=False))
    with pytest.raises(InputError, match="head_weights has 2 entries, but this network has one head"):
        single.train_step()


def test_the_loss_gets_frequencies_scales_and_options(generator):
    logits, target = torch.randn(2, 1, 32, 32, generator=generator), torch.ones(2, 32, 32, dtype=torch.long)
    ours = loss_of(tiny(loss="inverse_frequency_bce"))(logits, target)
    assert float(ours) == pytest.approx(2 * float(losses.bce_with_logits_loss(logits, target)), rel=1e-5)
    assert loss_of(tiny(loss="ms_ssim", tile=48)).options["scales"] == 3  # type: ignore[index]
    # the coarsest head has a quarter of the side
    coarse = loss_of(tiny(model="unet-dental", depth=3, loss="ms_ssim", tile=96))
    assert coarse.options["scales"] == 2  # type: ignore[index]
    assert loss_of(tiny(loss="focal", loss_options={"gamma": 0.5})).options["gamma"] == 0.5  # type: ignore[index]
    with pytest.raises(InputError, match="loss 'focal' has no option 'gama'; its options are gamma"):
        loss_of(tiny(loss="focal", loss_options={"gama": 1}))
    with pytest.raises(InputError, match="loss is 'dicee', expected one of 'weighted_cross_entropy'"):
        tiny(loss="dicee")
    for channels in (1, 3):
        probabilities = torch.rand(2, channels, 4, 4, generator=generator)
        probabilities = probabilities / (probabilities.sum(1, keepdim=True) if channels > 1 else 1)
        again = logits_of(probabilities)
        again = again.sigmoid() if channels == 1 else again.softmax(1)
        torch.testing.assert_close(again, probabilities, rtol=1e-4, atol=1e-6)


def test_schedules_of_the_recipes():
    em = tiny(recipe=recipes.get("em"), learning_rate=1.0)
    assert [learning_rate(em.optimizer, 0.3, step) for step in (0, 499, 500, 1000)] == pytest.approx(
        [1, 1, 0.99, 0.99**2]
    )
    bn = tiny(recipe=recipes.get("batch-norm"), learning_rate=1.0)
    assert [learning_rate(bn.optimizer, t) for t in (0, 0.49, 0.5, 0.8)] == pytest.approx([1, 1, 0.75, 0.75**2])
    assert em.changed() == em and em.changed(learning_rate=2.0) != em


@pytest.mark.usefixtures("plain_pictures")
@pytest.mark.parametrize("best_by", ["score", "loss"])
def test_the_best_network_is_the_one_asked_for(pair, tmp_path, best_by):
    config = tiny(steps=8, validations=8, learning_rate=3e-2, best_by=best_by, average_decay=0.0, schedule="constant")
    train(config, pair.select([0, 1, 2]), pair.select([3]), tmp_path / "run", progress=False)
    rows = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()]
    table = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    scored = [row for row in table if row["val_loss"]]
    if best_by == "loss":
        best = min(scored, key=lambda row: float(row["val_loss"]))
    else:
        best = min(scored, key=lambda row: float(row["val_pixel_error"]))
    state = load_tensors(tmp_path / "run" / "model.safetensors")[1]
    assert state["step"] == int(best["step"])


def test_quarter_turns_are_the_eight_symmetries(generator, rng):
    image = torch.from_numpy(rng.random((1, 1, 9, 9), dtype=np.float32))
    labels = torch.from_numpy(rng.integers(0, 9, (1, 9, 9)))
    augmenter = Augmenter(9, shift=False, rotation=0.0, quarter_turns=True, elastic_sigma=0.0, grey=False)
    turned, maps = augmenter.sample(image, labels, 200, generator=generator)
    versions = [torch.rot90(side, k, (-2, -1)) for side in (image[0, 0], image[0, 0].flip(-1)) for k in range(4)]
    label_versions = [torch.rot90(side, k, (-2, -1)) for side in (labels[0], labels[0].flip(-1)) for k in range(4)]
    seen = set()
    for tile, each in zip(turned[:, 0], maps, strict=True):
        matching = [i for i, version in enumerate(versions) if torch.equal(tile, version)]
        assert len(matching) == 1 and torch.equal(each, label_versions[matching[0]])
        seen.add(matching[0])
    assert seen == set(range(8))


def test_the_affine_map_moves_the_three_points(generator):
    size, distance = (50, 80), 7.0
    linear, offset = draw_affine(64, size, distance, device=torch.device("cpu"), generator=generator)
    s = 50 / 3
    for point in ((s, s), (s, -s), (-s, -s)):
        moved = linear @ torch.tensor(point) + offset
        assert moved.abs().max() <= distance + 1e-4
        assert moved.abs().max() > 0.8 * distance and moved.mean().abs() < 0.2 * distance
    # the whole augmentation against SciPy with the same matrix
    augmenter = Augmenter(50, shift=False, rotation=0, flips=False, elastic_sigma=0, grey=False, affine=distance)
    image = ndimage.gaussian_filter(np.random.default_rng(0).random((50, 50)), 2).astype(np.float32)
    state = generator.get_state()
    tile, _ = augmenter(
        torch.from_numpy(image)[None, None], torch.zeros(1, 50, 50, dtype=torch.long), generator=generator
    )
    generator.set_state(state)
    torch.rand(1, generator=generator)  # the angle
    linear, offset = draw_affine(1, (50, 50), distance, device=torch.device("cpu"), generator=generator)
    matrix = np.eye(2) + linear[0].numpy()
    centre = np.array([24.5, 24.5])
    expected = ndimage.affine_transform(
        image, matrix, centre + offset[0].numpy() - matrix @ centre, order=1, mode="mirror"
    )
    np.testing.assert_allclose(tile[0, 0].numpy(), expected, atol=1e-4)
    with pytest.raises(InputError, match="affine is -1"):
        Augmenter(8, affine=-1)


def test_seven_versions_are_seven_of_the_eight(rng, pair):
    model = models.create("unet", base_channels=2, depth=1, padding="same").eval()
    image = rng.standard_normal((1, 1, 16, 16)).astype(np.float32)
    single = OverlapTile(model, tile=16)
    parts = []
    for turns in range(7):
        turned = np.rot90(image, turns % 4, (-2, -1))
        turned = turned[..., ::-1] if turns >= 4 else turned
        back = single(np.ascontiguousarray(turned))
        back = back[..., ::-1] if turns >= 4 else back
        parts.append(np.rot90(back, -(turns % 4), (-2, -1)))
    seven = OverlapTile(model, tile=16, tta=7)(image)
    np.testing.assert_allclose(seven, np.mean(parts, axis=0), atol=1e-5)


def test_instances_are_the_large_components(rng):
    probability = ndimage.gaussian_filter(rng.random((60, 50)), 1.5)
    threshold = float(np.quantile(probability, 0.7))
    ours = foreground_instances(probability, threshold=threshold, min_size=12)
    labels, count = ndimage.label(probability > threshold)
    large = [number for number in range(1, count + 1) if (labels == number).sum() >= 12]
    assert 0 < len(large) < count
    np.testing.assert_array_equal(ours, sum((n + 1) * (labels == number) for n, number in enumerate(large)))
    assert foreground_instances(np.zeros((4, 5))).max() == 0
    with pytest.raises(InputError, match="threshold is 2"):
        foreground_instances(probability, threshold=2)


def test_the_command_line_trains_a_recipe_and_predicts_instances(tmp_path):
    images, instances = synthetic.nuclei(5, size=(64, 64), seed=2)
    for number in range(5):
        data.write_stack(tmp_path / "set" / "01" / f"t{number:03d}.tif", images[number])
        data.write_stack(
            tmp_path / "set" / "01_ST" / "SEG" / f"man_seg{number:03d}.tif", instances[number].astype("uint16")
        )
    out = tmp_path / "run"
    said = run("train", "--data", tmp_path / "set", "--out", out, "--recipe", "keras", "--epochs", "1",
               "--base-channels", "2", "--depth", "2", "--tile", "32", "--device", "cpu")  # fmt: skip
    assert "Cell Tracking Challenge: 5 images of 64x64 px" in said and "2 steps" in said
    config = json.loads((out / "config.json").read_text())
    assert (config["batch_size"], config["threshold"], config["data"]["validation_slices"]) == (2, None, [4])
    run("predict", out, "--images", tmp_path / "set" / "01", "--out", tmp_path / "i.tif", "--output", "instances",
        "--min-size", "5", "--threshold", "0.3", "--tta", "7", "--device", "cpu")  # fmt: skip
    run(
        "predict",
        out,
        "--images",
        tmp_path / "set" / "01",
        "--out",
        tmp_path / "p.tif",
        "--tta",
        "7",
        "--device",
        "cpu",
    )
    found, probability = tifffile.imread(tmp_path / "i.tif"), tifffile.imread(tmp_path / "p.tif")
    assert found.dtype == np.uint16
    for page, expected in zip(found, probability, strict=True):
        np.testing.assert_array_equal(page, foreground_instances(expected, threshold=0.3, min_size=5))
    error = run("train", "--data", tmp_path / "run", "--out", tmp_path / "x", fails=True)
    assert "holds no labelled images in a known layout" in error
    for arguments, message in (
        ((), "no training data: give --data FOLDER"),
        (("--data", tmp_path / "set", "--images", "a.tif"), "give --data, or both of the others"),
        (("--data", tmp_path / "set", "--val", "sequence:07"), "there is no sequence '07'"),
        (("--data", tmp_path / "set", "--epochs", "1", "--steps", "1"), "set one budget"),
        (("--data", tmp_path / "set", "--recipe", "kera"), "recipe is 'kera'"),
        (("--data", tmp_path / "set", "--model", "vnet"), "model is 'vnet', expected one of 'unet'"),
    ):
        assert message in run("train", "--out", tmp_path / "y", *arguments, fails=True)


def test_recipes_are_listed():
    said = run("recipes")
    assert all(name in said for name in recipes.names())
    assert "decay_steps: 500" in run("recipes", "em")
    for verb in ("recipes", "compare"):
        done = CliRunner().invoke(cli.app, [verb, "--help"], env={"COLUMNS": "200"})
        assert done.exit_code == 0 and f"Example: unet-fast {verb}" in done.output
