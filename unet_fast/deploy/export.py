"""Export: a trained network as a file for other programs, compared with torch before it gets its name."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from unet_fast.checks import check_choice
from unet_fast.deploy.description import Description
from unet_fast.deploy.program import difference, exported_geometry, exported_program, plain_copy
from unet_fast.errors import BackendError, InputError
from unet_fast.files import atomic_path, refuse_read

if TYPE_CHECKING:
    from unet_fast.run import Run

FORMATS = {"onnx": ".onnx", "bioimageio": ".zip", "torch-export": ".pt2"}
TOLERANCE = 1e-4  # of the largest logit, or of 1


def export(
    model: nn.Module | Run, path: str | os.PathLike[str], *, format: str | None = None, **about: Any
) -> dict[str, Any]:
    """Write a network for other programs, and make sure that the file computes what torch computes.

    Args:
        model: a network of :mod:`unet_fast.models`, or a :class:`unet_fast.run.Run`, whose way of predicting (normalisation,
            padding, tile, threshold) is then written down as well.
        path: the file; its suffix is that of the format.
        format: "onnx" (.onnx: operators of the standard only, batch, height and width are free), "bioimageio" (.zip: a
            package of the bioimage.io model description 0.5 with ONNX, weights, test images and cover) or "torch-export"
            (.pt2: ``torch.export``, of torch's own operators). None: by the suffix.
        about: of "bioimageio": ``name``, ``description``, ``authors``, ``cite``, ``license``, ``documentation``, see
            :func:`unet_fast.deploy.bioimageio.write_package`.

    Returns:
        ``{"path", "format", "difference"}``: the largest difference to torch at three sizes, relative to the largest logit.
        ``difference`` is None where no runtime for the format is installed.

    Raises:
        InputError: an unknown format, a suffix that is not the format's, what ``about`` lacks.
        InputTypeError: the model is none of this package.
        BackendError: a library is missing (the message has the pip command), or the file does not compute what torch does.
        OSError: the file cannot be written.

    The grey values that the network takes are the normalised ones: see "normalization" in the file's metadata.
    """
    target = Path(path)
    if format is None:
        format = next((name for name, suffix in FORMATS.items() if suffix == target.suffix.lower()), None)
        if format is None:
            raise InputError(
                f"no format is named like {target.name!r}; end it in {', '.join(FORMATS.values())}, or give format"
            )
    check_choice("format", format, tuple(FORMATS))
    if target.suffix.lower() != FORMATS[format]:
        raise InputError(
            f"the format {format} is written to files that end in {FORMATS[format]}, not to {target.name!r}"
        )
    refuse_read([target])
    settings = getattr(model, "settings", None)
    plain = plain_copy(getattr(model, "model", None) if settings is not None else model)
    description = dataclasses.replace(Description.of(plain, settings), geometry=exported_geometry(plain))
    if format != "bioimageio" and about:
        raise InputError(f"{', '.join(about)} describe a bioimage.io package; the format {format} has no place for it")
    if format == "onnx":
        from unet_fast.deploy.onnx_file import write_onnx

        with atomic_path(target) as temporary:
            write_onnx(plain, temporary, description)
            worst = _check_onnx(plain, temporary, target)
    elif format == "torch-export":
        with atomic_path(target) as temporary:
            torch.export.save(exported_program(plain), temporary)
            worst = difference(plain, torch.export.load(temporary).module())
            _refuse(worst, target)
    else:
        from unet_fast.deploy.bioimageio import write_package

        worst = write_package(plain, target, description, **about)
    return {"path": str(target), "format": format, "difference": worst}


def _check_onnx(plain: nn.Module, written: Path, target: Path) -> float | None:
    """The largest difference of an ONNX file to torch, which is no larger than the tolerance; None without a runtime."""
    from unet_fast.deploy.extras import is_installed

    if not is_installed("onnxruntime"):
        return None
    from unet_fast.deploy.engines.onnxruntime import OnnxRuntimeEngine

    worst = difference(plain, OnnxRuntimeEngine.of_file(written))
    _refuse(worst, target)
    return worst


def _refuse(worst: float, target: Path) -> None:
    if not worst <= TOLERANCE:
        raise BackendError(f"{target} was not written: it would differ from torch by {worst:.2g} of the largest logit")
