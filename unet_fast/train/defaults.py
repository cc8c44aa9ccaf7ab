"""The settings of a run that nobody has to name: those that suit a network, a recipe, a device and a budget."""

from __future__ import annotations

import math
from typing import Any

import torch

from unet_fast import models
from unet_fast._settings import flat_names, from_flat
from unet_fast.data.cores import NUM_CLASSES
from unet_fast.errors import InputError
from unet_fast.models.unet import DOWNSAMPLES
from unet_fast.train.config import TrainConfig, fast_bfloat16, precision_reason, resolve_device
from unet_fast.train.losses import UNWEIGHTED, Loss
from unet_fast.train.prediction import SMALLEST_TILE
from unet_fast.train.recipe import Recipe

NETWORK_OPTIONS = ("base_channels", "depth", "padding", "norm", "dropout", "downsample")  # that have a default here

_SMALLEST_RADIUS = 7.0  # pixels of the network's own resolution
_COARSE_TILE = 128  # likewise
_STATISTICS_UNTIL = 0.5  # where no objects are numbered, see docs/train.md
_SPREAD_BY_IMAGE = 0.5  # of grey values, see docs/instances.md, as is the threshold
_THRESHOLD_OF_OBJECTS = 0.4
# of a CPU: with less, half the width learns more, because it does three steps in the time of one
_WIDE_MINUTES, _WIDE_STEPS = 10.0, 4000


def default_config(
    device: str,
    *,
    model: str | None = None,
    in_channels: int = 1,
    num_classes: int = 2,
    minutes: float | None = None,
    steps: int | None = None,
    base_channels: int | None = None,
    depth: int | None = None,
    padding: str | None = None,
    norm: str | None = None,
    dropout: float | None = None,
    downsample: int | None = None,
    recipe: Recipe | None = None,
    kind: str | None = None,
    object_radius: float | None = None,
    grey_spread: float | None = None,
    image_side: int | None = None,
    **overrides: Any,
) -> TrainConfig:
    """The record that suits ``device`` and the budget; every keyword that is not None overrides its default.

    A GPU gets the paper's network (64 base channels, depth 4, valid convolutions, 572 -> 388 tiles). A CPU gets half its
    width, or a quarter for less than 10 minutes or 4,000 steps, one level less, and same padding: a valid network of
    depth 4 computes (380 / 196)^2 = 3.8 times the pixels that it is scored on, which same padding spends on more steps. The
    context that same padding lacks at the rim of a tile is there again at prediction, whose tiles overlap by the receptive
    field. Its convolutions are followed by batch normalisation, which stands a learning rate of 3e-3 in place of 1e-3. Where
    the objects are large it works at a coarser resolution, see :func:`unet_fast.train.defaults.downsampling`, on tiles of 128 px of that.
    docs/train.md says how these were chosen.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        model: a name of ``unet_fast.models.list()``; None: that of the recipe, or ``unet``. Other networks than
            ``unet`` keep the defaults of their class, at half their width on a CPU unless encoder weights are given.
        in_channels, num_classes: of the data. A network that its source reads through a sigmoid gets one output channel
            for two classes.
        minutes, steps: the budget, one of them; None: 30 minutes on a GPU, 10 on a CPU.
        base_channels, depth, padding, norm, dropout, downsample: options of the network; "none" as ``norm`` for no normalisation.
        recipe: settings of a system of the literature, which take the place of the defaults, full width included.
        kind: of the labels: "mask", "classes" or "instances". A network that learns from instances, and by no recipe, learns
            rims and cores (``separate="cores"``) with all classes weighted alike, so that touching objects come apart and keep
            their size; it has three output channels. On a CPU two classes that number no objects are learnt with every pixel weighing
            the same, so that a probability of 0.5 is the threshold of fewest wrong pixels; see docs/train.md.
        object_radius: the median radius of the objects in pixels, see :func:`object_radius`; None: not known.
        grey_spread: how far the images differ in their grey values, see :func:`grey_spread`; None: not known. On a CPU objects in
            images that differ by more than 0.5 are learnt with instance normalisation in place of batch normalisation.
        image_side: the longest side of the images in pixels; None: not known. On a CPU two classes that number no objects are learnt
            with instance normalisation where it is at most 512, so that prediction takes such an image in one piece.
        overrides: settings under their flat names: ``learning_rate``, ``loss``, ``w0``, ``elastic_sigma``, ``image_padding``, ...; see
            :class:`TrainConfig`, whose records inside one another they belong to.

    Raises:
        InputError: an unknown device, network, option or setting; a value out of range.
    """
    target = resolve_device(device)
    gpu = target.type == "cuda"
    if minutes is None and steps is None:
        minutes = 30.0 if gpu else 10.0
    given = {name: value for name, value in overrides.items() if value is not None}
    unknown = sorted(set(given) - set(flat_names(TrainConfig)))
    if unknown:
        raise InputError(f"unknown setting {', '.join(unknown)}")
    from_recipe = {} if recipe is None else recipe.settings()
    name = model or (recipe.model if recipe is not None else "unet")
    separate = given.setdefault("separate", "cores" if kind == "instances" and recipe is None else "ridge")
    coarser = downsampling(object_radius) if separate == "cores" else 1  # a ridge is a pixel or two wide
    wide = minutes >= _WIDE_MINUTES if minutes is not None else steps is not None and steps >= _WIDE_STEPS
    by_pixel = not gpu and recipe is None and separate == "ridge" and kind != "instances" and num_classes == 2
    differing = separate == "cores" and grey_spread is not None and grey_spread > _SPREAD_BY_IMAGE
    by_image = differing or (by_pixel and image_side is not None and image_side <= SMALLEST_TILE)
    # weights of an encoder fit its full width only
    options = _model_defaults(
        name, gpu, recipe is not None or "encoder_weights" in given, coarser, wide, "instance" if by_image else "batch"
    )
    if recipe is not None and recipe.model == name:
        options.update(recipe.options)
    wanted = zip(NETWORK_OPTIONS, (base_channels, depth, padding, norm, dropout, downsample), strict=True)
    options.update({key: value for key, value in wanted if value is not None})
    if options.get("norm") == "none":
        options["norm"] = None
    if options.get("padding") == "valid" and downsample is None:
        options.pop("downsample", None)
    if separate == "cores" and num_classes == 2:
        num_classes = NUM_CLASSES
    single = num_classes == 2 and models.defaults(name)["num_classes"] == 1
    network = {"name": name, "in_channels": in_channels, "num_classes": 1 if single else num_classes, **options}
    by_batch, normalised = options.get("norm") == "batch", options.get("norm") in ("batch", "instance")
    values: dict[str, Any] = {
        "model": network,
        "minutes": minutes,
        "steps": steps,
        "device": str(target),
        "batch_size": 4 if gpu else 1,
        "learning_rate": 3e-4 if gpu else 3e-3 if normalised else 1e-3,
        **({"balance": False, "threshold": _THRESHOLD_OF_OBJECTS} if separate == "cores" else {}),
        **({"w0": 0.0, "balance": False} if by_pixel else {}),
        **({"statistics_until": _STATISTICS_UNTIL} if recipe is None and separate == "ridge" and by_batch else {}),
        **from_recipe,
    }
    if "amp" not in given:  # which may have to be measured
        values["amp"] = fast_bfloat16(target)
    if "tile" not in given:
        factor = options.get("downsample", 1)
        usual_tile = 388 if gpu else 192 if factor == 1 else _COARSE_TILE * factor
        values["tile"] = legal_tile(network, values.get("tile", usual_tile))
    if recipe is None and given.get("optimizer") == "sgd" and "learning_rate" not in given:
        # momentum 0.99 adds up a hundred gradients: the paper names none, 1e-3 diverges with weights of up to 10
        values["learning_rate"] = 1e-4
    usual = Loss().name
    if given.get("loss", usual) != values.get("loss", usual):
        values.update(UNWEIGHTED)
    return from_flat(TrainConfig, {**values, **given})


