"""Prediction of stacks that need not fit into memory: one page is read, predicted and written at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from unet_fast.data.stacks import new_tiff
from unet_fast.errors import InputError
from unet_fast.predict.instances import MIN_SIZE
from unet_fast.predict.predictor import Pages, Predictor


def predict_stack(
    model: nn.Module,
    pages: Pages,
    path: str | os.PathLike[str],
    *,
    preprocess: Callable[[np.ndarray], np.ndarray] | None = None,
    progress: bool = True,
    output: str = "probabilities",
    threshold: float | None = None,
    min_size: int = MIN_SIZE,
    **options: Any,
) -> None:
    """Predict every page and write the results to one multi-page TIFF, holding one page in memory at a time.

    The file is deflate-compressed, a BigTIFF if it may exceed 4 GB, and appears under its name only when complete. It
    holds

    - probabilities: (N, H, W) float32 of the foreground, class 1 of 2 (or the one class of a sigmoid network);
      (N, K, H, W) float32 with K > 2 classes;
    - labels (``output="labels"``): (N, H, W) uint8, or uint16 with more than 256 classes;
    - objects (``output="instances"``): (N, H, W) uint16 (uint32 for images so large that they could hold more), numbered
      from 1 in every page.

    Args:
        model: the network, see :class:`OverlapTile`.
        pages: anything with ``len`` and integer indexing whose items are images (H, W) or (C, H, W) of one size.
        path: a name that ends in .tif or .tiff.
        progress: show a progress bar over the pages.
        preprocess, output, threshold, min_size, options: as in :class:`unet_fast.predict.Predictor`.

    Raises:
        InputError: no pages, pages of different sizes, a page that cannot be read, a name that is not a TIFF's, or what
            :class:`OverlapTile` raises, with the number of the page.
        OSError: the file cannot be written.
    """
    predictor = Predictor(
        model, preprocess=preprocess, output=output, threshold=threshold, min_size=min_size, **options
    )
    predictor.write(pages, path, progress=progress)


def write_stack_of(predictor: Predictor, pages: Pages, path: Path, *, progress: bool) -> None:
    """:func:`predict_stack` with a predictor that exists."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(f"the prediction is written as TIFF, but its name is {os.fspath(path)!r}; end it in .tif")
    if len(pages) == 0:
        raise InputError("there are no pages to predict; expected at least one image")
    size = _read(pages, 0).shape[-2:]
    probabilities = predictor.output == "probabilities"
    all_classes = probabilities and predictor.num_classes > 2
    shape = (len(pages), *((predictor.num_classes,) if all_classes else ()), *size)
    dtype = predictor.dtype((int(size[0]), int(size[1])))

    def planes() -> Iterator[np.ndarray]:
        from tqdm.auto import tqdm

        with tqdm(total=len(pages), desc="predict", unit="image", disable=not progress) as bar:
            for index in range(len(pages)):
                page = _read(pages, index)
                if page.shape[-2:] != size:
                    raise InputError(
                        f"page {index} has size {page.shape[-2]} x {page.shape[-1]}, but page 0 has {size[0]} x {size[1]}; "
                        "predict images of different sizes one by one"
                    )
                try:
                    result = predictor(page)[0]
                except InputError as error:
                    raise type(error)(f"page {index}: {error}") from error
                # before a page is handed over: whoever takes the last one asks for no more
                bar.update()
                if all_classes:
                    yield from result
                else:
                    yield result[-1] if probabilities else result

    with new_tiff(path, shape, dtype) as write:
        write(planes(), maxworkers=1)  # with threads tifffile asks for many pages at once and holds them all


def _read(pages: Pages, index: int) -> np.ndarray:
    """Page ``index`` as (1, C, H, W)."""
    try:
        page = pages[index]
    except OSError as error:  # inside atomic_path it would be taken for a failure to write
        raise InputError(f"page {index} cannot be read: {error}") from error
    page = page.numpy(force=True) if isinstance(page, Tensor) else np.asarray(page)
    if page.ndim not in (2, 3):
        raise InputError(f"page {index} has shape {page.shape}, expected (H, W) or (C, H, W)")
    return page[(None,) * (4 - page.ndim)]
