"""Every system of the sources, trained by its recipe for a fixed number of tiles on public images, and scored.

``python -m benchmarks.family --data DIR [--seeds 0,1,2] [--only em,keras] [--sets isbi2012]``, or ``make family DATA=DIR``

DIR holds a folder for each set of :data:`SETS`, in any layout that ``unet-fast train --data`` reads. The networks are
narrow and the budget is counted in tiles, not in minutes, so that a machine that is busy gets the same scores; seconds are
those of the processor. A run that is in the result file is not done again.

The last fifth of the images (at least two) is held out. No run chooses anything by it but the thresholds that the
errors are defined by: the weights that are scored are the last ones. The learning rates were chosen before, one for all
systems of an optimizer, in a few short trials on two of the sets, which looked at these images too. Recipes are followed
but for width, tile, batch and learning rate; encoders start from random weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from benchmarks.common import conditions, machine_name, processor
from benchmarks.record import RESULTS, threads, write
from unet_fast import data, recipes, train
from unet_fast.evaluate import evaluate
from unet_fast.run import Run

BASE_CHANNELS, TILE = 16, 192
# the rates of the recipes suit hours of training on a GPU; a few hundred steps would show the beginning of a curve.
# With momentum 0.99 a step adds up a hundred gradients: at 1e-3 the units of a narrow network without normalisation
# die within a hundred steps, and it answers every pixel alike
RATES = {"adam": 3e-3, "sgd": 3e-4}
LARGEST_BATCH = 2  # likewise: more steps for the same tiles
# tiles a run: more where the sources have figures of their own
SETS = {
    "isbi2012": 1200,
    "dic-hela": 800,
    "usiigaci": 300,
    "dsb2018-fluo256": 300,
    "dsb2018-fluo520": 300,
    "dsb2018-he256x320": 300,
}
DEFAULTS = "defaults"  # no recipe: what `unet-fast train` does unless it is told otherwise
# what the sources report of themselves: the system, the words of the table
SAID = {
    "paper-2015": "EM: pixel error 0.061, Rand error 0.038, warping error 0.00035 (test stack); HeLa IoU 0.776, "
    "U373 IoU 0.920",
    "em": "EM: pixel error 0.083, Rand error 0.152",
    "batch-norm": "Dice: HeLa 0.46, U373 0.41, DRIVE 0.34",
    "pretrained-encoder": "Dice: HeLa 0.67, U373 0.76, DRIVE 0.82",
    "keras": "EM: accuracy 0.919",
    "dental": "its text is not available",
    "unet++": "EM: accuracy 0.917; its four heads 0.878, 0.886, 0.891, 0.894",
    "unet3+": "EM: accuracy 0.923 after 18 epochs",
    DEFAULTS: "-",
}


def configuration(system: str, pair: data.Pair, tiles: int, folder: Path, seed: int) -> train.TrainConfig:
    """The recipe, narrowed: tiles of :data:`TILE` px and :data:`BASE_CHANNELS` channels at the first level; the defaults keep their tile."""
    recipe = None if system == DEFAULTS else recipes.get(system)
    model = "unet" if recipe is None else recipe.model
    if model.startswith("unet-resnet"):
        model = "unet-resnet18"  # the smallest; from random weights, because nothing is downloaded
    settings: dict[str, Any] = {
        "model": model,
        "recipe": recipe,
        "in_channels": pair.images.shape[1],
        "num_classes": pair.num_classes,
        "kind": pair.kind,
        **train.traits(pair, recipe),
        "base_channels": BASE_CHANNELS,
        "validations": 1,
        "seed": seed,
        "data": {"data": str(folder)},
    }
    plain = train.default_config("cpu", steps=1, **settings)
    batch_size = min(plain.batch_size, LARGEST_BATCH)
    return train.default_config(
        "cpu",
        steps=train.steps_for(1, tiles, batch_size),
        batch_size=batch_size,
        tile=plain.tile if recipe is None else train.legal_tile(plain.model, TILE),
        learning_rate=RATES[plain.optimizer.name],
        **settings,
    )


def hold_out(count: int) -> list[int]:
    """The last fifth of ``count`` images, at least two."""
    return list(range(count - max(2, count // 5), count))


def run(system: str, folder: Path, tiles: int, seed: int) -> dict[str, Any]:
    """Train, predict the held-out images as the recipe predicts, and score them; a row of the result."""
    source = data.read_dataset(folder)
    held_out = hold_out(len(source))
    training = source.pair([index for index in range(len(source)) if index not in held_out])
    test = source.pair(held_out)
    config = configuration(system, training, tiles, folder, seed)
    out = Path(mkdtemp(prefix="family-"))
    try:
        # without validation images, so that there is nothing to choose by
        began = time.process_time()
        summary = train.train(config, training, None, out, progress=False)
        seconds = time.process_time() - began
        run = Run.load(out, "cpu")
    finally:
        shutil.rmtree(out)
    began = time.process_time()
    probabilities = run.predict(test.images, tile=max(config.tile, 256))
    seconds_an_image = (time.process_time() - began) / len(test)
    report = evaluate(probabilities, test.labels, kind=test.kind, num_classes=test.num_classes)
    objects: dict[str, Any] = {"seg": None, "average_precision": None}
    if test.kind == "instances":
        found = run.predict(test.images, tile=max(config.tile, 256), output="instances")
        scores = evaluate(found, test.labels, kind=test.kind)
        objects = {"seg": scores.seg, "average_precision": scores.average_precision}
    foreground = probabilities[:, 0] if probabilities.shape[1] == 1 else 1 - probabilities[:, 0]
    return {
        "commit": conditions("cpu")["commit"],
        "system": system,
        "set": folder.name,
        "tiles": tiles,
        "seed": seed,
        "base_channels": BASE_CHANNELS,
        "processor": processor(),
        "model": config.model,
        "tile": config.tile,
        "batch_size": config.batch_size,
        "steps": summary.steps,
        "loss": summary.loss,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "seconds": seconds,
        "seconds_an_image": seconds_an_image,
        "images": {"training": len(training), "held_out": len(test)},
        "accuracy": float(((foreground > 0.5) == (test.labels > 0)).mean()),
        **{name: getattr(report, name) for name in ("pixel_error", "rand_error", "dice", "iou", "warping_error")},
        **{name: getattr(report, name) for name in ("v_rand", "v_info")},
        **objects,
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown: a line a system, a column a set (means over the seeds), and the conditions below."""
    sets = [name for name in SETS if any(row["set"] == name for row in result["rows"])]
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        rows.setdefault((row["system"], row["set"]), []).append(row)

    def of(name: str) -> list[dict[str, Any]]:
        return [row for row in result["rows"] if row["set"] == name]

    heading = ["system (recipe)", "said in the source", *sets]
    lines = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    for system, said in SAID.items():
        if any((system, name) in rows for name in sets):
            cells = [_cell(rows.get((system, name), [])) for name in sets]
            lines.append("| " + " | ".join([system, said, *cells]) + " |")
    images = ", ".join("{training} + {held_out}".format(**of(name)[0]["images"]) for name in sets)
    total = sum(row["seconds"] for row in result["rows"]) / 60
    budgets = "; ".join(_budget(name, of(name)) for name in sets)
    machines: dict[str, list[str]] = {}
    for row in result["rows"]:
        machines.setdefault(f"{row['processor']}, commit {row['commit']}", []).append(row["set"])
    places = "; ".join(f"{place}: {', '.join(dict.fromkeys(names))}" for place, names in machines.items())
    large = dict.fromkeys(
        f"{row['set']} {row['tile']}" for row in result["rows"] if row["system"] == DEFAULTS and row["tile"] > TILE
    )
    coarse = f" (the defaults, at a coarser resolution: {', '.join(large)})" if large else ""
    seeds = sorted({len(found) for found in rows.values()} - {1})
    several = (
        f", except where ± stands: there the mean of {' or '.join(map(str, seeds))} seeds ± half their range"
        if seeds
        else ""
    )
    lines.append(
        "\nE: pixel error / Rand error (lower is better); A: accuracy; D: Dice; S: SEG (higher is better). "
        f"Images for training + held out, set by set: {images}; the scores are for the held-out images, which no run used to choose its "
        "weights; the two learning rates were chosen in short trials that looked at the held-out images of isbi2012 and dic-hela. "
        f"Tiles of about {result['tile']} px{coarse}; tiles per run, and channels at the first level: {budgets}; at most {LARGEST_BATCH} "
        f"tiles per step, learning rate {RATES['adam']:g} (Adam) or {RATES['sgd']:g} (SGD); ResNet-18 from random weights; all else as in "
        f"the recipe. {total:.0f} minutes of training in all, one seed{several}. {places}. {threads(result)}, "
        f"torch {result['torch']}, Python {result['python']}."
    )
    return "\n".join(lines) + "\n"


