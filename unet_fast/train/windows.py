"""Training data that stay in their files: the windows of every step are drawn, read and normalised ahead of it by threads."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from unet_fast.data import Dataset, Pair, cores
from unet_fast.labels import count_classes
from unet_fast.models import create
from unet_fast.train import distributed, memory
from unet_fast.train.config import TrainConfig, resolve_device
from unet_fast.train.dataset import DeviceData, class_weights, prepare, shapes

SHARE = 0.25  # of the memory of the host, and of the device: a set that needs more stays in its files
VALIDATED = 64  # windows at most
_SIDE = 512  # of those
_AHEAD = 2  # steps a thread
_THREADS = 4
_DEVIATIONS = 4  # of the elastic displacement that a window has room for
_PADS = {"mirror": "reflect", "nearest": "edge", "zeros": "constant"}

Batch = tuple[torch.Tensor, ...]


def resident_bytes(dataset: Dataset) -> int:
    """Bytes of a set that is held in memory: its pixels, its labels and the shapes of its objects."""
    pixels = sum(math.prod(item.size) for item in dataset.items)
    width = max(item.pixels.dtype.itemsize for item in dataset.items)
    # see dataset.prepare: wide pixels become float32; objects are numbered in two bytes at most, as a rule
    return pixels * (dataset.channels * (width if width <= 2 else 4) + dataset.coding.dtype.itemsize + 2)


def too_large(dataset: Dataset, device: torch.device) -> str | None:
    """Why a set is not held in memory, for a person; None where it is."""
    needed = resident_bytes(dataset)
    for place in {"cpu", device.type}:
        where = torch.device("cpu") if place == "cpu" else device
        limit = SHARE * memory.total(where)
        if needed > limit:
            return f"{needed / 2**30:.1f} GiB are more than {SHARE:.0%} of the memory of {where}"
    return None


def held_out_windows(dataset: Dataset) -> Pair:
    """What a run validates on: at most 64 windows, evenly spaced over the images that are held out."""
    height, width = (min(_SIDE, max(item.size[axis] for item in dataset.items)) for axis in (0, 1))
    return dataset.sample((height, width), VALIDATED)


def tiles_in(dataset: Dataset, tile: int) -> int:
    """How many tiles of ``tile`` px cover all images: what an epoch trains on."""
    return sum(math.prod(-(-length // tile) for length in item.size) for item in dataset.items)


def window_side(config: TrainConfig) -> int:
    """Side of a window in pixels: what a tile of the network's input can reach when it is turned and deformed."""
    with torch.device("meta"):
        side = float(create(**config.model).input_size(config.tile))
    angle = math.radians(min(config.augmentation.rotation, 45.0))
    side *= math.cos(angle) + math.sin(angle)
    side += 2 * _DEVIATIONS * config.augmentation.elastic_sigma + 8 * config.augmentation.affine
    return 16 * math.ceil((side + 2) / 16)


