"""Pictures of one pixel, for tests of all else: to draw a figure takes longer than to train a small network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image


def one_pixel(path: Path, form: str | None = None) -> None:
    """The picture; its format follows from the path unless it is named."""
    Image.new("L", (1, 1)).save(path, format=form)


def save_little(figure: Figure, path: Path, **options: Any) -> None:
    """In place of ``Figure.savefig``: all is on the figure by now, and nothing of it is drawn."""
    one_pixel(path, options["format"])


def draw_little() -> None:
    """From now on, in this process."""
    Figure.savefig = save_little  # type: ignore[assignment, method-assign]
