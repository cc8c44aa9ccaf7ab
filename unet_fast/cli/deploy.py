"""``unet-fast export`` and ``latency``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unet_fast.cli._app import Device, app, say
from unet_fast.errors import InputError
from unet_fast.files import ensure_folder, take_as_input

Model = Annotated[Path, typer.Argument(help="Run folder of train, or an exported .zip.")]


@app.command(
    epilog="Example: `unet-fast export RUN --out model.onnx`, `unet-fast export RUN --out model.zip --name 'Nuclei, DIC' "
    "--license CC-BY-4.0 --author 'A. Person' --images A.tif`"
)
def export(
    run: Model,
    out: Annotated[Path, typer.Option(help="File to write: .onnx, .zip (bioimage.io) or .pt2 (torch.export).")],
    format: Annotated[
        str | None, typer.Option(help="onnx, bioimageio or torch-export. Default: by the name of --out.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of a bioimage.io package.")] = None,
    license: Annotated[
        str | None, typer.Option(help="Licence of a bioimage.io package, such as CC-BY-4.0 or MIT.")
    ] = None,
    author: Annotated[
        list[str] | None, typer.Option(help="Author of a bioimage.io package; may be given several times.")
    ] = None,
    cite: Annotated[
        list[str] | None,
        typer.Option(help="'TEXT | DOI' to cite; may be given several times. Default: the U-Net's paper."),
    ] = None,
    documentation: Annotated[Path | None, typer.Option(help="Markdown file for a bioimage.io package.")] = None,
    images: Annotated[Path | None, typer.Option(help="An image for the test and the cover of a package.")] = None,
) -> None:
    """Write a trained network for other programs, after comparing it with torch."""
    from unet_fast.deploy import export as write
    from unet_fast.run import Run

    trained = Run.load(run, "cpu")
    about: dict[str, Any] = {"name": name, "license": license, "authors": author}
    if cite:
        about["cite"] = [_citation(text) for text in cite]
    if documentation is not None:
        about["documentation"] = _text(documentation)
    if images is not None:
        from unet_fast.data.pages import Pages
        from unet_fast.data.stacks import list_images, match_channels

        pages = Pages(list_images(images, nested=True))
        about["image"] = match_channels(pages[0], trained.model.in_channels, pages.names[0])
    done = write(trained, out, format=format, **{key: value for key, value in about.items() if value is not None})
    compared = "not compared: onnxruntime is not installed"
    if done["difference"] is not None:
        compared = f"differs from torch by at most {done['difference']:.1e} of the largest logit at three sizes"
    say(f"wrote {out}: {done['format']}, {out.stat().st_size / 2**20:.1f} MiB; {compared}")


def _text(path: Path) -> str:
    take_as_input(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8 ({error}); save it in that encoding") from error


def _citation(text: str) -> dict[str, str]:
    said, bar, doi = text.partition("|")
    if not bar or not said.strip() or not doi.strip():
        raise InputError(f"--cite is {text!r}, expected 'TEXT | DOI'")
    where = doi.strip()
    return {"text": said.strip(), ("url" if where.startswith("http") else "doi"): where}


@app.command(
    epilog="Example: `unet-fast latency RUN --tiles 256,572 --batches 1,8 --out LATENCY`, "
    "`unet-fast latency RUN --engines 'torch,openvino bfloat16' --threads 1,4 --out LATENCY`"
)
def latency(
    run: Model,
    out: Annotated[Path, typer.Option(help="Folder for latency.json, latency.csv and latency.png.")],
    engines: Annotated[
        str,
        typer.Option(
            help="all, or some of torch, compile, cuda-graph, onnxruntime, openvino; also 'openvino bfloat16'."
        ),
    ] = "all",
    tiles: Annotated[str, typer.Option(help="Sides of the output in pixels, separated by commas.")] = "256",
    batches: Annotated[str, typer.Option(help="Tiles per call, separated by commas.")] = "1",
    threads: Annotated[
        str | None, typer.Option(help="Threads of a CPU, separated by commas. Default: as torch.")
    ] = None,
    cold: Annotated[
        bool, typer.Option("--cold/--no-cold", help="Cold start and memory, each in a process of its own.")
    ] = True,
    device: Device = "auto",
) -> None:
    """Measure how long one call of a network takes in every engine of this machine."""
    from unet_fast.deploy import latency as measure
    from unet_fast.run import Run

    asked: dict[str, Any] = {
        "engines": "all" if engines.strip() == "all" else engines.split(","),
        "tiles": _numbers("--tiles", tiles),
        "batches": _numbers("--batches", batches),
        "threads": None if threads is None else _numbers("--threads", threads),
    }
    ensure_folder(out)  # before anything is measured for a folder that cannot be written to
    found = measure(
        Run.load(run, device),
        **asked,
        cold=cold,
        announce=say,
    )
    say(str(found))
    said = found.conditions
    say(
        f"{said['machine']}, pinned to {said['pinned_to']}, clock {said['clock']}, load before {said['load_before']:.1f}"
    )
    found.save(out)
    say(f"wrote {out}: latency.json, latency.csv, latency.png")


def _numbers(option: str, text: str) -> list[int]:
    pieces = [piece.strip() for piece in text.split(",")]
    if not all(piece.isdecimal() and int(piece) > 0 for piece in pieces):
        raise InputError(f"{option} is {text!r}, expected numbers of at least 1 separated by commas, such as 1,8")
    return [int(piece) for piece in pieces]
