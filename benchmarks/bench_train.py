"""Training from end to end, in images a second: ``unet-fast train`` against eager torch with MONAI's transforms, and its torch.compile.

Every candidate draws tiles, deforms, turns, flips them and changes their grey values, weights the pixels, and takes an
optimizer step of the same network in the same precision. Ours computes the weight map of each deformed tile and keeps a
running average of the weights; the others are given ready weight maps, which they deform like images, and no average.

python -m benchmarks.bench_train
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import unet_fast as uf
from benchmarks import peers
from benchmarks.common import Options, Suite, run
from benchmarks.memory import reset_peak, since_reset
from benchmarks.record import Row
from unet_fast import data
from unet_fast.data import synthetic as images_of
from unet_fast.train import TrainConfig, default_config
from unet_fast.train.dataset import prepare
from unet_fast.train.speed import measure
from unet_fast.train.trainer import Trainer


@dataclass(frozen=True)
class Settings:
    """One case: options of :func:`unet_fast.train.default_config`, images, and how many steps are timed."""

    options: dict[str, Any]
    side: int = 512
    steps: int = 40

    def config(self, device: str, steps: int) -> TrainConfig:
        """The settings of a run; the rest is what a user gets who names no option."""
        # validation and checkpoints are no part of a step
        return default_config(device, steps=steps, validations=0, **self.options)


SETTINGS = {
    "cuda": [Settings({"batch_size": 8}, steps=300), Settings({"batch_size": 1}, steps=1000)],
    "cpu": [Settings({}), Settings({"base_channels": 32, "depth": 4, "padding": "valid", "tile": 196}, steps=12)],
}
OURS = "unet-fast train"
TINY = Settings({"base_channels": 4, "depth": 2, "tile": 32}, side=64, steps=6)


def synthetic(settings: Settings, count: int) -> data.Pair:
    """Images of membranes, as a stack that was read."""
    images, instances = images_of.membranes(count, (settings.side, settings.side))
    floats = images[:, None].astype(np.float32)
    return data.Pair(floats, (instances > 0).astype(np.int32), "mask", 2, [str(i) for i in range(count)])


def trainer(settings: Settings, device: str, pair: data.Pair) -> Trainer:
    """What ``unet-fast train`` steps with."""
    config = settings.config(device, settings.steps)
    return Trainer(config, prepare(pair, torch.device(device), balance=config.loss.balance))


def by_unet_fast(settings: Settings, device: str, pair: data.Pair) -> float:
    """Images a second of a run's steps, after those that set things up."""
    return measure(trainer(settings, device, pair), settings.steps)


class Tiles(torch.utils.data.Dataset):
    """Random tiles by MONAI's transforms, the way its users write them."""

    def __init__(self, config: TrainConfig, pair: data.Pair, input_size: int, transforms: Any) -> None:
        images = data.normalize(pair.images)
        labels = torch.from_numpy(pair.labels)
        weights = uf.ops.weight_map(labels, w0=config.loss.w0, sigma=config.loss.sigma)
        # a border that is mirrored once and for all, so that a tile may lie at the rim
        border = (input_size + config.tile) // 4
        pad = [(0, 0), (border, border), (border, border)]
        self.samples = [
            {
                "image": torch.from_numpy(np.pad(image, pad, mode="reflect")),
                "label": torch.from_numpy(np.pad(label[None].numpy(), pad, mode="reflect")).float(),
                "weight": torch.from_numpy(np.pad(weight[None].numpy(), pad, mode="reflect")),
            }
            for image, label, weight in zip(images, labels, weights, strict=True)
        ]
        keys = ("image", "label", "weight")
        radius = config.augmentation.elastic_sigma
        self.transform = transforms.Compose(
            [
                transforms.RandSpatialCropd(keys, (input_size, input_size), random_size=False),
                transforms.Rand2DElasticd(
                    keys,
                    spacing=(256, 256),
                    magnitude_range=(radius, radius),
                    prob=1.0,
                    rotate_range=(np.pi,),
                    mode=("bilinear", "nearest", "bilinear"),
                    padding_mode="reflection",
                ),
                transforms.RandFlipd(keys, prob=0.5, spatial_axis=0),
                transforms.RandFlipd(keys, prob=0.5, spatial_axis=1),
                transforms.RandHistogramShiftd("image", prob=1.0),
                transforms.CenterSpatialCropd(("label", "weight"), (config.tile, config.tile)),
                transforms.ToTensord(keys, track_meta=False),
            ]
        )

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return dict(self.transform(dict(self.samples[index % len(self.samples)])))


