"""``unet-fast predict``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from unet_fast.cli._app import Data, Device, SomeImages, app, say
from unet_fast.errors import InputError


@app.command(
    epilog="Example: `unet-fast predict RUN --images C.tif --out P.tif`, "
    "`unet-fast predict RUN --images stage1_test --out FOLDER --output instances`"
)
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder of train.")],
    out: Annotated[
        Path, typer.Option(help="TIFF to write, or a folder for a TIFF an image, whose sizes may then differ.")
    ],
    images: SomeImages = None,
    data: Data = None,
    output: Annotated[
        str, typer.Option(help="probabilities (of the foreground), labels, or instances (numbered objects).")
    ] = "probabilities",
    threshold: Annotated[
        float | None, typer.Option(help="Of the foreground, for labels and instances. Default: as the run says.")
    ] = None,
    min_size: Annotated[int, typer.Option(help="Instances of fewer pixels are removed.")] = 20,
    slices: Annotated[
        str | None, typer.Option(help="Only these images, such as 20:25; of --data also sequence:02.")
    ] = None,
    tile: Annotated[int | None, typer.Option(help="Side of an output tile in pixels.")] = None,
    tta: Annotated[
        int | None,
        typer.Option(
            help="8 to average over flips and quarter turns, 7 for seven of these (as many rotated inputs as the paper "
            "averages), 1 for neither. Default: as the run says."
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Segment images with a trained network."""
    from unet_fast import train as training
    from unet_fast.data import normalize
    from unet_fast.predict import predict_stack

    target = training.resolve_device(device)
    model, config = training.load_model(run, target)
    named = _named_images(images, data, slices, int(config.model["in_channels"]))
    settings: dict[str, Any] = {
        "preprocess": normalize,
        "tile": tile or max(config.tile, 512),
        "tta": config.tta if tta is None else tta,
        "output": output,
        "threshold": config.threshold if threshold is None else threshold,
        "min_size": min_size,
        "padding": config.border,
        "amp": config.amp and training.fast_bfloat16(target),
    }
    began = time.monotonic()
    if out.suffix:
        for name, image in named:
            if image.shape[1:] != named[0][1].shape[1:]:
                raise InputError(
                    f"images of different sizes: {named[0][0]} and {name} do not fit into one TIFF; give --out a folder "
                    "(a name without suffix) to write one an image"
                )
        predict_stack(model, [image for _, image in named], out, **settings)
        written = str(out)
    else:
        for name, image in named:
            predict_stack(model, [image], out / f"{name}.tif", progress=False, **settings)
        written = f"{out}/*.tif"
    say(f"wrote {written}: {output} of {len(named)} images, {(time.monotonic() - began) / len(named):.2f} s an image")


def _named_images(
    images: Path | None, folder: Path | None, slices: str | None, channels: int
) -> list[tuple[str, np.ndarray]]:
    """A file name and (C, H, W) float32 of every image asked for, with as many channels as the network takes."""
    from unet_fast.data import parse_slices, read_dataset
    from unet_fast.data.stacks import file_name, list_images, load_each, match_channels

    if (images is None) == (folder is None):
        raise InputError("give the images either as --images or as --data FOLDER")
    if folder is not None:
        dataset = read_dataset(folder)
        named = [(item.name, item.image.astype("float32")) for item in dataset.items]
        chosen = dataset.choose(slices)
    else:
        assert images is not None
        named = load_each(list_images(images, nested=True))
        chosen = list(range(len(named))) if slices is None else parse_slices(slices, len(named))
    found = {file_name(named[n][0]): n for n in chosen}
    if len(found) < len(chosen):
        raise InputError(f"two images of {images or folder} have the same name; rename one, or predict them one by one")
    return [(name, match_channels(named[n][1], channels, named[n][0])) for name, n in found.items()]
