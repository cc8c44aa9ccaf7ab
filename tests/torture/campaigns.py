"""The campaigns. Each returns its counts by outcome, and the first few things that went wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.torture import exports, runs
from tests.torture.child import CRASH, GOOD, HANG, NO_MEMORY, REFUSED, TRACEBACK, attempt

MEMORY = 6 << 30
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Counts:
    """Outcomes of one campaign; ``wrong`` describes the first of those that must not happen."""

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, outcome: str, wrong: str | None = None) -> None:
        """Count an outcome, which is a fault where ``wrong`` says how."""
        self.outcomes[outcome] += 1
        if wrong is not None:
            self.outcomes["wrong"] += 1
            self.wrong += [wrong] if len(self.wrong) < 5 else []

    def __str__(self) -> str:
        counts = ", ".join(
            f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()) if outcome != "wrong"
        )
        return f"{self.name:28} {self.outcomes['wrong']} wrong  ({counts})"


def _exact(name: str, folder: Path, truth: dict[str, Any], steps: int, counts: Counts) -> None:
    """Go on until the end, and compare with the uninterrupted run."""
    end = attempt(lambda: runs.go(folder, resume=True, steps=steps).steps, seconds=120)
    if end.word != GOOD:
        counts.add("not resumed", f"{name}: --resume ends with {end.word}: {end.value}")
    elif not runs.same(runs.weights(folder), truth):
        counts.add("other weights", f"{name}: other weights than those of an uninterrupted run")
    else:
        left = [file for file in os.listdir(folder) if file.startswith(".")]
        counts.add("exact", f"{name}: {left} left behind" if left else None)


def signals(cases: int, rng: np.random.Generator, folder: Path, steps: int) -> Counts:
    """Runs that a signal ends at any time, once or several times; the resumed run must be the uninterrupted one."""
    counts = Counts("signals")
    began = time.monotonic()
    end = attempt(lambda: runs.go(folder / "whole", steps=steps).steps, seconds=300)
    assert end.word == GOOD, end
    seconds, truth = time.monotonic() - began, runs.weights(folder / "whole")
    run = folder / "run"
    for case in range(cases):
        shutil.rmtree(run, ignore_errors=True)
        number = SIGNALS[case % len(SIGNALS)]
        for _ in range(int(rng.integers(1, 3))):
            wait = float(rng.uniform(0.02, 1.0)) * seconds

            def send(pid: int, number: int = number, wait: float = wait) -> None:
                time.sleep(wait)
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass  # it was faster

            end = attempt(lambda: runs.go(run, resume=True, steps=steps).steps, seconds=120, during=send)
            if end.word in (TRACEBACK, HANG) or (end.word == CRASH and end.value != number):
                counts.add(end.word, f"{signal.Signals(number).name} after {wait:.2f} s: {end.word} {end.value}")
        _exact(f"{signal.Signals(number).name} after {wait:.2f} s", run, truth, steps, counts)
    return counts


def weights(cases: int, rng: np.random.Generator, folder: Path) -> list[Counts]:
    """Damaged weights, in a run's folder and in exported files: refused, or none of them changed."""
    end = attempt(lambda: runs.go(folder / "run", steps=8).steps, seconds=300)
    assert end.word == GOOD, end
    results = []
    for name, (path, load) in exports.weight_files(folder / "run").items():
        counts = Counts(f"damaged {name}")
        whole, truth = path.read_bytes(), attempt(load, memory=MEMORY)
        assert truth.word == GOOD, truth
        for _ in range(cases):
            path.write_bytes(mutated(whole, rng))
            end = attempt(load, memory=MEMORY)
            if end.word == GOOD:
                counts.add("unchanged", None if end.value == truth.value else "other weights without a word")
            else:
                counts.add(end.word, None if end.word == REFUSED else f"{end.word}: {end.value}")
        path.write_bytes(whole)
        results.append(counts)
    return results


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """A file with flipped bits, other bytes, a block of zeros, a piece cut out or put in twice, or cut off."""
    data = bytearray(whole)
    at = int(rng.integers(len(data)))
    if rng.random() < 0.3:
        at = min(at, int(rng.integers(1, 400)))  # headers decide most
    length = int(rng.integers(1, 65))
    how = rng.integers(6)
    if how == 0:
        data[at] ^= 1 << int(rng.integers(8))
    elif how == 1:
        data[at : at + length] = rng.bytes(len(data[at : at + length]))
    elif how == 2:
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif how == 3:
        del data[at : at + length]
    elif how == 4:
        data[at:at] = data[at : at + length]
    else:
        del data[at:]
    return bytes(data)


def images(cases: int, rng: np.random.Generator, folder: Path) -> list[Counts]:
    """Mutated files of every format: read, or refused in one line; never a traceback, a crash or a wait."""
    from tests.torture.formats import FORMATS, read

    results = []
    for name, make in FORMATS.items():
        counts = Counts(f"mutated {name}")
        path = make(folder, rng)
        whole = path.read_bytes()
        done = 0
        while done < cases:  # many in one process; one that ends it violently is found again by itself
            batch = [mutated(whole, rng) for _ in range(min(50, cases - done))]
            end = attempt(lambda batch=batch, path=path: read(path, batch), seconds=120, memory=MEMORY)
            words = end.value if end.word == GOOD else [_alone(path, data) for data in batch]
            for word, text in words:
                counts.add(word, text if word in (TRACEBACK, CRASH, HANG) else None)
            done += len(batch)
        path.unlink()
        results.append(counts)
    return results