class Feed:
    """The windows of each step, made by threads some steps ahead.

    Which windows a step takes depends on the seed and its number alone, so that a run that is continued takes the same ones. With
    ``shift`` a window's centre is uniform over the pixels of all images, else the centre of an image that is drawn by its area.
    """

    def __init__(self, dataset: Dataset, config: TrainConfig, first: int) -> None:
        self._items, self._config, self._first = dataset.items, config, first
        self._kind, self._classes = dataset.kind, max(config.num_classes, 2)
        self._several = dataset.kind == "classes" and dataset.num_classes > 2
        # the width of rims is that of the objects in some windows; pixels of background, rims and cores there
        self._rim: float | None = None
        self.counts_of_cores: np.ndarray | None = None
        if config.separate == "cores":
            cores.check_kind(self._kind)
            self._rim, self.counts_of_cores = _survey_of_cores(sampled(dataset))
        self._ignoring = dataset.coding.ignored is not None or any(item.outside for item in dataset.items)
        self.side = window_side(config)
        self._ends = np.cumsum([math.prod(item.size) for item in self._items])
        threads = max(1, min(_THREADS, os.cpu_count() or 1))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="unet_fast windows")
        self._ahead = _AHEAD * threads
        self._made: dict[int, Future[Batch]] = {}

    @property
    def roles(self) -> tuple[str, ...]:
        """What each map is, see :class:`unet_fast.train.dataset.DeviceData`."""
        return (
            "instances",
            *(["classes"] if self._several or self._rim is not None else []),
            *(["counted"] if self._ignoring else []),
        )

    def batch(self, step: int) -> Batch:
        """Windows (B, C, side, side) float32, normalised, and their maps (B, side, side), of ``step``."""
        wanted = range(step, step + 1 + self._ahead)
        for number in set(self._made).difference(wanted):
            self._made.pop(number).cancel()
        for number in wanted:
            if number not in self._made:
                self._made[number] = self._pool.submit(self.make, number, self._config.batch_size)
        return self._made.pop(step).result()

    def make(self, step: int, count: int) -> Batch:
        """``count`` windows of ``step``; of several processes each makes its own."""
        random = np.random.default_rng((self._config.seed, step))
        drawn = random.integers(self._ends[-1], size=self._config.processes * count)[self._first * count :][:count]
        windows = [self._window(int(pixel)) for pixel in drawn]
        return tuple(torch.from_numpy(np.stack(parts)) for parts in zip(*windows, strict=True))

    def _window(self, pixel: int) -> list[np.ndarray]:
        index = int(np.searchsorted(self._ends, pixel, side="right"))
        item = self._items[index]
        centre = divmod(pixel - (int(self._ends[index - 1]) if index else 0), item.size[1])
        if not self._config.augmentation.shift:
            centre = item.size[0] // 2, item.size[1] // 2
        begin = [middle - self.side // 2 for middle in centre]
        start = max(0, begin[0]), max(0, begin[1])
        stop = [min(length, first + self.side) for length, first in zip(item.size, begin, strict=True)]
        border = [(a - b, b + self.side - c) for a, b, c in zip(start, begin, stop, strict=True)]
        size = stop[0] - start[0], stop[1] - start[1]
        image = item.survey().statistics.apply(item.image_window(start, size))
        label, ignored = item.label_window(start, size)
        maps = [shapes(label, self._kind, self._classes)]
        if self._rim is not None:
            maps.append(cores.rims_and_cores(maps[0], self._rim, label > 0))
        elif self._several:
            maps.append(label.astype(np.uint8 if self._classes <= 256 else np.int32))
        if self._ignoring:
            maps.append(np.ones(size, np.uint8) if ignored is None else (~ignored).view(np.uint8))
        mode = _PADS[self._config.padding]
        padded = np.pad(image, [(0, 0), *border], mode=mode)  # type: ignore[call-overload]  # any of the modes
        return [padded, *(np.pad(each, border, mode=mode) for each in maps)]  # type: ignore[call-overload]

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _apart(pair: Pair) -> np.ndarray:
    """The objects of a pair, touching ones separated."""
    return np.stack([shapes(label, pair.kind, pair.num_classes) for label in pair.labels])


def _survey_of_cores(pair: Pair) -> tuple[float, np.ndarray]:
    """Width of the rims, and pixels of background, rims and cores, of the objects of a pair."""
    classes, width = cores.classes_of(_apart(pair), pair.labels)
    return width, count_classes(classes, cores.NUM_CLASSES)


@dataclass(frozen=True)
class WindowData(DeviceData):
    """The windows of one step on a device, in the places that every step reads: ``load`` copies those of another step there.

    ``images`` are float32 and normalised; ``maps``, ``roles`` and the rest are as of :class:`DeviceData`.
    """

    feed: Feed
    placed: ClassVar[bool] = True

    def load(self, step: int) -> None:
        """Wait for the windows of ``step`` and copy them to the device."""
        for target, source in zip((self.images, *self.maps), self.feed.batch(step), strict=True):
            pinned = source.pin_memory() if target.device.type == "cuda" else source
            target.copy_(pinned, non_blocking=True)

    def close(self) -> None:
        """End the threads that read ahead."""
        self.feed.close()

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """(count,) int64: the windows themselves, which were drawn when they were read."""
        return torch.arange(count, device=self.images.device)

    def take(self, index: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The windows and their maps; of another number of tiles than a step has, the first windows of the run."""
        if len(index) == len(self.images):
            return self.images, self.maps
        images, *maps = (each.to(self.images.device) for each in self.feed.make(0, len(index)))
        return images, tuple(maps)


def on_device(config: TrainConfig, training: Pair | Dataset) -> DeviceData:
    """What a run trains on: a pair that lies on its device, or windows of a data set; to be closed after use."""
    device = distributed.device_of(resolve_device(config.device))
    if isinstance(training, Dataset):
        return windowed(training, config, device)
    balance, separate = config.loss.balance, config.separate
    if separate == "cores":  # its classes are not those of the labels
        return prepare(training, device, balance=balance, separate=separate)
    return prepare(replace(training, num_classes=max(config.num_classes, 2)), device, balance=balance)


def sampled(training: Pair | Dataset) -> Pair:
    """The pair itself; of a data set at most 64 windows, evenly spaced over its images."""
    return held_out_windows(training) if isinstance(training, Dataset) else training


def object_radius(training: Pair | Dataset) -> float | None:
    """The median radius in pixels of the objects that labels number, see :func:`unet_fast.data.cores.median_radius`; None for
    labels of another kind, or without objects."""
    return cores.median_radius(_apart(sampled(training))) if training.kind == "instances" else None


def windowed(dataset: Dataset, config: TrainConfig, device: torch.device) -> WindowData:
    """The training data of a run that stay in their files.

    Everything is read once first, band by band and by several threads: for the statistics that normalise each image and for the
    class weights, for which touching objects count as they were drawn.
    """
    feed = Feed(dataset, config, distributed.world().rank)
    with ThreadPoolExecutor(max(1, min(_THREADS, os.cpu_count() or 1))) as pool:
        surveys = list(pool.map(lambda item: item.survey(), dataset.items))
    counts: np.ndarray = np.zeros(max(config.num_classes, 2), np.int64)
    if feed.counts_of_cores is not None:
        counts += feed.counts_of_cores
    else:
        for survey in surveys:
            counts[: len(survey.counts)] += survey.counts
    images, *maps = (each.to(device) for each in feed.make(0, config.batch_size))
    one = torch.ones((1, 1, 1, 1), device=device)
    return WindowData(
        images=images,
        unsigned=False,
        mean=torch.zeros_like(one),
        scale=one,
        maps=tuple(maps),
        roles=feed.roles,
        class_weights=torch.from_numpy(class_weights(counts, balance=config.loss.balance)).to(device),
        class_counts=torch.from_numpy(counts.astype(np.float32)).to(device),
        num_classes=max(config.num_classes, 2),
        feed=feed,
    )


def describe(validation: Pair | None, reason: str | None) -> Sequence[str]:
    """Lines for a person: that windows are read from the files, why, and what is validated on."""
    lines = [f"training on windows that are read from the files: {reason or 'as asked for (--windows)'}"]
    if validation is not None:
        height, width = validation.labels.shape[1:]
        lines.append(
            f"validating on {len(validation)} windows of {height} x {width} px of the images that are held out"
        )
    return lines
