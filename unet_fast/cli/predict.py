"""``unet-fast predict``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unet_fast.cli._app import Data, Device, SomeImages, Tile, app, say
from unet_fast.errors import InputError
from unet_fast.files import ensure_folder, refuse_overwrite, refuse_twins

if TYPE_CHECKING:
    import torch

    from unet_fast.data.datasets import ItemPages
    from unet_fast.data.pages import Pages, Windows
    from unet_fast.predict import Predictor
    from unet_fast.train.config import TrainConfig

_OTHER_FORMATS = (".png", ".jpg", ".jpeg", ".npy", ".npz", ".h5", ".json", ".gif", ".bmp")


@app.command(
    epilog="Example: `unet-fast predict RUN --images C.tif --out P.tif`, "
    "`unet-fast predict RUN --images stage1_test --out FOLDER --output instances`"
)
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder of train, or an exported .zip or .onnx.")],
    out: Annotated[
        Path,
        typer.Option(help="TIFF to write, or a folder for one TIFF per image; the images may then differ in size."),
    ],
    images: SomeImages = None,
    data: Data = None,
    output: Annotated[
        str, typer.Option(help="probabilities (of the foreground), labels, or instances (numbered objects).")
    ] = "probabilities",
    threshold: Annotated[
        float | None, typer.Option(help="Threshold of the foreground, for labels and instances. Default: the run's.")
    ] = None,
    min_size: Annotated[
        int | None, typer.Option(help="Remove instances of fewer pixels. Default: the run's, else 20.")
    ] = None,
    slices: Annotated[
        str | None, typer.Option(help="Only these images, such as 20:25; with --data also sequence:02.")
    ] = None,
    tile: Tile = None,
    tta: Annotated[
        int | None,
        typer.Option(
            help="8 to average over flips and quarter turns, 7 for seven of these (as many rotated inputs as the paper "
            "averages), 1 for none. Default: the run's."
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="What runs the network: auto (the fastest that is installed, measured and remembered), torch, compile, "
            "cuda-graph, onnxruntime or openvino. Default: torch, without measuring."
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Precision of the engine: float32 or bfloat16; auto: that of the run.")
    ] = "auto",
    dask: Annotated[
        str | None,
        typer.Option(help="Address of a Dask scheduler whose workers share the files, such as tcp://HOST:8786."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Segment images with a trained network."""
    from unet_fast.predict.stream import identity_of
    from unet_fast.run import Run
    from unet_fast.train.config import TrainConfig

    if engine is None and precision != "auto":
        raise InputError(
            f"--precision {precision} belongs to an --engine, but none is given; add one, such as --engine torch"
        )
    single = _is_one_file(out)
    if not single:
        ensure_folder(out)  # before any work is done for a folder that cannot be written to
    trained = Run.load(run, device)
    options: dict[str, Any] = {"output": output, "threshold": threshold, "min_size": min_size, "tile": tile, "tta": tta}
    if engine is not None:
        options.update(engine=engine, precision=precision)
    predictor = trained.predictor(announce=say, **options)
    if engine is None and isinstance(trained.settings, TrainConfig):
        options["amp"] = predictor.tiles.amp  # everywhere, whatever another machine would choose
        say(_precision(trained.settings, predictor.tiles.amp, trained.device))
    make = None
    if dask is not None:
        from unet_fast.cluster import make_on

        make = make_on(dask, run, device, options)
    chosen, files = _chosen_images(images, data, slices)
    identity = identity_of(predictor.tiles.model)  # what an earlier, killed run must have had for its parts to be used
    began = time.monotonic()
    if single:
        first = chosen.shape(0)
        for index in range(len(chosen)):
            if chosen.shape(index)[1:] != first[1:]:
                raise InputError(
                    f"images of different sizes: {chosen.names[0]} and {chosen.names[index]} do not fit into one TIFF; "
                    "give --out a folder (a name without .tif) to write one an image"
                )
        refuse_overwrite([out], files)
        refuse_twins([out], files if len(files) > 1 else [])
        _write(predictor, chosen, out, make, identity, progress=True)
        written = str(out)
    else:
        names = _file_names(chosen)
        outputs = [out / f"{name}.tif" for name in names]
        refuse_overwrite(outputs, files)
        refuse_twins(outputs, files if len(files) > 1 else [])
        done: list[Path] = []
        for index, name in enumerate(names):
            path = out / f"{name}.tif"
            # a file system may not tell A.tif from a.tif
            alike = [other for other in done if other.name.lower() == path.name.lower()]
            if path.exists() and any(path.samefile(other) for other in alike):
                raise InputError(
                    f"{path.name} differs from another prediction only by letter case, which {out} ignores; rename one image"
                )
            _write(predictor, chosen.select([index]), path, make, identity, progress=False)
            done.append(path)
        written = f"{out}/*.tif"
    say(f"wrote {written}: {output} of {len(chosen)} images, {(time.monotonic() - began) / len(chosen):.2f} s an image")


