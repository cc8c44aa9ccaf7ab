"""Several networks trained on the same images with the same budget: one table and one plot."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unet_fast import data, models, ops, recipes, train
from unet_fast.errors import InputError
from unet_fast.files import atomic_path, ensure_folder
from unet_fast.train.config import TrainConfig
from unet_fast.train.dataset import prepare
from unet_fast.train.defaults import NETWORK_OPTIONS
from unet_fast.train.run_folder import CONFIG
from unet_fast.train.trainer import Trainer
from unet_fast.train.validation import predict_pair
from unet_fast.train.windows import window_side

_RECIPE = "recipe:"
_TIMED_STEPS = 5


@dataclass(frozen=True)
class Row:
    """One network of a comparison.

    Attributes:
        name: of the network, or ``recipe:NAME``.
        pixel_error, rand_error, dice: of the best network on the validation images; ``rand_error`` is None for several
            classes.
        average_precision: of predicted objects at an IoU of 0.5, likewise; None where the labels do not number objects.
        parameters: of the network, all trained.
        gflop: 1e9 floating-point operations, multiply and add counted separately, of one forward pass that returns one tile.
        tile, batch_size: output side in pixels and tiles a step, to which ``gflop`` and the times refer.
        ms_per_step: median time of a training step in a process of its own, augmentation included.
        ms_per_image: median time of predicting one validation image, tiles included, without averaging over versions.
        memory_mb: how much more memory a process that trains takes at its peak than before it built the network (host memory on a
            CPU, device memory on a GPU); None where the system does not report it.
        steps, seconds: done in training.
    """

    name: str
    pixel_error: float
    rand_error: float | None
    dice: float
    average_precision: float | None
    parameters: int
    gflop: float
    tile: int
    batch_size: int
    ms_per_step: float
    ms_per_image: float
    memory_mb: float | None
    steps: int
    seconds: float


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


def compare_models(
    names: Sequence[str],
    training: data.Pair | data.Dataset,
    validation: data.Pair,
    out: str | Path,
    *,
    device: str = "auto",
    minutes: float | None = None,
    steps: int | None = None,
    announce: Callable[[str], None] = print,
    **settings: Any,
) -> list[Row]:
    """Train every network of ``names`` and write ``compare.csv``, ``compare.json`` and ``compare.png`` into ``out``.

    Args:
        names: of :func:`unet_fast.models.list`, or ``recipe:`` and a name of :func:`unet_fast.recipes.names`.
        training, validation: the images; the scores are those of the validation images.
        out: gets a run folder for each network, too. The table grows with every network that is done.
        minutes, steps: the budget of each.
        settings: other arguments of :func:`unet_fast.train.default_config`; options that a network does not have
            (``depth`` of a ResNet) are left out for it, and ``tile`` is rounded up to a size that it can return.
        announce: called with lines worth reading.

    Returns:
        A row for each network, in the order of ``names``. Ctrl-C ends the comparison with the rows that are done.

    Raises:
        InputError: no names, a name twice, an unknown one, a network that cannot be trained on such tiles, a folder that holds an
            earlier comparison (all of this before anything is trained), or what training raises.
    """
    if not names:
        raise InputError("no networks to compare; give --models such as unet,unet-bn")
    if len(set(names)) < len(names):
        raise InputError(f"a network is named twice in {', '.join(names)}; name each once")
    folder = ensure_folder(out)
    budget = {"minutes": minutes, "steps": steps}
    configs = {name: _configuration(name, training, device, {**budget, **settings}) for name in names}
    places = {name: folder / name.replace(":", "-") for name in names}
    for name, place in places.items():
        if (place / CONFIG).exists():
            raise InputError(f"{place} holds the run of an earlier comparison; choose another --out, or remove it")
        _rehearse(configs[name])
    rows: list[Row] = []
    for name, config in configs.items():
        announce(f"{name}: {train.describe(config, len(training), len(validation))}")
        summary = train.train(config, training, validation, places[name], announce=announce)
        if summary.interrupted or summary.validation is None:
            announce(f"interrupted; the comparison ends before {name}")
            break
        rows.append(_measured(name, config, summary, training, validation))
        _write(rows, folder)
    print_table(rows)
    return rows


def _configuration(name: str, training: data.Pair | data.Dataset, device: str, settings: dict[str, Any]) -> TrainConfig:
    recipe = recipes.get(name.removeprefix(_RECIPE)) if name.startswith(_RECIPE) else None
    network = name if recipe is None else recipe.model
    known = models.defaults(network)
    fitting = {key: value for key, value in settings.items() if key not in ("tile", *NETWORK_OPTIONS) or key in known}
    config = train.default_config(
        device,
        model=network,
        recipe=recipe,
        in_channels=training.channels,
        num_classes=training.num_classes,
        kind=training.kind,
        **train.traits(training, recipe),
        **fitting,
    )
    tile = settings.get("tile")
    return config if tile is None else dataclasses.replace(config, tile=train.legal_tile(config.model, tile))


def _rehearse(config: TrainConfig) -> None:
    """Raise what a step of training would raise of sizes, before the first network is trained; nothing is computed."""
    with ops.use_backend("reference"), torch.device("meta"):
        model = models.create(**config.model).train()
        side = model.input_size(config.tile)
        model(torch.empty(config.batch_size, model.in_channels, side, side))


def _measured(
    name: str, config: TrainConfig, summary: train.Summary, training: data.Pair | data.Dataset, validation: data.Pair
) -> Row:
    model, config = train.load_model(summary.folder, train.resolve_device(config.device))
    scores = summary.validation
    assert scores is not None  # there are validation images
    side = window_side(config)
    shape = training.images.shape[1:] if isinstance(training, data.Pair) else (training.channels, side, side)
    ms_per_step, memory = measure_steps(config, shape, training.num_classes)
    return Row(
        name=name,
        pixel_error=scores.pixel_error,
        rand_error=scores.rand_error,
        dice=scores.dice,
        average_precision=scores.average_precision,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        gflop=forward_gflop(config.model, config.tile),
        tile=config.tile,
        batch_size=config.batch_size,
        ms_per_step=ms_per_step,
        ms_per_image=_prediction_ms(model, config, validation),
        memory_mb=memory,
        steps=summary.steps,
        seconds=summary.seconds,
    )


def forward_gflop(network: dict[str, Any], tile: int) -> float:
    """1e9 floating-point operations of a forward pass that returns ``tile`` x ``tile`` pixels; nothing is computed.

    Multiply and add are counted separately. Convolutions and matrix products count, the rest is left out, as in
    ``torch.utils.flop_counter``.
    """
    from torch.utils.flop_counter import FlopCounterMode

    # the reference back end consists of torch's own operations, all of which the counter knows
    with ops.use_backend("reference"), torch.device("meta"), torch.no_grad():
        model = models.create(**network).eval()
        side = model.input_size(tile)
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.empty(1, model.in_channels, side, side))
    return counter.get_total_flops() / 1e9


def _prediction_ms(model: torch.nn.Module, config: TrainConfig, validation: data.Pair) -> float:
    times = []
    for index in [0, *range(min(len(validation), _TIMED_STEPS))]:
        one = validation.select([index])
        began = time.perf_counter()
        predict_pair(model, config, one)  # ends in host memory, so nothing is left to wait for
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times[1:])  # the first one warms up


def measure_steps(config: TrainConfig, shape: tuple[int, ...], num_classes: int) -> tuple[float, float | None]:
    """(milliseconds a training step, peak memory in MB or None) of a configuration on images (C, H, W) of noise.

    Measured in a fresh process, so that the peak is that of this network alone.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, config, shape, num_classes, torch.get_num_threads())
    process = context.Process(target=_measure_in_child, args=arguments)
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        raise InputError(
            f"the process that measured {config.model['name']} ended with code {process.exitcode}; "
            "it may have run out of memory: use a smaller --tile or --batch-size"
        ) from None
    process.join()
    return result


