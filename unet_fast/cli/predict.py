"""``unet-fast predict``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from unet_fast.cli._app import Device, Images, app, say


@app.command(epilog="Example: `unet-fast predict RUN --images C.tif --out P.tif`")
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder of train.")],
    images: Images,
    out: Annotated[Path, typer.Option(help="TIFF to write.")],
    output: Annotated[
        str, typer.Option(help="probabilities (of the foreground), labels, or instances (numbered objects).")
    ] = "probabilities",
    threshold: Annotated[
        float | None, typer.Option(help="Of the foreground, for labels and instances. Default: as the run says.")
    ] = None,
    min_size: Annotated[int, typer.Option(help="Instances of fewer pixels are removed.")] = 20,
    slices: Annotated[str | None, typer.Option(help="Only these slices, such as 20:25.")] = None,
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
        threshold=config.threshold if threshold is None else threshold,
        min_size=min_size,
        padding=config.border,
        amp=config.amp and training.fast_bfloat16(target),
    )
    say(f"wrote {out}: {output} of {len(stack)} images, {(time.monotonic() - began) / len(stack):.2f} s an image")
