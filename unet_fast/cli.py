"""The command line: ``unet-fast demo | train | predict | evaluate | preview | info``."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from unet_fast.errors import BackendError, InputError

app = typer.Typer(
    name="unet-fast",
    help="U-Net segmentation as fast as the hardware allows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Images = Annotated[Path, typer.Option("--images", help="TIFF stack, or folder of TIFF or PNG files.")]
LabelsPath = Annotated[
    Path, typer.Option("--labels", help="Labels of the same images: classes, a 0/255 mask, or instances.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Kind = Annotated[
    str | None, typer.Option("--label-kind", help="mask, classes or instances; found out from the labels if not given.")
]


def say(text: str) -> None:
    """Print one line at once, also into a pipe."""
    print(text, flush=True)


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


@app.command(epilog="Example: `unet-fast train --images A.tif --labels B.tif --out RUN --val 20:25 --minutes 4`")
def train(
    images: Images,
    labels: LabelsPath,
    out: Annotated[Path, typer.Option(help="Run folder to create, or to go on with (--resume).")],
    val: Annotated[
        str | None,
        typer.Option(
            help="Slices held out for validation, such as 20:25 or 3,7; none for no validation. "
            "Default: the last fifth."
        ),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Budget as time, validation included.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Budget as optimizer steps (a run that can be repeated exactly).")
    ] = None,
    base_channels: Annotated[int | None, typer.Option(help="Channels of the first level.")] = None,
    depth: Annotated[int | None, typer.Option(help="Number of down-samplings.")] = None,
    tile: Annotated[int | None, typer.Option(help="Side of an output tile in pixels.")] = None,
    padding: Annotated[str | None, typer.Option(help="valid or same convolutions.")] = None,
    norm: Annotated[str | None, typer.Option(help="batch, instance or group normalisation.")] = None,
    dropout: Annotated[float | None, typer.Option(help="At the end of the contracting path.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Tiles per step.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adam, or sgd with momentum 0.99.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    schedule: Annotated[str | None, typer.Option(help="polynomial, step or constant.")] = None,
    w0: Annotated[float | None, typer.Option(help="Height of the border term of the weight map; 0: off.")] = None,
    sigma: Annotated[float | None, typer.Option(help="Width of the border term in pixels.")] = None,
    elastic_sigma: Annotated[float | None, typer.Option(help="Elastic displacement, std in pixels; 0: off.")] = None,
    amp: Annotated[
        bool | None, typer.Option("--amp/--no-amp", help="bfloat16; on where the hardware gains by it.")
    ] = None,
    checkpoint_steps: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Number of classes; from the labels if not given.")] = None,
    label_kind: Kind = None,
    device: Device = "auto",
    seed: Annotated[int | None, typer.Option(help="Seed of weights and augmentation.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
) -> None:
    """Train a U-Net on a labelled stack and write a run folder."""
    from unet_fast import data
    from unet_fast import train as training

    pair = data.read_pair(images, labels, kind=_label_kind(label_kind), num_classes=num_classes)
    say(
        f"{len(pair)} images of {pair.images.shape[2]}x{pair.images.shape[3]} px, {pair.images.shape[1]} channel(s), "
        f"labels: {pair.kind}, {pair.num_classes} classes"
    )
    budget: dict[str, Any] = {"minutes": minutes, "steps": steps}
    if resume and (out / "config.json").exists():
        config = training.read_config(out)
        given = {name: value for name, value in budget.items() if value is not None}
        if given:
            config = replace(config, **{"minutes": None, "steps": None, **given})
        slices = config.data["validation_slices"]
    else:
        slices = training.default_validation(len(pair)) if val is None else []
        if val is not None and val != "none":
            slices = data.parse_slices(val, len(pair))
        config = training.default_config(
            device,
            in_channels=pair.images.shape[1],
            num_classes=pair.num_classes,
            **budget,
            base_channels=base_channels,
            depth=depth,
            padding=padding,
            norm=norm,
            dropout=dropout,
            tile=tile,
            batch_size=batch_size,
            optimizer=optimizer,
            learning_rate=lr,
            schedule=schedule,
            w0=w0,
            sigma=sigma,
            elastic_sigma=elastic_sigma,
            amp=amp,
            checkpoint_steps=checkpoint_steps,
            seed=seed,
            data={"images": str(images), "labels": str(labels), "kind": pair.kind, "validation_slices": slices},
        )
    fitting, held_out = training.hold_out(pair, slices)
    say(training.describe(config, len(fitting), 0 if held_out is None else len(held_out)))
    _report_training(training.train(config, fitting, held_out, out, resume=resume, announce=say))


def _report_training(summary: Any) -> None:
    speed = summary.steps / max(summary.seconds, 1e-9)
    text = f"{summary.steps} steps in {summary.seconds:.0f} s ({speed:.1f} a second), loss {summary.loss:.4f}"
    if summary.validation is not None:
        text += f"; best validation: pixel error {summary.validation.pixel_error:.4f}"
        if summary.validation.rand_error is not None:
            text += f", Rand error {summary.validation.rand_error:.4f}"
    say(text)
    if summary.interrupted:
        say(f"interrupted; go on with the same command and --resume: {summary.folder}")
    say(f"wrote {summary.folder}: model.safetensors, metrics.csv, config.json, loss.png, preview.png, overlay.png")


@app.command(epilog="Example: `unet-fast predict RUN --images C.tif --out P.tif`")
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder of train.")],
    images: Images,
    out: Annotated[Path, typer.Option(help="TIFF to write.")],
    output: Annotated[str, typer.Option(help="probabilities (of the foreground) or labels.")] = "probabilities",
    slices: Annotated[str | None, typer.Option(help="Only these slices, such as 20:25.")] = None,
    tile: Annotated[int | None, typer.Option(help="Side of an output tile in pixels.")] = None,
    tta: Annotated[
        int | None, typer.Option(help="1, or 8 to average over flips and quarter turns. Default: as the run says.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Segment images with a trained network."""
    from unet_fast import data
    from unet_fast import train as training
    from unet_fast.predict import predict_stack

    target = training.resolve_device(device)
    model, config = training.load_model(run, target)
    stack = data.read_images(images)
    if slices is not None:
        stack = stack[data.parse_slices(slices, len(stack))]
    began = time.monotonic()
    predict_stack(
        model,
        stack,
        out,
        preprocess=data.normalize,
        tile=tile or max(config.tile, 512),
        tta=config.tta if tta is None else tta,
        output=output,
        amp=config.amp and training.fast_bfloat16(target),
    )
    say(f"wrote {out}: {output} of {len(stack)} images, {(time.monotonic() - began) / len(stack):.2f} s an image")


