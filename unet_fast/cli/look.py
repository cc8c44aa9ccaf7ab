"""``unet-fast evaluate``, ``preview`` and ``info``: looking at results, at training tiles, at the installation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unet_fast.cli._app import Images, Kind, LabelsPath, app, label_kind_of, say


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

    kind = label_kind_of(label_kind)
    report = evaluate_files(prediction, labels, images=images, slices=slices, out=out, kind=kind)
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

    pair = data.read_pair(images, labels, kind=label_kind_of(label_kind))
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