def _alone(path: Path, data: bytes) -> tuple[str, str]:
    from tests.torture.formats import read

    end = attempt(lambda: read(path, [data]), seconds=30, memory=MEMORY)
    return end.value[0] if end.word == GOOD else (end.word, f"{end.word} {end.value}")


def disks(cases: int, rng: np.random.Generator, folder: Path) -> Counts:
    """A disk that is full at every file in turn: one line, the old files whole, and the run goes on exactly.

    The limit is that of the size of any file, just below each file that a run writes, or at half of it (``cases`` of these
    limits); the system then refuses the write.
    """
    counts = Counts("full disks")
    end = attempt(lambda: runs.go(folder / "whole", steps=20).steps, seconds=300)
    assert end.word == GOOD, end
    truth = runs.weights(folder / "whole")
    sizes = sorted({file.stat().st_size for file in (folder / "whole").iterdir()})
    limits = sorted({0, 1, *(size - 1 for size in sizes), *(size // 2 for size in sizes)})
    run = folder / "run"
    for limit in rng.permutation(limits)[:cases].tolist():
        shutil.rmtree(run, ignore_errors=True)
        end = attempt(lambda: runs.go(run, resume=True, steps=20).steps, seconds=120, file_bytes=limit)
        if end.word not in (GOOD, REFUSED):
            counts.add(end.word, f"at {limit} bytes: {end.word} {end.value}")
            continue
        left = [file for file in os.listdir(run) if file.startswith(".")] if run.exists() else []
        if left:
            counts.add("left behind", f"at {limit} bytes: {left} left behind")
        again = attempt(lambda: runs.go(run, resume=True, steps=20).steps, seconds=120)
        right = again.word == GOOD and runs.same(runs.weights(run), truth)
        counts.add(end.word, None if right else f"at {limit} bytes, then with room: {again.word} {again.value}")
    return counts


HOSTILE: tuple[Any, ...] = (
    None,
    {},
    [],
    "",
    "x" * 10_000,
    -1,
    0,
    0.5,
    1e308,
    10**9,
    10**30,
    True,
    [1, 2],
    {"name": "unet"},
)


def settings(cases: int, rng: np.random.Generator, folder: Path) -> Counts:
    """Hostile config.json: values of other types, huge depths and sizes, missing and unknown keys."""
    from unet_fast import train

    counts = Counts("hostile settings")
    end = attempt(lambda: runs.go(folder / "run", steps=8).steps, seconds=300)
    assert end.word == GOOD, end
    path = folder / "run" / "config.json"
    whole = json.loads(path.read_text())
    image = np.random.default_rng(0).random((1, 40, 40)).astype(np.float32)

    def predict() -> None:
        from unet_fast.predict import OverlapTile

        model, config = train.load_model(folder / "run")
        OverlapTile(model, tile=config.tile, tta=config.tta, padding=config.padding)(image)

    keys: list[tuple[str, ...]] = [(key,) for key in whole]
    keys += [(key, inner) for key, record in whole.items() if isinstance(record, dict) for inner in record]
    keys += [("model", "depth"), ("model", "base_channels")] * 3
    tried = [(keys[int(rng.integers(len(keys)))], HOSTILE[int(rng.integers(len(HOSTILE)))]) for _ in range(cases)]
    for key, value in tried:
        changed = json.loads(json.dumps(whole))
        place: dict[str, Any] = changed if len(key) == 1 else changed[key[0]]
        if rng.random() < 0.1:
            del place[key[-1]]
        else:
            place[key[-1]] = value
        path.write_text(json.dumps(changed))
        end = attempt(predict, seconds=40, memory=MEMORY)
        counts.add(
            end.word,
            None
            if end.word in (GOOD, REFUSED, NO_MEMORY)
            else f"{'.'.join(key)} = {str(value)[:40]}: {end.word} {end.value}",
        )
    for text in (
        "",
        "{",
        "[]",
        "null",
        '{"model": ' + "[" * 100_000,
        "\x00",
        "\ud800".encode("utf-8", "surrogatepass").hex(),
    ):
        path.write_text(text)
        end = attempt(predict, seconds=40, memory=MEMORY)
        counts.add(end.word, None if end.word == REFUSED else f"{text[:20]!r}: {end.word} {end.value}")
    return counts


def campaigns(
    rng: np.random.Generator, folder: Path, *, runs_: int, steps: int, damaged: int, files: int, full: int, hostile: int
) -> dict[str, Callable[[], list[Counts]]]:
    """Every campaign by its name, with so many cases each."""
    places = {name: folder / name for name in ("signals", "weights", "images", "disks", "settings")}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    return {
        "signals": lambda: [signals(runs_, rng, places["signals"], steps)],
        "weights": lambda: weights(damaged, rng, places["weights"]),
        "images": lambda: images(files, rng, places["images"]),
        "disks": lambda: [disks(full, rng, places["disks"])],
        "settings": lambda: [settings(hostile, rng, places["settings"])],
    }
