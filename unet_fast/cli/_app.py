"""The application that the commands register with, and the options that several of them share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from unet_fast.labels import check_kind

# as a newcomer needs them
_ORDER = ("demo", "preview", "train", "predict", "evaluate", "recipes", "compare", "export", "latency", "info", "bench")


class _InOrder(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=_ORDER.index)


app = typer.Typer(
    name="unet-fast",
    cls=_InOrder,
    help="U-Net segmentation as fast as the hardware allows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

SomeImages = Annotated[Path | None, typer.Option("--images", help="TIFF stack, or folder of TIFF or PNG files.")]
SomeLabels = Annotated[
    Path | None, typer.Option("--labels", help="Labels of the same images: classes, a 0/255 mask, or instances.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Kind = Annotated[
    str | None, typer.Option("--label-kind", help="mask, classes or instances. Default: detected from the labels.")
]
IgnoreIndex = Annotated[
    int | None,
    typer.Option(
        "--ignore-index",
        help="Label of pixels to leave out of the loss and of all scores. Default: 255 beside class numbers, if it occurs.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="The folder of a data set: ISBI 2012, Cell Tracking Challenge, DRIVE, Data Science Bowl 2018, or images/ with "
        "labels/, masks/ or instances/.",
    ),
]
Val = Annotated[
    str | None,
    typer.Option(
        help="Images held out for validation, such as 20:25 or 3,7 or sequence:02; none for no validation. "
        "Default: the last fifth, or as the recipe says."
    ),
]
Epochs = Annotated[float | None, typer.Option(help="Budget as passes over the training images.")]
Minutes = Annotated[
    float | None,
    typer.Option(help="Budget as time, validation included. Default: as the recipe says, or 30 on a GPU, 10 on a CPU."),
]
Steps = Annotated[int | None, typer.Option(help="Budget as optimizer steps; such a run can be repeated exactly.")]
Recipe = Annotated[str | None, typer.Option(help="A name of `unet-fast recipes`; other options override it.")]
BaseChannels = Annotated[int | None, typer.Option(help="Channels of the first level.")]
Depth = Annotated[int | None, typer.Option(help="Number of down-samplings, for networks that have this option.")]
Tile = Annotated[int | None, typer.Option(help="Side of an output tile in pixels.")]
BatchSize = Annotated[int | None, typer.Option(help="Tiles per step.")]
NumClasses = Annotated[int | None, typer.Option(help="Number of classes. Default: counted in the labels.")]
W0 = Annotated[float | None, typer.Option(help="Height of the border term of the weight map; 0: off.")]
Sigma = Annotated[float | None, typer.Option(help="Width of the border term in pixels.")]
ElasticSigma = Annotated[float | None, typer.Option(help="Elastic displacement, std in pixels; 0: off.")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights and augmentation.")]


def say(text: str) -> None:
    """Print one line at once, also into a pipe."""
    print(text, flush=True)


def label_kind_of(text: str | None) -> Any:
    """``--label-kind``, checked."""
    if text is not None:
        check_kind(text, name="--label-kind")
    return text