def steps_for(epochs: float, images: int, batch_size: int) -> int:
    """Optimizer steps of ``epochs`` passes over ``images`` tiles, at least 1."""
    if not 0 < epochs * images < math.inf:
        raise InputError(f"epochs is {epochs}, expected a finite number above 0")
    return max(1, math.ceil(epochs * images / batch_size))


def downsampling(object_radius: float | None) -> int:
    """How much coarser the network is to work: the largest factor of 1, 2, 4, 8 that leaves objects a median radius of 7 px.

    A network of depth 3 sees 44 px of its own resolution in each direction: enough to tell objects of that size apart, while the
    same network at full resolution sees the texture of a cell that is 100 px wide, and not the cell.
    """
    if object_radius is None:
        return 1
    return max(factor for factor in DOWNSAMPLES if factor == 1 or object_radius / factor >= _SMALLEST_RADIUS)


def _model_defaults(name: str, gpu: bool, full_width: bool, downsample: int, wide: bool, norm: str) -> dict[str, Any]:
    if name == "unet" and not full_width:
        if gpu:
            return {"base_channels": 64, "depth": 4, "padding": "valid", "norm": None, "dropout": 0.5}
        network = {"base_channels": 32 if wide else 16, "depth": 3, "padding": "same", "norm": norm, "dropout": 0.0}
        return {**network, "downsample": downsample}
    width = models.defaults(name).get("base_channels")
    return {} if width is None else {"base_channels": width if gpu or full_width else width // 2}


def legal_tile(network: dict[str, Any], tile: int) -> int:
    """The least output of at least ``tile`` pixels that the network can return."""
    with torch.device("meta"):
        return models.create(**network).geometry.covering_output(tile)


def describe(config: TrainConfig, training: int, validation: int) -> str:
    """One line for a person: what will be trained, on what, for how long."""
    model = config.model
    details = [f"base {model['base_channels']}"] if "base_channels" in model else []
    details += [f"depth {model['depth']}"] if "depth" in model else []
    details += [str(model["padding"])] if "padding" in model else []
    details += [f"{model['norm']} norm"] if model.get("norm") else []
    details += [f"at 1/{model['downsample']} of the resolution"] if model.get("downsample", 1) > 1 else []
    return (
        f"training {model['name']}{' (' + ', '.join(details) + ')' if details else ''} on "
        f"{training} images, validating on {validation}, for {config.budget} on {config.device}: tiles of {config.tile} px, "
        f"batch {config.batch_size}, {config.loss.name}, {config.optimizer.name} {config.optimizer.learning_rate:g}, "
        f"{'bfloat16' if config.amp else 'float32'}{precision_reason(torch.device(config.device))}"
    )