@app.command(epilog="Example: `unet-fast evaluate --prediction P.tif --labels L.tif --out metrics.json`")
def evaluate(
    prediction: Annotated[Path, typer.Option(help="TIFF of predict: probabilities or labels.")],
    labels: LabelsPath,
    images: Annotated[Path | None, typer.Option(help="The images, shown in the picture.")] = None,
    slices: Annotated[str | None, typer.Option(help="Compare with these slices of the labels (and images).")] = None,
    out: Annotated[Path, typer.Option(help="JSON to write; the picture goes beside it.")] = Path("metrics.json"),
    label_kind: Kind = None,
) -> None:
    """Score a prediction: pixel error, Rand error, Dice, IoU, best threshold."""
    from unet_fast.evaluate import evaluate_files

    report = evaluate_files(prediction, labels, images=images, slices=slices, out=out, kind=_label_kind(label_kind))
    report.print()
    say(f"wrote {out} and {out.with_suffix('.png')}")


@app.command(epilog="Example: `unet-fast preview --images A.tif --labels B.tif --out preview.png`")
def preview(
    images: Images,
    labels: LabelsPath,
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("preview.png"),
    tile: Annotated[int | None, typer.Option(help="Side of an output tile in pixels.")] = None,
    elastic_sigma: Annotated[float | None, typer.Option(help="Elastic displacement, std in pixels; 0: off.")] = None,
    w0: Annotated[float | None, typer.Option(help="Height of the border term of the weight map.")] = None,
    sigma: Annotated[float | None, typer.Option(help="Width of the border term in pixels.")] = None,
    label_kind: Kind = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the augmentation.")] = None,
) -> None:
    """Show augmented tiles with their labels and weight maps, before training on them."""
    from unet_fast import data
    from unet_fast import train as training

    pair = data.read_pair(images, labels, kind=_label_kind(label_kind))
    config = training.default_config(
        "auto", steps=1, in_channels=pair.images.shape[1], num_classes=pair.num_classes,
        tile=tile, elastic_sigma=elastic_sigma, w0=w0, sigma=sigma, seed=seed, batch_size=1,
    )  # fmt: skip
    training.write_preview(config, pair, out)
    say(f"wrote {out}: augmented tiles of {config.tile} px with labels and weight maps")


@app.command(epilog="Example: `unet-fast info`")
def info() -> None:
    """Print versions, what was built, and which backend each op uses and why."""
    from unet_fast.info import print_info

    print_info()


def _label_kind(text: str | None) -> Any:
    kinds = ("mask", "classes", "instances")
    if text is not None and text not in kinds:
        raise InputError(f"--label-kind is {text!r}, expected one of {', '.join(kinds)}")
    return text


def main() -> None:
    """Run the command line; bad input ends in one line and exit code 2."""
    try:
        app()
    except (InputError, BackendError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
