"""Grey values as they lie in a file -> a segmentation: normalisation, overlap-tile, threshold and objects in one place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from unet_fast.checks import check_choice
from unet_fast.data import cores
from unet_fast.errors import InputError
from unet_fast.predict.cores import core_instances, levels_of
from unet_fast.predict.instances import MIN_SIZE, foreground_instances, instance_dtype
from unet_fast.predict.overlap_tile import OUTPUTS, OverlapTile

# how a network was taught to keep touching objects apart, see :class:`unet_fast.train.TrainConfig`
SEPARATE = ("ridge", "cores")


class Pages(Protocol):
    """Anything with a length whose items are images (H, W) or (C, H, W): an array, a memory map, a list, a reader."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class Predictor:
    """All that stands between an image as stored and a segmentation, decided once.

    Args:
        model: the network, see :class:`OverlapTile`.
        preprocess: applied to each image as (1, C, H, W), such as :func:`unet_fast.data.normalize`; None: nothing.
        output: "probabilities" (of all classes), "labels" (class numbers) or "instances" (numbered objects, see
            :func:`unet_fast.predict.foreground_instances`).
        threshold: what the foreground probability must exceed, for instances and for labels of two classes; None: 0.5
            (for labels of more classes: the most probable one). The foreground is all but class 0.
        min_size: instances of fewer pixels are removed.
        separate: "ridge": instances are the components of the foreground. "cores": the three classes of the network are
            background, rim and core of an object, see :func:`unet_fast.data.cores.rims_and_cores`; instances are what grows
            out of the cores, see :func:`unet_fast.predict.cores.core_instances`, and probabilities and labels know background
            and foreground only.
        options: the other arguments of :class:`OverlapTile` (tile, padding, batch_size, device, amp, tta, progress).

    Call it with one image (H, W) or (C, H, W), or a stack (N, C, H, W), a tensor or an array. It returns an array:
    (N, K, H, W) float32 probabilities; (N, H, W) labels, uint8, or uint16 with more than 256 classes; (N, H, W) instances,
    uint16, or uint32 for images so large that they could hold more.

    Raises:
        InputError: an unknown output, a threshold outside [0, 1], a negative ``min_size``, and what :class:`OverlapTile` raises.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        preprocess: Callable[[np.ndarray], np.ndarray] | None = None,
        output: str = "probabilities",
        threshold: float | None = None,
        min_size: int = MIN_SIZE,
        separate: str = "ridge",
        **options: Any,
    ) -> None:
        check_choice("output", output, (*OUTPUTS, "instances"))
        check_choice("separate", separate, SEPARATE)
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"threshold is {threshold}, expected a probability from 0 to 1")
        if min_size < 0:
            raise InputError(f"min_size is {min_size}, expected a number of pixels of at least 0")
        self.preprocess, self.output, self.min_size = preprocess, output, min_size
        self.threshold = 0.5 if threshold is None else threshold
        # whether probabilities are compared with a threshold here, image by image, unless the most probable class is wanted
        classes = getattr(model, "num_classes", 0)
        self.cores = separate == "cores"
        if self.cores and classes != cores.NUM_CLASSES:
            raise InputError(
                f"separate is 'cores', for a network of {cores.NUM_CLASSES} classes (background, rim, core), but this one has "
                f"{classes}"
            )
        known = self.cores or (threshold is not None and classes <= 2)
        self.compared = output == "instances" or (output == "labels" and known)
        self.tiles = OverlapTile(model, output="probabilities" if self.compared else output, **options)

    @property
    def num_classes(self) -> int:
        """Classes of the result."""
        return 2 if self.cores else self.tiles.num_classes

    @property
    def levels(self) -> bool:
        """Whether instances grow out of levels (:mod:`unet_fast.predict.cores`) rather than being components of a mask."""
        return self.cores and self.output == "instances"

    def dtype(self, size: tuple[int, int]) -> np.dtype:
        """Of the result for images of ``size`` (height, width)."""
        if self.output == "instances":
            return instance_dtype(size, self.min_size)
        if self.output == "labels":
            return np.dtype(np.uint8 if self.num_classes <= 256 else np.uint16)
        return np.dtype(np.float32)

    def __call__(self, image: Tensor | np.ndarray) -> np.ndarray:
        """Segment one image or a stack; shapes and dtypes are stated in the class."""
        images = image.numpy(force=True) if isinstance(image, Tensor) else np.asarray(image)
        images = images[(None,) * max(0, 4 - images.ndim)]
        if images.ndim != 4 or len(images) == 0:
            raise InputError(
                f"image has shape {np.shape(image)}, expected (H, W), (C, H, W) or (N, C, H, W), not empty"
            )
        return np.concatenate([self._one(images[index : index + 1]) for index in range(len(images))])

    def _one(self, image: np.ndarray) -> np.ndarray:
        """(1, C, H, W) -> (1, ...)."""
        result = np.asarray(self.tiles(image if self.preprocess is None else self.preprocess(image)))
        if self.levels:
            result = core_instances(levels_of(result, self.threshold)[0], min_size=self.min_size)[None]
        elif self.compared:
            result = self.above(result)
            if self.output == "instances":
                result = foreground_instances(result[0], threshold=0.5, min_size=self.min_size)[None]
        elif self.cores:
            result = np.stack([result[:, 0], 1 - result[:, 0]], axis=1)
        return result.astype(self.dtype((image.shape[-2], image.shape[-1])), copy=False)

    def above(self, probabilities: np.ndarray) -> np.ndarray:
        """Where the foreground of probabilities (N, K, H, W) exceeds the threshold, (N, H, W) bool."""
        foreground = probabilities[:, 0] if probabilities.shape[1] == 1 else 1 - probabilities[:, 0]
        return foreground > self.threshold

    def write(self, pages: Pages, path: str | os.PathLike[str], *, progress: bool = True) -> None:
        """Segment every page and write one multi-page TIFF; see :func:`unet_fast.predict.predict_stack`."""
        from unet_fast.predict.stack import write_stack_of

        write_stack_of(self, pages, Path(path), progress=progress)
