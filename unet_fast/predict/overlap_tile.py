"""Overlap-tile: the network applied to images of any size, tile by tile, without seams."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from unet_fast._repr import call_repr
from unet_fast.checks import check_choice
from unet_fast.errors import InputError, InputTypeError
from unet_fast.models.geometry import Geometry
from unet_fast.models.wrapped import evaluating, unwrapped
from unet_fast.predict.probe import probe
from unet_fast.predict.tiling import PADDINGS, AxisPlan, gather_window, plan_axis

OUTPUTS = ("probabilities", "labels")
TTA = (1, 7, 8)
Image = TypeVar("Image", Tensor, np.ndarray)


class OverlapTile:
    """Apply a segmentation network to images of any size; the result does not depend on the tiling.

    The image is extended on all sides by the context that the network needs, and cut into overlapping inputs whose
    outputs cover it. Tiles start at multiples of the network's total stride, so that its max-pooling sees the same
    grid everywhere; the result therefore equals (to rounding) the network applied once to the whole extended image:

    - valid convolutions: extended by ``model.margin`` at the top and left, and by ``model.margin`` plus what the next
      legal size takes at the bottom and right; the output is cropped to the image;
    - "same" (zero-padded) convolutions: extended by the receptive radius, rounded up to a multiple of the stride; the
      output is cropped to the image, so that zero padding reaches none of its pixels.

    Instance and group normalisation take their statistics from the whole input; with them an image that takes several
    tiles cannot be exactly that of one, and a warning says so once.

    A network of another library does not state its sizes. They are found by trying it, in a second or two: which inputs it
    takes, its total stride, by how much its output is smaller, and how far zero padding reaches into it (where a side of
    the input is NaN, what of the output is). A tile is compared with its place in a larger image before anything is
    predicted.

    Args:
        model: a network of :mod:`unet_fast.models`, or any other ``nn.Module`` that makes one map of logits (N, K, H, W) of
            images (N, C, H, W), of MONAI, nnU-Net or segmentation_models_pytorch, for example; compiled or not. It is run in
            eval mode, its mode is restored afterwards. Or an engine of :mod:`unet_fast.deploy`.
        tile: the largest output of a tile in pixels; rounded up to a legal output size of the network. The tiles of
            an image are equal and as small as their number allows.
        padding: how the context beyond the image is extrapolated: "mirror" (``d c b | a b c d | c b a``, repeated
            where the image is smaller than the context), "zeros" or "nearest".
        batch_size: tiles per forward pass.
        output: "probabilities" (softmax over the classes; sigmoid for a network with one) or "labels" (the most
            probable class; for one class, 1 where its probability exceeds 0.5).
        device: where the network runs; it is moved there. By default where it is.
        amp: run the network under bfloat16 autocast.
        tta: 1, or 8 to average the probabilities over the quarter turns and flips of every tile. 7 leaves out the last
            of the eight: the U-Net's paper averages over "7 rotated versions" of an EM image without naming the angles,
            and seven of these need neither interpolation nor more context than the tile has.
        progress: show a progress bar over the tiles.

    Call it with an image (H, W), (C, H, W) or (N, C, H, W), a tensor or a NumPy array of any real dtype, with the
    grey values that the network was trained on (see :func:`unet_fast.data.normalize`). It returns (N, K, H, W)
    float32 probabilities or (N, H, W) int64 labels in the same container, on the image's device.

    Raises:
        InputError: an option out of range, an empty image, a wrong number of channels or dimensions, NaN or infinite
            values in the image or out of the network; for a network that does not state its sizes, why none were found.
        InputTypeError: the image is not a tensor or array of a real dtype, or the model is neither a module nor an engine.

    Equivalent to, for a network with valid convolutions and a 512 x 512 image::

        size = model.geometry.covering_output(512)
        m, more = model.margin, size - 512
        whole = np.pad(image, ((0, 0), (0, 0), (m, m + more), (m, m + more)), mode="reflect")
        torch.softmax(model(torch.from_numpy(whole)), dim=1)[:, :, :512, :512]
    """

    def __init__(
        self,
        model: nn.Module | Any,
        tile: int = 388,
        padding: str = "mirror",
        *,
        batch_size: int = 1,
        output: str = "probabilities",
        device: str | torch.device | None = None,
        amp: bool = False,
        tta: int = 1,
        progress: bool = False,
    ) -> None:
        stated: Any = model
        if not callable(model) or not isinstance(getattr(model, "geometry", None), Geometry):
            if not isinstance(model, nn.Module):
                raise InputTypeError(f"model is a {type(model).__name__}, expected a torch.nn.Module or an engine")
            stated = probe(unwrapped(model))
        geometry: Geometry = stated.geometry
        for name, value in (("tile", tile), ("batch_size", batch_size)):
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise InputTypeError(f"{name} is {value!r}, expected an int")
            if value < 1:
                raise InputError(f"{name} is {value}, expected at least 1")
        check_choice("padding", padding, PADDINGS)
        check_choice("output", output, OUTPUTS)
        if tta not in TTA:
            raise InputError(f"tta is {tta!r}, expected 1 (off), 7 or 8 (all quarter turns and flips)")
        if device is not None and not isinstance(model, nn.Module):
            raise InputError("an engine stays on the device that it was made for; give device to the engine")
        self.model = model if device is None else model.to(device)
        self.tile, self.padding, self.batch_size = int(tile), padding, int(batch_size)
        self.output, self.amp, self.tta, self.progress = output, amp, tta, progress
        self.in_channels, self.num_classes = int(stated.in_channels), int(stated.num_classes)
        self._dependence = getattr(stated, "tile_dependence", None)
        self._step = geometry.step
        # zero padding spoils this many pixels of an output, which are computed and thrown away
        self._spoilt, self._context = geometry.spoilt, geometry.margin + geometry.spoilt
        self._smallest = geometry.smallest_output
        self._warned = False

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self._place[0]

    @property
    def _place(self) -> tuple[torch.device, torch.dtype]:
        """Device and dtype of the inputs that the network takes; an engine says so itself."""
        if not isinstance(self.model, nn.Module):
            return self.model.device, self.model.dtype
        weight = next(self.model.parameters())
        return weight.device, weight.dtype

    def __repr__(self) -> str:
        return call_repr(self, shortened=("model",))

    def __call__(self, image: Image) -> Image:
        """Predict one image or a stack; shapes and dtypes are stated in the class."""
        images = self._checked(image)
        count, _, height, width = images.shape
        shape = (count, height, width) if self.output == "labels" else (count, self.num_classes, height, width)
        dtype = torch.int64 if self.output == "labels" else torch.float32
        result = torch.empty(shape, dtype=dtype, device=images.device if isinstance(images, Tensor) else "cpu")
        rows, columns = self.plan(height, width)
        with self.evaluating():
            for places, tiles in self._batches(images, rows, columns):
                for (index, y, x), tile in zip(places, tiles, strict=True):
                    inside = tile[..., : height - y, : width - x]
                    result[index, ..., y : y + inside.shape[-2], x : x + inside.shape[-1]] = inside
        return result if isinstance(image, Tensor) else result.numpy()

    def plan(self, height: int, width: int) -> tuple[AxisPlan, AxisPlan]:
        """The rows and the columns of tiles of an image of this size."""
        rows, columns = (plan_axis(length, self.tile, self._smallest, self._step) for length in (height, width))
        if len(rows.starts) * len(columns.starts) > 1:
            self._warn_if_the_tiling_matters()
        return rows, columns

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The state in which :meth:`predict` is to be called: eval mode, without gradients."""
        # an engine knows no other mode
        mode = evaluating(self.model) if isinstance(self.model, nn.Module) else nullcontext()
        with mode, torch.inference_mode():
            yield

    def gather(self, image: Any, corners: Sequence[tuple[int, int]], rows: AxisPlan, columns: AxisPlan) -> Tensor:
        """The inputs (n, C, h, w) of the tiles of a plan whose outputs begin at ``corners`` (y, x).

        ``image`` is (C, H, W): a tensor, an array, or anything with a ``shape`` that gives its windows by slices.
        """
        size = (rows.size + 2 * self._context, columns.size + 2 * self._context)
        windows = [gather_window(image, (y - self._context, x - self._context), size, self.padding) for y, x in corners]
        device, dtype = self._place
        return torch.stack(windows).to(device, dtype)

    def _batches(
        self, images: Tensor | np.ndarray, rows: AxisPlan, columns: AxisPlan
    ) -> Iterator[tuple[list[tuple[int, int, int]], Tensor]]:
        """Yield (image index, y, x) of up to ``batch_size`` tiles and their predictions (n, [K,] h, w)."""
        places = list(itertools.product(range(images.shape[0]), rows.starts, columns.starts))
        batches = [places[i : i + self.batch_size] for i in range(0, len(places), self.batch_size)]
        for batch in _with_progress(batches, self.progress):
            inputs = torch.cat([self.gather(images[index], [(y, x)], rows, columns) for index, y, x in batch])
            yield batch, self.predict(inputs)

    def predict(self, inputs: Tensor) -> Tensor:
        """Inputs (n, C, h, w) -> predictions of their inner part, (n, K, ...) probabilities or (n, ...) labels."""
        mean: Tensor | None = None
        for version in range(self.tta):
            with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.amp):
                logits = self.model(dihedral(inputs, version))
            if self._spoilt:
                logits = logits[..., self._spoilt : -self._spoilt, self._spoilt : -self._spoilt]
            logits = logits.float()
            probabilities = logits.sigmoid() if self.num_classes == 1 else logits.softmax(dim=1)
            if not bool(probabilities.isfinite().all()):
                raise InputError(
                    "the network returns NaN or infinite values: its weights are damaged, or its training diverged; "
                    "train it again with a smaller learning rate, or fetch the weights again"
                )
            probabilities = dihedral(probabilities, version, inverse=True)
            mean = probabilities if mean is None else mean + probabilities
        assert mean is not None  # tta is at least 1
        if self.tta > 1:
            mean = mean / self.tta
        if self.output == "probabilities":
            return mean
        return mean[:, 0].gt(0.5).long() if self.num_classes == 1 else mean.argmax(dim=1)

    def _checked(self, image: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """``image`` as (N, C, H, W), or one clear error."""
        if not isinstance(image, Tensor | np.ndarray):
            raise InputTypeError(f"image is a {type(image).__name__}, expected a torch.Tensor or a numpy.ndarray")
        if isinstance(image, Tensor):
            real, floating = not image.is_complex() and not image.is_quantized, image.is_floating_point()
        else:
            real, floating = image.dtype.kind in "buif", image.dtype.kind == "f"
        if not real:
            raise InputTypeError(f"image has dtype {image.dtype}, expected integers or real floating-point numbers")
        if not 2 <= image.ndim <= 4:
            raise InputError(
                f"image has {image.ndim} dimensions, shape {tuple(image.shape)}; "
                "expected (H, W), (C, H, W) or (N, C, H, W)"
            )
        images = image[(None,) * (4 - image.ndim)]
        if 0 in images.shape:
            raise InputError(f"image is empty: shape {tuple(image.shape)}; expected at least one pixel")
        if images.shape[1] != self.in_channels:
            raise InputError(
                f"image has {images.shape[1]} channels, shape {tuple(image.shape)}; the network expects "
                f"{self.in_channels}; a stack is (N, C, H, W), one of grey images (N, 1, H, W)"
            )
        if floating:
            for index in range(images.shape[0]):
                finite = images[index].isfinite() if isinstance(images, Tensor) else np.isfinite(images[index])
                if not finite.all():
                    which = f"image {index} of {images.shape[0]}" if images.shape[0] > 1 else "image"
                    raise InputError(
                        f"{which} has {int((~finite).sum())} NaN or infinite values; replace them before predicting"
                    )
        return images

    def _warn_if_the_tiling_matters(self) -> None:
        """Say once why the result depends on the tiling (instance and group normalisation, for example)."""
        if not self._warned and self._dependence is not None:
            self._warned = True
            warnings.warn(
                f"the network {self._dependence}, so tiles may differ from the whole image; a larger tile lessens that",
                stacklevel=3,
            )


def dihedral(x: Tensor, version: int, *, inverse: bool = False) -> Tensor:
    """A symmetry of the square: ``version % 4`` quarter turns, then a flip from version 4 on; or its inverse."""
    if not inverse:
        turned = torch.rot90(x, version % 4, (-2, -1))
        return turned.flip(-1) if version >= 4 else turned
    unflipped = x.flip(-1) if version >= 4 else x
    return torch.rot90(unflipped, -(version % 4), (-2, -1))


def _with_progress(batches: list[list[tuple[int, int, int]]], progress: bool) -> Iterator[list[tuple[int, int, int]]]:
    """The batches, with a bar that counts tiles."""
    if not progress:
        yield from batches
        return
    from tqdm.auto import tqdm

    with tqdm(total=sum(map(len, batches)), desc="predict", unit="tile") as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))
