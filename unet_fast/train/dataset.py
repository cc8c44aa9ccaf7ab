"""Training data, prepared once and resident on the device: normalised images, label maps, class weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch

from unet_fast import data
from unet_fast.augment import parameters
from unet_fast.data import cores
from unet_fast.data.parallel import in_order
from unet_fast.data.statistics import measure
from unet_fast.data.touching import separate_touching
from unet_fast.errors import InputError
from unet_fast.labels import IGNORED, Kind, count_classes

# kept as they are stored, two bytes a pixel at most, and normalised on the way into a tile; a wider image becomes float32
_KEPT = ("uint8", "int8", "int16", "uint16", "float16")


@dataclass(frozen=True)
class DeviceData:
    """Images and labels of one stack, resident on a device in few bytes a pixel.

    Attributes:
        images: (N, C, H, W) in the stored dtype where that has one or two bytes (uint16 as the same bits of int16), else
            float32 and normalised.
        unsigned: whether the images hold the bits of uint16.
        mean, scale: (N, C, 1, 1) float32; ``(image - mean) * scale`` has mean 0 and standard deviation 1 in each slice
            and channel. A constant one has scale 0.
        maps: label maps (N, H, W) that are warped together: the instances (the narrowest integers that hold them), with
            more than two classes, or rims and cores, the class map, and with ignored pixels the mask of the others (uint8).
        roles: what each map is: "instances", "classes", "counted".
        class_weights: (K,) float32.
        class_counts: (K,) float32, counted pixels of each class.
        num_classes: K, at least 2.
    """

    images: torch.Tensor
    unsigned: bool
    mean: torch.Tensor
    scale: torch.Tensor
    maps: tuple[torch.Tensor, ...]
    roles: tuple[str, ...]
    class_weights: torch.Tensor
    class_counts: torch.Tensor
    num_classes: int

    #: whether the images are windows whose place was drawn already, so that tiles are cut about their centres
    placed: ClassVar[bool] = False

    def load(self, step: int) -> None:
        """Make the images those of ``step``; resident ones are those of all steps."""

    def close(self) -> None:
        """End what fetches images."""

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """(count,) int64: which image each tile is taken from."""
        return parameters.draw_indices(count, len(self.images), device=self.images.device, generator=generator)

    def take(self, index: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Images (B, C, H, W) float32, normalised, and maps (B, H, W) of ``index`` (B,), which stays on the device."""
        images, mean, scale, *maps = (
            each.index_select(0, index) for each in (self.images, self.mean, self.scale, *self.maps)
        )
        if self.unsigned:
            images = images.to(torch.int32).bitwise_and(0xFFFF)
        return images.float().sub(mean).mul(scale), tuple(maps)

    def split(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(classes int64, IGNORED where nothing counts; instances int32) of maps that were warped."""
        named = dict(zip(self.roles, maps, strict=True))
        instances = named["instances"]
        classes = named["classes"].long() if "classes" in named else (instances > 0).long()
        if "counted" in named:
            classes = classes.masked_fill(named["counted"] == 0, IGNORED)
        return classes, instances


def prepare(pair: data.Pair, device: torch.device, *, balance: bool, separate: str = "ridge") -> DeviceData:
    """Move a pair of stacks to ``device``; ``InputError`` when the last class, or all but one, is absent.

    With ``separate="cores"`` the classes are background, rim and core of each object, see :mod:`unet_fast.data.cores`.

    Slice by slice: besides the pair and what comes out, nothing of the size of a stack is made.
    """
    if len(pair.images) == 0:
        raise InputError("there are no training images: the validation slices take all of them")
    by_cores = separate == "cores"
    if by_cores:
        cores.check_kind(pair.kind)
    several = pair.kind == "classes" and pair.num_classes > 2
    num_classes = cores.NUM_CLASSES if by_cores else pair.num_classes
    ignored = pair.ignored if pair.ignored is not None and pair.ignored.any() else None
    instances = _Narrow(pair.labels.shape)
    counts = np.zeros(num_classes, dtype=np.int64)
    objects = in_order(lambda labels: shapes(labels, pair.kind, pair.num_classes), pair.labels, pair.labels[0].size)
    for index, image in enumerate(objects):
        instances.put(index, image)
    class_maps = pair.labels if several else instances.array
    if by_cores:
        class_maps, _ = cores.classes_of(instances.array, pair.labels)
    for index, classes in enumerate(class_maps):
        classes = classes if several or by_cores else classes > 0
        counted = classes if ignored is None else classes[~ignored[index]]
        counts += count_classes(counted, num_classes)
    maps: dict[str, np.ndarray] = {"instances": instances.array}
    if by_cores:
        maps["classes"] = class_maps
    elif several:
        maps["classes"] = pair.labels if pair.labels.dtype in _LABELS else pair.labels.astype(np.int32)
    if ignored is not None:
        maps["counted"] = (~ignored).view(np.uint8)
    weights = class_weights(counts, balance=balance)
    images, mean, scale = _images(pair.images)
    return DeviceData(
        images=images.to(device),
        unsigned=pair.images.dtype == np.uint16,
        mean=mean.to(device),
        scale=scale.to(device),
        maps=tuple(_tensor(each).to(device) for each in maps.values()),
        roles=tuple(maps),
        class_weights=torch.from_numpy(weights).to(device),
        class_counts=torch.from_numpy(counts.astype(np.float32)).to(device),
        num_classes=num_classes,
    )


def shapes(label: np.ndarray, kind: Kind, num_classes: int) -> np.ndarray:
    """The objects (H, W) int32 of one label image that the weight map tells apart; touching ones are separated."""
    found = data.to_instances(label[None], kind)
    if kind == "instances" or num_classes > 2:
        # of a mask the components do not touch, but for corners, and what was drawn there stays foreground
        found = separate_touching(found)
    return found[0]


def class_weights(counts: np.ndarray, *, balance: bool) -> np.ndarray:
    """(K,) float32 of counted pixels (K,): inverse frequencies whose mean over all training pixels is 1, or 1 each.

    ``InputError`` when the last class, or all but one, is absent.
    """
    if not balance:
        return np.ones(len(counts), np.float32)
    present = counts > 0
    # gaps in the numbers of the classes cannot be closed by another num_classes, so they are accepted and weigh nothing
    if not present[-1] or np.count_nonzero(present) < 2:
        missing = ", ".join(str(k) for k in np.flatnonzero(~present))
        raise InputError(f"class {missing} does not occur in the training labels; label it or lower num_classes")
    return np.where(present, counts.sum() / (present.sum() * np.maximum(counts, 1)), 0).astype(np.float32)


# of the objects in the training labels: a prediction may lack a part of the smallest, but of noise it has less
_SMALLEST_SHARE, _SMALLEST_PERCENT = 0.75, 1.0


def least_size(pair: data.Pair) -> int | None:
    """Pixels that an object must have to be one: three quarters of what all but 1 % of the labelled ones have; None for none."""
    areas = [np.bincount(data.to_instances(labels[None], pair.kind).ravel())[1:] for labels in pair.labels]
    known = np.concatenate([area[area > 0] for area in areas] or [np.zeros(0, np.int64)])
    return max(1, int(_SMALLEST_SHARE * np.percentile(known, _SMALLEST_PERCENT))) if known.size else None


_LABELS = (np.uint8, np.int32)


class _Narrow:
    """Label maps that are put in one by one, in the narrowest integers that hold them all."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.array = np.zeros(shape, dtype=np.uint8)

    def put(self, index: int, image: np.ndarray) -> None:
        largest = image.max(initial=0)
        while largest > np.iinfo(self.array.dtype).max:
            self.array = self.array.astype(np.int16 if self.array.dtype == np.uint8 else np.int32)
        self.array[index] = image


def _images(images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images as they are kept, mean and scale of each slice and channel."""
    mean = np.zeros((*images.shape[:2], 1, 1), dtype=np.float32)
    scale = np.ones_like(mean)
    if images.dtype.name not in _KEPT:
        return torch.from_numpy(data.normalize(images)), torch.from_numpy(mean), torch.from_numpy(scale)
    for index, image in enumerate(images):
        try:
            found = measure(partial(iter, (image,)))
        except InputError as error:
            raise InputError(
                f"slice {index} of the images holds NaN or infinite values; replace them, or leave it out"
            ) from error
        mean[index, :, 0, 0] = found.mean
        scale[index, :, 0, 0] = np.where(found.std == 0, 0, 1 / np.where(found.std == 0, 1, found.std))
    bits = images.view(np.int16) if images.dtype == np.uint16 else images
    return _tensor(bits), torch.from_numpy(mean), torch.from_numpy(scale)


def _tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor of the same memory where that may be written and lies in one piece, else of a copy."""
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def default_validation(count: int) -> list[int]:
    """The slices held out when nobody says which: the last fifth, none of fewer than 5."""
    return list(range(count - count // 5, count))


def hold_out(pair: data.Pair, slices: list[int]) -> tuple[data.Pair, data.Pair | None]:
    """(training, validation): the slices are held out; without any there is no validation."""
    if not slices:
        return pair, None
    chosen = set(slices)
    return pair.select([i for i in range(len(pair)) if i not in chosen]), pair.select(sorted(chosen))
