"""``unet-fast demo``: synthetic EM images, training, prediction, scores and a report of pictures, in one call."""

from __future__ import annotations

import html
import shutil
from collections.abc import Callable
from pathlib import Path

from unet_fast import data, train
from unet_fast.data import synthetic
from unet_fast.errors import InputError
from unet_fast.evaluate import Report, evaluate_files
from unet_fast.files import atomic_path, ensure_folder
from unet_fast.run import Run

TRAINING, VALIDATION, TEST = 20, 4, 4  # slices
SIZE = (256, 256)
PICTURES = {
    "preview.png": "What the network saw: augmented tiles, their labels, their weight maps",
    "loss.png": "How training went",
    "overlay.png": "Validation slices: truth, probability, errors",
    "scores.png": "The best and the worst of the unseen test slices",
}


def run_demo(out: Path, *, minutes: float, device: str, seed: int, announce: Callable[[str], None]) -> Report:
    """Fill ``out`` with data/, run/, prediction.tif, metrics.json and report/; return the scores on unseen slices."""
    folder = ensure_folder(out)
    run = folder / "run"
    images, labels, test_images, test_labels = _write_data(folder / "data", seed)
    announce(
        f"wrote {folder / 'data'}: {TRAINING + VALIDATION} synthetic EM slices to learn from, {TEST} to be tested on"
    )
    if run.exists():
        # only what an earlier demo left may go
        if train.read_config(run).data.get("images") != str(images):
            raise InputError(f"{run} holds another run; choose another --out")
        shutil.rmtree(run)
    pair = data.read_pair(images, labels, kind="instances")
    held_out = list(range(TRAINING, TRAINING + VALIDATION))
    config = train.default_config(
        device,
        minutes=minutes,
        seed=seed,
        num_classes=pair.num_classes,
        validations=4,
        data={"images": str(images), "labels": str(labels), "kind": pair.kind, "validation_slices": held_out},
    )
    fitting, validation = train.hold_out(pair, held_out)
    announce(train.describe(config, TRAINING, VALIDATION))
    summary = train.train(config, fitting, validation, run, announce=announce)
    if summary.interrupted:
        raise KeyboardInterrupt  # the next demo starts anew
    announce(f"{summary.steps} steps in {summary.seconds:.0f} s, last loss {summary.loss:.4f}")
    prediction = folder / "prediction.tif"
    Run.load(run, device).predictor(tile=max(config.tile, *SIZE)).write(data.read_images(test_images), prediction)
    report = evaluate_files(prediction, test_labels, images=test_images, out=folder / "metrics.json", kind="instances")
    pictures = _write_report(folder, report)
    report.print()
    announce(
        f"wrote {folder}: run/, prediction.tif, metrics.json, and the pictures {pictures}/*.png (index.html shows all)"
    )
    return report


def _write_data(folder: Path, seed: int) -> tuple[Path, Path, Path, Path]:
    count = TRAINING + VALIDATION
    images, instances = synthetic.membranes(count + TEST, size=SIZE, seed=seed)
    parts = {
        "train-images": images[:count],
        "train-labels": instances[:count].astype("uint16"),
        "test-images": images[count:],
        "test-labels": instances[count:].astype("uint16"),
    }
    for name, stack in parts.items():
        data.write_stack(folder / f"{name}.tif", stack)
    return tuple(folder / f"{name}.tif" for name in parts)  # type: ignore[return-value]


def _write_report(folder: Path, report: Report) -> Path:
    target = ensure_folder(folder / "report")
    shutil.copyfile(folder / "metrics.png", target / "scores.png")
    for name in ("preview.png", "loss.png", "overlay.png"):
        shutil.copyfile(folder / "run" / name, target / name)
    scores = {name: getattr(report, name) for name in ("pixel_error", "rand_error", "dice", "iou", "best_threshold")}
    rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{value:.4f}</td></tr>" for name, value in scores.items())
    figures = "".join(f'<h2>{text}</h2><img src="{name}" style="max-width:100%">' for name, text in PICTURES.items())
    page = (
        f"<!doctype html><meta charset=utf-8><title>unet_fast demo</title><h1>unet_fast demo</h1><table>{rows}</table>"
    )
    with atomic_path(target / "index.html") as temporary:
        temporary.write_text(page + figures)
    return target
