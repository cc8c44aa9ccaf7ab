"""Training data, prepared once and resident on the device: normalised images, label maps, class weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unet_fast import data
from unet_fast.data.touching import separate_touching
from unet_fast.errors import InputError

IGNORED = -100  # the ignore_index of all losses


@dataclass(frozen=True)
class DeviceData:
    """Images and labels of one stack, resident on a device.

    Attributes:
        images: (N, C, H, W) float32, each slice and channel with mean 0 and standard deviation 1.
        maps: label maps (N, H, W) that are warped together: the instances (int32), with more than two classes the class
            map (int32), and with ignored pixels the mask of the others (uint8).
        roles: what each map is: "instances", "classes", "counted".
        class_weights: (K,) float32.
        class_counts: (K,) float32, counted pixels of each class.
        num_classes: K, at least 2.
    """

    images: torch.Tensor
    maps: tuple[torch.Tensor, ...]
    roles: tuple[str, ...]
    class_weights: torch.Tensor
    class_counts: torch.Tensor
    num_classes: int

    def split(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(classes int64, IGNORED where nothing counts; instances int32) of maps that were warped."""
        named = dict(zip(self.roles, maps, strict=True))
        instances = named["instances"]
        classes = named["classes"].long() if "classes" in named else (instances > 0).long()
        if "counted" in named:
            classes = classes.masked_fill(named["counted"] == 0, IGNORED)
        return classes, instances


def prepare(pair: data.Pair, device: torch.device, *, balance: bool) -> DeviceData:
    """Normalise a pair of stacks and move it to ``device``; ``InputError`` when the last class, or all but one, is absent."""
    if len(pair.images) == 0:
        raise InputError("there are no training images: the validation slices take all of them")
    instances = data.to_instances(pair.labels, pair.kind)
    if pair.kind == "instances" or pair.num_classes > 2:
        # of a mask the components do not touch, but for corners, and what was drawn there stays foreground
        instances = separate_touching(instances)
    maps: dict[str, np.ndarray] = {"instances": instances}
    classes = instances > 0
    if pair.kind == "classes" and pair.num_classes > 2:
        maps["classes"] = classes = data.to_classes(pair.labels, pair.kind).astype(np.int32)
    if pair.ignored is not None and pair.ignored.any():
        maps["counted"] = (~pair.ignored).astype(np.uint8)
        classes = classes[~pair.ignored]
    counts = np.bincount(classes.ravel(), minlength=pair.num_classes)
    weights = np.ones(pair.num_classes, dtype=np.float32)
    if balance:
        present = counts > 0
        # gaps in the numbers of the classes cannot be closed by another num_classes, so they are accepted and weigh nothing
        if not present[-1] or np.count_nonzero(present) < 2:
            missing = ", ".join(str(k) for k in np.flatnonzero(~present))
            raise InputError(f"class {missing} does not occur in the training labels; label it or lower num_classes")
        # inverse frequencies, scaled so that the mean weight over all training pixels is 1
        weights = np.where(present, counts.sum() / (present.sum() * np.maximum(counts, 1)), 0).astype(np.float32)
    return DeviceData(
        images=torch.from_numpy(data.normalize(pair.images)).to(device),
        maps=tuple(torch.from_numpy(np.ascontiguousarray(m)).to(device) for m in maps.values()),
        roles=tuple(maps),
        class_weights=torch.from_numpy(weights).to(device),
        class_counts=torch.from_numpy(counts.astype(np.float32)).to(device),
        num_classes=pair.num_classes,
    )


def default_validation(count: int) -> list[int]:
    """The slices held out when nobody says which: the last fifth, none of fewer than 5."""
    return list(range(count - count // 5, count))


def hold_out(pair: data.Pair, slices: list[int]) -> tuple[data.Pair, data.Pair | None]:
    """(training, validation): the slices are held out; without any there is no validation."""
    if not slices:
        return pair, None
    chosen = set(slices)
    return pair.select([i for i in range(len(pair)) if i not in chosen]), pair.select(sorted(chosen))
