"""Training data of the command line: a data set's folder, or images and labels; and what of it is held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet_fast.errors import InputError

if TYPE_CHECKING:
    from unet_fast.data import Pair
    from unet_fast.recipes import Recipe


class Source:
    """Labelled images that were named by ``--data``, or by ``--images`` and ``--labels``.

    ``len`` counts images; ``pair(indices)`` is a stack of some of them.
    """

    def __init__(
        self,
        folder: Path | None,
        images: Path | None,
        labels: Path | None,
        kind: Any,
        num_classes: int | None,
        ignore_index: int | None = None,
    ) -> None:
        from unet_fast import data

        if folder is not None and (images is not None or labels is not None):
            raise InputError("--data and --images or --labels are given; give --data, or both of the others")
        if folder is None and (images is None or labels is None):
            raise InputError("no training data: give --data FOLDER, or --images and --labels")
        self.dataset: data.Dataset | None = None
        self.described: dict[str, Any]
        if folder is not None:
            self.dataset = data.read_dataset(folder, kind=kind, num_classes=num_classes, ignore_index=ignore_index)
            self.all: Pair = self.dataset.pair()
            self.described = {"data": str(folder), "layout": self.dataset.layout}
        else:
            assert images is not None and labels is not None
            self.all = data.read_pair(images, labels, kind=kind, num_classes=num_classes, ignore_index=ignore_index)
            self.described = {"images": str(images), "labels": str(labels)}
        self.described["kind"] = self.all.kind

    def __len__(self) -> int:
        return len(self.all if self.dataset is None else self.dataset)

    def pair(self, indices: Sequence[int]) -> Pair:
        """The images ``indices`` as one stack."""
        return self.all.select(indices) if self.dataset is None else self.dataset.pair(indices)

    def describe(self) -> str:
        """One line for a person."""
        shape = self.all.images.shape
        text = f"{len(self)} images of {shape[2]}x{shape[3]} px, {shape[1]} channel(s)"
        if self.dataset is not None:
            text = f"{self.dataset.layout}: {text}"
            if len(self.all) > len(self) or len({item.label.shape for item in self.dataset.items}) > 1:
                text += f" (different sizes, cut or continued to {len(self.all)} pieces)"
        text += f", labels: {self.all.kind}, {self.all.num_classes} classes"
        if self.all.ignored is not None:
            text += f", {self.all.ignored.mean():.0%} of the pixels ignored"
        return text

    def held_out(self, text: str | None, recipe: Recipe | None) -> tuple[list[int], list[int]]:
        """(validation, test) indices of ``--val``; neither is trained on."""
        from unet_fast import data
        from unet_fast.data.datasets import SEQUENCE
        from unet_fast.train import default_validation

        if text is None:
            return (default_validation(len(self)), []) if recipe is None else recipe.split_slices(len(self))
        if text == "none":
            return [], []
        if self.dataset is not None:
            return self.dataset.choose(text), []
        if text.startswith(SEQUENCE):
            raise InputError(f"--val is {text!r}, but sequences are known only of --data; give slices such as 20:25")
        return data.parse_slices(text, len(self)), []

    def split(self, validation: Sequence[int], test: Sequence[int]) -> tuple[Pair, Pair | None]:
        """(training, validation) stacks."""
        out = {*validation, *test}
        rest = [index for index in range(len(self)) if index not in out]
        if not rest:
            raise InputError("there are no training images: the validation slices take all of them")
        return self.pair(rest), self.pair(sorted(validation)) if validation else None