def peer_step(config: TrainConfig, device: str, net: uf.UNet, loss: Callable[..., Any]) -> Callable[[Any], None]:
    """A training step on a batch of :class:`Tiles`."""
    optimizer = torch.optim.AdamW(net.parameters(), config.optimizer.learning_rate, fused=True)

    def step(batch: dict[str, torch.Tensor]) -> None:
        image, label, weight = (batch[key].to(device, non_blocking=True) for key in ("image", "label", "weight"))
        image = image.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.amp):
            value = loss(image, label[:, 0].long(), weight[:, 0])
        value.backward()
        optimizer.step()

    return step


def by_monai(settings: Settings, device: str, pair: data.Pair, compile: Callable[..., Any] | None) -> float | None:
    """Images a second of the usual script; None where MONAI is not installed."""
    transforms = peers.optional("monai.transforms")
    if transforms is None:
        return None
    config = settings.config(device, settings.steps)
    model = {name: value for name, value in config.model.items() if name != "name"}
    net = uf.UNet(**model, fused=False).to(device, memory_format=torch.channels_last)

    def loss(image: torch.Tensor, label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (F.cross_entropy(net(image).float(), label, reduction="none") * weight).mean()

    step = peer_step(config, device, net, loss if compile is None else compile(loss))
    workers = 0 if device == "cpu" else min(14, os.cpu_count() or 1)  # on a CPU they would take the network's cores
    loader = torch.utils.data.DataLoader(
        Tiles(config, pair, net.input_size(config.tile), transforms),
        batch_size=config.batch_size,
        num_workers=workers,
        pin_memory=device != "cpu",
    )
    batches: Iterator[Any] = iter(loader)
    warm = settings.steps // 3
    began = 0.0
    for number in range(settings.steps):
        if number == warm:
            _wait(device)
            began = time.perf_counter()
        step(next(batches))
    _wait(device)
    return (settings.steps - warm) * config.batch_size / (time.perf_counter() - began)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main(options: Options) -> None:
    suite = Suite("train", options)
    torch.backends.cudnn.benchmark = True
    for settings in [TINY] if options.tiny else SETTINGS[options.device]:
        quick = replace(settings, steps=settings.steps // 2) if options.quick and not options.tiny else settings
        pair = synthetic(settings, 4)
        config = settings.config(options.device, 1)
        ways: dict[str, Callable[[], float | None]] = {
            OURS: lambda s=quick, p=pair: by_unet_fast(s, options.device, p),
            "eager torch, MONAI": lambda s=quick, p=pair: by_monai(s, options.device, p, None),
            "torch.compile, MONAI": lambda s=quick, p=pair: by_monai(s, options.device, p, options.compile),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        peaks: dict[str, float | None] = {}
        for _ in range(1 if options.quick else 3):
            for name, way in ways.items():
                reset_peak(options.device)
                rate = way()
                if rate is not None:
                    rates[name].append(rate)
                    peaks[name] = since_reset(options.device)
                torch.compiler.reset()
        add_rows(
            suite, f"{config.model['name']}, tiles of {config.tile}, batch {config.batch_size}", config, rates, peaks
        )
    suite.finish()


def add_rows(
    suite: Suite, case: str, config: TrainConfig, rates: dict[str, list[float]], peaks: dict[str, float | None]
) -> None:
    """A row for each candidate that could be run: milliseconds a step, from the rates of its rounds."""
    first = None
    for name, found in rates.items():
        if found:
            low, median, high = (config.batch_size / float(r) * 1e3 for r in np.percentile(found, [75, 50, 25]))
            first = first or median
            rate = config.batch_size / median * 1e3
            suite.add(
                Row(
                    case,
                    name,
                    "ours" if name == OURS else "peer",
                    median,
                    low,
                    high,
                    median / first,
                    method="run",
                    images=config.batch_size,
                    images_per_second=rate,
                    peak_megabytes=peaks[name],
                )
            )


if __name__ == "__main__":
    run(main)