def _precision(settings: TrainConfig, reduced: bool, device: torch.device) -> str:
    """What the network computes in, and why."""
    from unet_fast.train.config import precision_reason

    if not settings.amp:
        return "precision: float32, as in training"
    reason = precision_reason(device)
    return (
        f"precision: bfloat16, as in training{reason}"
        if reduced
        else f"precision: float32{reason}; training ran in bfloat16"
    )


def _is_one_file(out: Path) -> bool:
    """Whether ``out`` names one output for all images rather than a folder, whose name may hold a dot."""
    from unet_fast.predict.targets import is_one_file

    if not out.is_dir() and out.suffix.lower() in _OTHER_FORMATS:
        raise InputError(
            f"predictions are written as TIFF or Zarr, but --out is {out}; end it in .tif or .zarr, or name a folder"
        )
    return is_one_file(out)


def _write(predictor: Predictor, chosen: Windows, path: Path, make: Any, identity: str, *, progress: bool) -> None:
    """Predict ``chosen`` in windows, in bounded memory."""
    from unet_fast.predict import targets
    from unet_fast.predict.stream import Stream

    stream = Stream(predictor, chosen, path, identity=identity, shared=make is not None)
    left = len(stream.missing())
    if left < len(stream.groups):
        say(f"going on with {path}: {len(stream.groups) - left} of {len(stream.groups)} parts are done")
    stages = targets.run(stream, progress=progress, make=make)
    if progress and make is None:
        say(f"time: {stages}")


def _chosen_images(
    images: Path | None, folder: Path | None, slices: str | None
) -> tuple[Pages | ItemPages, list[Path]]:
    """The images that are to be predicted, each read when its turn comes; and all files, which must not be written over."""
    from unet_fast.data import parse_slices
    from unet_fast.data.datasets import ItemPages, choose, find_items
    from unet_fast.data.pages import Pages
    from unet_fast.data.stacks import list_images

    if (images is None) == (folder is None):
        raise InputError("give the images either as --images or as --data FOLDER")
    if folder is not None:
        _, _, items = find_items(folder)
        files = [file for item in items for file in item.files]
        return ItemPages([items[index] for index in choose(items, slices)]), files
    assert images is not None
    found = Pages(list_images(images, nested=True))
    return found if slices is None else found.select(parse_slices(slices, len(found))), found.files


def _file_names(chosen: Windows) -> list[str]:
    """A file name for each image; ``InputError`` where two would be the same."""
    from unet_fast.data.stacks import file_name

    names: dict[str, str] = {}
    for image in chosen.names:
        name = file_name(image)
        if name in names:
            raise InputError(
                f"the images {names[name]} and {image} would both be written as {name}.tif; rename one, or predict them "
                "one by one"
            )
        names[name] = image
    return list(names)
