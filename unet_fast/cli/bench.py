"""``unet-fast bench``: the benchmarks of the source checkout."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from unet_fast.cli._app import app, say
from unet_fast.errors import BackendError


@app.command(epilog="Example: `unet-fast bench weight_map elastic_warp --quick`")
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="Operators, or unet, dispatch and so on. Default: all.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds and sizes.")] = False,
) -> None:
    """Time the operators against their peers; writes tables, JSON and pictures to benchmarks/results."""
    root = Path(__file__).parents[2]
    if not (root / "benchmarks" / "__main__.py").is_file():
        raise BackendError("the benchmarks are not part of the installed package; run this in a source checkout")
    missing = [module for module in ("cv2", "elasticdeform", "pytest") if find_spec(module) is None]
    if missing:
        raise BackendError(f"the benchmarks need {', '.join(missing)}; `make bench` installs what they compare with")
    command = [sys.executable, "-m", "benchmarks", *(names or []), *(["--quick"] if quick else [])]
    done = subprocess.run(command + ([] if device == "auto" else ["--device", device]), cwd=root)
    if done.returncode:
        raise typer.Exit(done.returncode)
    say(f"wrote {root / 'benchmarks' / 'results'}")