def _measure_in_child(sender: Any, config: TrainConfig, shape: tuple[int, ...], num_classes: int, threads: int) -> None:
    torch.set_num_threads(threads)
    device = train.resolve_device(config.device)
    rng = np.random.default_rng(0)
    height, width = shape[1:]
    # squares of 16 px as objects: noise would make every pixel a border
    coarse = rng.integers(0, num_classes, (1, -(-height // 16), -(-width // 16)))
    coarse.flat[:num_classes] = np.arange(num_classes)[: coarse.size]
    labels = np.kron(coarse, np.ones((1, 16, 16), dtype=np.int64))[:, :height, :width].astype(np.int32)
    kind: Any = "classes" if num_classes > 2 else "mask"
    pair = data.Pair(rng.random((1, *shape), dtype=np.float32), labels, kind, num_classes, ["noise"])
    ready = prepare(pair, device, balance=False, separate=config.separate)
    # what the first step of any network loads does not belong to this one
    Trainer(_warm_up(config, pair), ready).train_step()
    before = _peak_mb(device, restart=True)
    trainer = Trainer(config, ready)
    times = []
    for _ in range(_TIMED_STEPS + 1):
        began = time.perf_counter()
        trainer.train_step().item()  # waits for a GPU
        times.append(time.perf_counter() - began)
    after = _peak_mb(device)
    memory = None if before is None or after is None else after - before
    sender.send((1e3 * statistics.median(times[1:]), memory))


def _warm_up(config: TrainConfig, pair: data.Pair) -> TrainConfig:
    """The smallest network on the same data, device and precision."""
    return train.default_config(
        config.device,
        steps=1,
        base_channels=1,
        depth=1,
        padding="same",
        tile=32,
        batch_size=1,
        in_channels=pair.images.shape[1],
        num_classes=pair.num_classes,
        optimizer=config.optimizer.name,
        separate=config.separate,
        amp=config.amp,
    )


def _peak_mb(device: torch.device, *, restart: bool = False) -> float | None:
    """Peak memory of this process in 1e6 bytes; with ``restart`` the present use, from which the peak then counts."""
    if device.type == "cuda":
        if restart:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.exists():
        # not ru_maxrss: on Linux a child inherits it from the parent that it was forked from
        if restart:
            Path("/proc/self/clear_refs").write_text("5")
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def _write(rows: list[Row], folder: Path) -> None:
    table = [dataclasses.asdict(row) for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    with atomic_path(folder / "compare.csv") as temporary:
        temporary.write_text(text.getvalue())
    with atomic_path(folder / "compare.json") as temporary:
        temporary.write_text(json.dumps(table, indent=2) + "\n")
    plot(rows, folder / "compare.png")


def print_table(rows: list[Row]) -> None:
    """Print the rows as a table, the lowest pixel error first."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="comparison", title_justify="left")
    table.add_column("network", overflow="fold")
    scored = any(row.average_precision is not None for row in rows)
    errors = ("pixel error", "Rand error", "Dice", *(["AP"] if scored else []))
    for heading in (*errors, "parameters", "GFLOP", "ms/step", "ms/image", "MB", "steps"):
        table.add_column(heading, justify="right", overflow="fold")
    for row in sorted(rows, key=lambda row: row.pixel_error):
        table.add_row(
            row.name,
            f"{row.pixel_error:.4f}",
            "-" if row.rand_error is None else f"{row.rand_error:.4f}",
            f"{row.dice:.4f}",
            *([] if not scored else ["-" if row.average_precision is None else f"{row.average_precision:.4f}"]),
            f"{row.parameters:,}",
            f"{row.gflop:.3g}",
            f"{row.ms_per_step:.1f}",
            f"{row.ms_per_image:.1f}",
            "-" if row.memory_mb is None else f"{row.memory_mb:.0f}",
            str(row.steps),
        )
    Console().print(table)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def plot(rows: list[Row], path: Path) -> Path:
    """Bars of every quantity, one panel each, the networks in the same order in all; a PNG."""
    from unet_fast.plots._canvas import BLUE, GREEN, GREY, new_figure, save

    panels: list[tuple[str, list[float], str]] = [
        ("pixel error", [row.pixel_error for row in rows], GREEN),
        ("Rand error", [_or_nan(row.rand_error) for row in rows], GREEN),
        ("Dice", [row.dice for row in rows], GREEN),
        ("average precision", [_or_nan(row.average_precision) for row in rows], GREEN),
        ("million parameters", [row.parameters / 1e6 for row in rows], GREY),
        ("GFLOP a tile", [row.gflop for row in rows], GREY),
        ("ms a training step", [row.ms_per_step for row in rows], BLUE),
        ("ms an image", [row.ms_per_image for row in rows], BLUE),
        ("MB in training", [_or_nan(row.memory_mb) for row in rows], BLUE),
    ]
    figure = new_figure(1000, 3 * (90 + 34 * len(rows)))
    axes = figure.subplots(3, len(panels) // 3, sharey=True)
    for axis, (title, values, colour) in zip(axes.flat, panels, strict=True):
        bars = axis.barh([row.name for row in rows], values, color=colour)
        axis.bar_label(bars, [f"{value:.3g}" if value == value else "-" for value in values], padding=3, fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.25)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0, 0].invert_yaxis()  # the first network on top, in all: the axes are shared
    return save(figure, path)