def _budget(name: str, rows: list[dict[str, Any]]) -> str:
    tiles, channels = ("/".join(map(str, sorted({row[key] for row in rows}))) for key in ("tiles", "base_channels"))
    return f"{name} {tiles}, {channels}"


def _cell(rows: list[dict[str, Any]]) -> str:
    """The scores of one system on one set, over its seeds."""
    if not rows:
        return "-"

    def of(name: str) -> str:
        values = [row[name] for row in rows]
        mean = f"{sum(values) / len(values):.3f}"
        return mean if len(values) == 1 else f"{mean} ± {(max(values) - min(values)) / 2:.3f}"

    text = f"E {of('pixel_error')} / {of('rand_error')}, "
    return text + (f"A {of('accuracy')}" if rows[0]["seg"] is None else f"D {of('dice')}, S {of('seg')}")


def main(arguments: list[str]) -> None:
    """Do what is missing of the result file, which is written after every run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--out", type=Path, default=RESULTS / machine_name("cpu") / "family.json", help="result file")
    parser.add_argument("--seeds", default="0", help="seeds of the runs, separated by commas")
    parser.add_argument("--tiles", type=int, help="tiles a run, instead of those of the set")
    parser.add_argument("--only", default=",".join(SAID), help="systems, separated by commas")
    parser.add_argument("--sets", default=",".join(SETS), help="sets, separated by commas")
    given = parser.parse_args(arguments)
    systems, sets = given.only.split(","), given.sets.split(",")
    for names, known in ((systems, SAID), (sets, SETS)):
        if unknown := set(names) - set(known):
            sys.exit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    path: Path = given.out
    result = json.loads(path.read_text()) if path.exists() else {"rows": []}
    rows = result["rows"]
    todo = [(int(seed), name, system) for seed in given.seeds.split(",") for name in sets for system in systems]
    keys = ("system", "set", "seed", "tiles", "base_channels")
    for number, (seed, name, system) in enumerate(todo, start=1):
        wanted = (system, name, seed, given.tiles or SETS[name], BASE_CHANNELS)
        if any(tuple(row[key] for key in keys) == wanted for row in rows):
            continue
        rows[:] = [row for row in rows if tuple(row[key] for key in keys[:3]) != wanted[:3]]
        rows.append(run(system, given.data / name, given.tiles or SETS[name], seed))
        result = {**conditions("cpu"), "tile": TILE, "rows": rows}
        write(path, result)
        scores = f"{_cell(rows[-1:])}; {rows[-1]['seconds']:.0f} s"
        print(f"{number} of {len(todo)}: {system} on {name}, seed {seed}: {scores}", flush=True)
    print(f"wrote {path}; python -m benchmarks.tables puts it into docs/family.md")


if __name__ == "__main__":
    torch.set_num_threads(1)  # the same sums in the same order, whatever the machine
    main(sys.argv[1:])
