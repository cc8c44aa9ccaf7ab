"""``unet-fast demo``, ``train``, ``recipes`` and ``compare``."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from unet_fast.cli._app import (
    W0,
    BaseChannels,
    BatchSize,
    Data,
    Depth,
    Device,
    ElasticSigma,
    Epochs,
    IgnoreIndex,
    Kind,
    Minutes,
    NumClasses,
    Recipe,
    Seed,
    Sigma,
    SomeImages,
    SomeLabels,
    Steps,
    Tile,
    Val,
    app,
    label_kind_of,
    say,
)
from unet_fast.cli._sources import Source
from unet_fast.errors import InputError


@app.command(epilog="Example: `unet-fast demo --out demo`")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, run, prediction and report.")] = Path("demo"),
    minutes: Annotated[float, typer.Option(help="Training time.")] = 1.2,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Seed of images and training.")] = 0,
) -> None:
    """Train on synthetic EM images, predict unseen ones, score them and write a picture report."""
    from unet_fast.demo import run_demo

    run_demo(out, minutes=minutes, device=device, seed=seed, announce=say)


@app.command(
    epilog="Example: `unet-fast train --data FOLDER --out RUN --minutes 4`, "
    "`unet-fast train --images A.tif --labels B.tif --out RUN --val 20:25 --recipe em`, "
    "`torchrun --nproc-per-node 4 -m unet_fast train --data FOLDER --out RUN`"
)
def train(
    out: Annotated[Path, typer.Option(help="Run folder to create, or to continue (--resume).")],
    data: Data = None,
    images: SomeImages = None,
    labels: SomeLabels = None,
    recipe: Recipe = None,
    val: Val = None,
    minutes: Minutes = None,
    steps: Steps = None,
    epochs: Epochs = None,
    model: Annotated[
        str | None, typer.Option(help="Network; an unknown name gets the list of all. Default: unet.")
    ] = None,
    base_channels: BaseChannels = None,
    depth: Depth = None,
    tile: Tile = None,
    padding: Annotated[str | None, typer.Option(help="valid or same convolutions.")] = None,
    norm: Annotated[str | None, typer.Option(help="batch, instance or group normalisation, or none.")] = None,
    downsample: Annotated[
        int | None, typer.Option(help="Work at 1/2, 1/4 or 1/8 of the resolution. Default: by the size of the objects.")
    ] = None,
    dropout: Annotated[float | None, typer.Option(help="Dropout at the end of the contracting path.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Local file with weights of a unet-resnet encoder to start from.")
    ] = None,
    loss: Annotated[str | None, typer.Option(help="Loss; an unknown name gets the list of all.")] = None,
    batch_size: BatchSize = None,
    optimizer: Annotated[str | None, typer.Option(help="adam, or sgd with momentum 0.99.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Momentum of sgd.")] = None,
    schedule: Annotated[str | None, typer.Option(help="polynomial, step, exponential or constant.")] = None,
    decay: Annotated[
        float | None, typer.Option(help="Factor by which the step and the exponential schedule lower the rate.")
    ] = None,
    decay_steps: Annotated[
        int | None, typer.Option(help="Steps between two such factors of the exponential schedule.")
    ] = None,
    w0: W0 = None,
    sigma: Sigma = None,
    separate: Annotated[
        str | None,
        typer.Option(
            help="How touching objects are kept apart: cores (rims and cores are learnt, instances grow out of cores; the default "
            "for labels that number objects) or ridge (of background)."
        ),
    ] = None,
    elastic_sigma: ElasticSigma = None,
    rotation: Annotated[float | None, typer.Option(help="Rotate by up to this many degrees.")] = None,
    quarter_turns: Annotated[
        bool | None,
        typer.Option("--quarter-turns/--no-quarter-turns", help="With flips: the 8 symmetries of a square."),
    ] = None,
    affine: Annotated[float | None, typer.Option(help="Move three points by up to this many pixels; 0: off.")] = None,
    best_by: Annotated[
        str | None, typer.Option(help="Keep the network with the best score or the lowest loss.")
    ] = None,
    amp: Annotated[
        bool | None, typer.Option("--amp/--no-amp", help="bfloat16. Default: on where it makes the hardware faster.")
    ] = None,
    checkpoint_steps: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    windows: Annotated[
        bool | None,
        typer.Option(
            "--windows/--no-windows",
            help="Read windows from the files at every step, instead of holding all images in memory. Default: where the "
            "images would take more than a quarter of the memory.",
        ),
    ] = None,
    num_classes: NumClasses = None,
    label_kind: Kind = None,
    ignore_index: IgnoreIndex = None,
    device: Device = "auto",
    seed: Seed = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint in --out.")] = False,
) -> None:
    """Train a network on labelled images and write a run folder."""
    from unet_fast import recipes
    from unet_fast import train as training
    from unet_fast.train import distributed
    from unet_fast.train.windows import describe, too_large

    with distributed.joined() as here:
        tell = distributed.only_main(say)
        chosen = None if recipe is None else recipes.get(recipe)
        config = training.read_config(out) if resume and (out / "config.json").exists() else None
        resumed = config is not None
        kind = label_kind_of(label_kind) or (None if config is None else config.data.get("kind"))
        source = Source(data, images, labels, kind, num_classes, ignore_index)
        source.refuse_as_output(out)
        network: dict[str, Any] = {
            "model": model,
            "base_channels": base_channels,
            "depth": depth,
            "padding": padding,
            "norm": norm,
            "dropout": dropout,
            "downsample": downsample,
        }
        settings: dict[str, Any] = {
            "encoder_weights": None if weights is None else str(weights),
            "tile": tile,
            "loss": loss,
            "batch_size": batch_size,
            "optimizer": optimizer,
            "learning_rate": lr,
            "momentum": momentum,
            "schedule": schedule,
            "decay": decay,
            "decay_steps": decay_steps,
            "w0": w0,
            "sigma": sigma,
            "separate": separate,
            "elastic_sigma": elastic_sigma,
            "rotation": rotation,
            "quarter_turns": quarter_turns,
            "affine": affine,
            "best_by": best_by,
            "amp": amp,
            "checkpoint_steps": checkpoint_steps,
            "seed": seed,
        }
        if config is None:
            validation, test = source.held_out(val, chosen)
        else:
            training.check_same_data(config, source.dataset.outline(), out)
            validation, test = config.data.get("validation_slices", []), config.data.get("test_slices", [])
            if val is not None and sorted(source.held_out(val, chosen)[0]) != sorted(validation):
                raise InputError(
                    f"--val is {val}, but the run in {out} holds out {validation or 'no images'}, which cannot be changed when it "
                    "is resumed; leave it out, or choose another --out"
                )
        reason = None
        if config is not None:
            if windows is not None and windows != config.data.get("windows", False):
                raise InputError(
                    f"{'--windows' if windows else '--no-windows'} is given, but the run in {out} was trained "
                    f"{'without' if windows else 'with'} it, which cannot be changed when it is resumed; leave it out"
                )
            windows = config.data.get("windows", False)
        elif windows is None:
            reason = too_large(source.dataset, training.resolve_device(device))
            windows = reason is not None
        tell(source.describe(windows=windows))
        fitting, held_out = source.split(validation, test, windows=windows)
        if windows:
            for line in describe(held_out, reason):
                tell(line)
        if epochs is None and chosen is not None and minutes is None and steps is None and config is None:
            epochs = chosen.epochs
        if epochs is not None and (minutes is not None or steps is not None):
            raise InputError("--epochs is given together with --minutes or --steps; set one budget")
        if epochs is not None:
            size = batch_size or (config.batch_size if config is not None else chosen.batch_size if chosen else None)
            per_epoch = (chosen.tiles_per_epoch if chosen else None) or len(fitting)
            steps = training.steps_for(
                epochs, per_epoch, here.size * (size or training.default_config(device, steps=1).batch_size)
            )
        fingerprint = source.dataset.fingerprint()
        if config is not None:
            training.check_same_data(config, fingerprint, out)
            if minutes is not None or steps is not None:
                config = config.changed(minutes=minutes, steps=steps)
            if device != "auto":
                settings["device"] = str(training.resolve_device(device))
            if chosen is not None:
                of_recipe = {name: value for name, value in chosen.settings().items() if settings.get(name) is None}
                so_far = config.flat()
                other = [name for name, value in of_recipe.items() if name != "tile" and so_far[name] != value]
                if other:
                    tell(
                        f"--recipe {chosen.name} is not used when a run is resumed: it keeps its own {', '.join(other)}"
                    )
            settings["processes"] = here.size
            if batch_size is None and here.size != config.processes:
                settings["batch_size"] = training.share_batch(config, here.size, out)
            config = training.changed(config, {**network, **settings}, out, tell)
        else:
            config = training.default_config(
                device,
                recipe=chosen,
                in_channels=fitting.channels,
                num_classes=fitting.num_classes,
                kind=fitting.kind,
                **training.traits(fitting, chosen),
                minutes=minutes,
                steps=steps,
                processes=here.size,
                data={
                    **source.described,
                    "fingerprint": fingerprint,
                    "windows": windows,
                    "validation_slices": validation,
                    "test_slices": test,
                },
                **network,
                **settings,
            )
        if held_out is None and val is None and not resumed:
            advice = "; --val 0 holds the first one out" if len(source) > 1 else ""
            tell(f"none of the {len(source)} images is held out, so the last weights are kept, without a score{advice}")
        tell(training.describe(config, len(fitting), 0 if held_out is None else len(held_out)))
        _report_training(training.train(config, fitting, held_out, out, resume=resume, announce=tell), tell)


def _report_training(summary: Any, tell: Any) -> None:
    speed = summary.steps / max(summary.seconds, 1e-9)
    text = f"{summary.steps} steps in {summary.seconds:.0f} s ({speed:.1f} a second), loss {summary.loss:.4f}"
    if summary.images_per_second is not None:
        text += f", {summary.images_per_second:.1f} images/s between validations"
    if summary.validation is not None and summary.validation.average_precision is not None:
        text += f"; best validation: average precision {summary.validation.average_precision:.4f} at an IoU of 0.5"
    elif summary.validation is not None:
        text += f"; best validation: pixel error {summary.validation.pixel_error:.4f}"
        if summary.validation.rand_error is not None:
            text += f", Rand error {summary.validation.rand_error:.4f}"
    tell(text)
    if summary.interrupted:
        tell(f"interrupted; to continue, repeat the command with --resume: {summary.folder}")
    names = ("model.safetensors", "metrics.csv", "config.json", "loss.png", "preview.png", "overlay.png")
    tell(f"wrote {summary.folder}: {', '.join(name for name in names if (summary.folder / name).exists())}")
    if summary.signal is not None:
        raise typer.Exit(128 + summary.signal)  # as a shell says it, so that `train && predict` does not go on


@app.command(epilog="Example: `unet-fast recipes`")
def recipes(name: Annotated[str | None, typer.Argument(help="Show the settings of this one.")] = None) -> None:
    """List the recipes of the literature, or show the settings of one."""
    from unet_fast import recipes as known

    if name is not None:
        recipe = known.get(name)
        say(f"{recipe.name}: {recipe.source}\n  said: {recipe.said}\n  ours: {recipe.ours}")
        say(f"  model: {recipe.model} {recipe.options or ''}".rstrip())
        say(f"  split: {' / '.join(f'{part:.2g}' for part in recipe.split)} (training / validation / test)")
        for key, value in recipe.settings().items():
            say(f"  {key}: {value}")
        return
    for recipe in known.RECIPES:
        say(f"{recipe.name:20}{recipe.source}")
        say(textwrap.fill(recipe.said, 116, initial_indent=" " * 20, subsequent_indent=" " * 20))
    say("\nunet-fast recipes NAME shows the settings of one; unet-fast train --recipe NAME trains by it")


@app.command(epilog="Example: `unet-fast compare --data FOLDER --models unet,unet-bn,unet++ --minutes 5 --out COMPARE`")
def compare(
    models: Annotated[str, typer.Option(help="Names of networks or recipes, separated by commas.")],
    out: Annotated[Path, typer.Option(help="Folder for the runs, the table and the plot.")] = Path("compare"),
    data: Data = None,
    images: SomeImages = None,
    labels: SomeLabels = None,
    val: Val = None,
    minutes: Annotated[float | None, typer.Option(help="Training time of each network.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of each network, instead of --minutes.")] = None,
    base_channels: BaseChannels = None,
    depth: Depth = None,
    tile: Annotated[int | None, typer.Option(help="Smallest side of an output tile in pixels.")] = None,
    batch_size: BatchSize = None,
    num_classes: NumClasses = None,
    label_kind: Kind = None,
    ignore_index: IgnoreIndex = None,
    device: Device = "auto",
    seed: Seed = None,
) -> None:
    """Train several networks with the same budget and write one table and one plot."""
    from unet_fast.compare import compare_models
    from unet_fast.train import resolve_device
    from unet_fast.train.windows import describe, too_large

    source = Source(data, images, labels, label_kind_of(label_kind), num_classes, ignore_index)
    source.refuse_as_output(out)
    reason = too_large(source.dataset, resolve_device(device))
    say(source.describe(windows=reason is not None))
    validation, test = source.held_out(val, None)
    fitting, held_out = source.split(validation, test, windows=reason is not None)
    for line in describe(held_out, reason) if reason else ():
        say(line)
    if held_out is None:
        raise InputError("compare needs validation images; give --val, such as --val 0")
    names = [name.strip() for name in models.split(",") if name.strip()]
    rows = compare_models(
        names,
        fitting,
        held_out,
        out,
        device=device,
        minutes=minutes,
        steps=steps,
        base_channels=base_channels,
        depth=depth,
        tile=tile,
        batch_size=batch_size,
        seed=seed,
        announce=say,
    )
    say(f"wrote {out}: compare.csv, compare.json, compare.png and a run folder for each network")
    if len(rows) < len(names):
        raise typer.Exit(130)  # interrupted
