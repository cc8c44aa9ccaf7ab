"""``unet-fast evaluate``, ``preview`` and ``info``: looking at results, at training tiles, at the installation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unet_fast.cli._app import (
    W0,
    Data,
    ElasticSigma,
    IgnoreIndex,
    Kind,
    Recipe,
    Seed,
    Sigma,
    SomeImages,
    SomeLabels,
    Tile,
    app,
    label_kind_of,
    say,
)
from unet_fast.cli._sources import Source
from unet_fast.errors import InputError


@app.command(
    epilog="Example: `unet-fast evaluate --prediction P.tif --labels L.tif --out metrics.json`, "
    "`unet-fast evaluate --prediction P.tif --data FOLDER --slices 20:25`"
)
def evaluate(
    prediction: Annotated[
        Path,
        typer.Option(help="What predict wrote: probabilities, labels or instances, as a TIFF or a folder of TIFFs."),
    ],
    labels: SomeLabels = None,
    images: Annotated[Path | None, typer.Option(help="The images, to show them in the picture.")] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="Field of view; pixels where it is 0 are left out. --data finds that of DRIVE by itself."),
    ] = None,
    data: Data = None,
    slices: Annotated[
        str | None,
        typer.Option(help="The images that were predicted, such as 20:25; with --data also sequence:02. Default: all."),
    ] = None,
    out: Annotated[Path, typer.Option(help="JSON to write; the picture goes beside it.")] = Path("metrics.json"),
    label_kind: Kind = None,
    ignore_index: IgnoreIndex = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Pixels around true borders that variation of information and adapted Rand error leave out."),
    ] = None,
) -> None:
    """Score a prediction: pixel, Rand and warping error, Dice, IoU, V_Rand, V_Info, objects found, best threshold."""
    from unet_fast.evaluate import evaluate_dataset, evaluate_files

    kind = label_kind_of(label_kind)
    if (data is None) == (labels is None):
        raise InputError(
            "give the truth either as --labels (with --images and --mask, if you like) or as --data FOLDER"
        )
    if data is not None:
        if images is not None or mask is not None:
            raise InputError("--data brings images and masks along; leave --images and --mask out")
        report = evaluate_dataset(
            prediction, data, slices=slices, out=out, kind=kind, ignore_index=ignore_index, tolerance=tolerance
        )
    else:
        assert labels is not None
        report = evaluate_files(
            prediction,
            labels,
            images=images,
            mask=mask,
            slices=slices,
            out=out,
            kind=kind,
            ignore_index=ignore_index,
            tolerance=tolerance,
        )
    report.print()
    say(f"wrote {out} and {out.with_suffix('.png')}")


@app.command(
    epilog="Example: `unet-fast preview --images A.tif --labels B.tif --out preview.png`, "
    "`unet-fast preview --data FOLDER --recipe em`"
)
def preview(
    images: SomeImages = None,
    labels: SomeLabels = None,
    data: Data = None,
    recipe: Recipe = None,
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("preview.png"),
    tile: Tile = None,
    elastic_sigma: ElasticSigma = None,
    w0: W0 = None,
    sigma: Sigma = None,
    label_kind: Kind = None,
    ignore_index: IgnoreIndex = None,
    seed: Seed = None,
) -> None:
    """Show augmented tiles with their labels and weight maps, before training on them."""
    from unet_fast import recipes
    from unet_fast import train as training
    from unet_fast.train.windows import too_large

    source = Source(data, images, labels, label_kind_of(label_kind), None, ignore_index)
    large = too_large(source.dataset, training.resolve_device("auto")) is not None
    say(source.describe(windows=large))
    shown, _ = source.split([], [], windows=large)
    chosen = None if recipe is None else recipes.get(recipe)
    config = training.default_config(
        "auto", steps=1, recipe=chosen, in_channels=shown.channels, num_classes=shown.num_classes,
        kind=shown.kind, **training.traits(shown, chosen), tile=tile, elastic_sigma=elastic_sigma, w0=w0, sigma=sigma, seed=seed, batch_size=1,
    )  # fmt: skip
    training.write_preview(config, shown, out)
    say(f"wrote {out}: augmented tiles of {config.tile} px with labels and weight maps")


@app.command(epilog="Example: `unet-fast info`")
def info() -> None:
    """Print versions, what was built, and which backend each operator uses and why."""
    from unet_fast.info import print_info

    print_info()
