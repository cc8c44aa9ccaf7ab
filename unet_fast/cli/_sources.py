"""Training data of the command line: a data set's folder, or images and labels; and what of it is held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet_fast.errors import InputError

if TYPE_CHECKING:
    from unet_fast.data import Dataset, Pair
    from unet_fast.recipes import Recipe


class Source:
    """Labelled images that were named by ``--data``, or by ``--images`` and ``--labels``.

    ``len`` counts images, none of which is held: ``dataset`` knows where they are.
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
        from unet_fast.data.datasets import read_matching

        if folder is not None and (images is not None or labels is not None):
            raise InputError("--data and --images or --labels are given; give --data, or both of the others")
        if folder is None and (images is None or labels is None):
            raise InputError("no training data: give --data FOLDER, or --images and --labels")
        if folder is not None:
            self.dataset = data.read_dataset(folder, kind=kind, num_classes=num_classes, ignore_index=ignore_index)
            self.described: dict[str, Any] = {"data": str(folder), "layout": self.dataset.layout}
        else:
            assert images is not None and labels is not None
            self.dataset = read_matching(images, labels, kind=kind, num_classes=num_classes, ignore_index=ignore_index)
            self.described = {"images": str(images), "labels": str(labels)}
        self.described["kind"] = self.dataset.kind
        self._named = folder is not None
        self._given = [path for path in (folder, images, labels) if path is not None]

    def refuse_as_output(self, out: Path) -> None:
        """Raise ``InputError`` when ``out`` is a folder whose files are the images or labels: a run's pictures would be some, too."""
        if not out.is_dir():
            return
        folders = {file.parent for file in self.dataset.files}
        given = [path for path in self._given if path.is_dir()]
        # files of a data set that lie in its own folder are known by their names, others are all that a folder holds
        listed = {path for path in folders if not path.samefile(given[0])} if self._named else given
        for folder in listed:
            if out.samefile(folder):
                raise InputError(
                    f"--out {out} holds the images or labels of this training, and its pictures would count among them the next "
                    "time; choose another --out"
                )

    def __len__(self) -> int:
        return len(self.dataset)

    def describe(self, *, windows: bool = False) -> str:
        """One line for a person; with ``windows`` images are not brought to one size."""
        dataset = self.dataset
        height, width = dataset.size
        text = f"{len(self)} images of {height}x{width} px, {dataset.channels} channel(s)"
        if self._named:
            text = f"{dataset.layout}: {text}"
        if len({item.size for item in dataset.items}) > 1:
            pieces = f", cut or continued to {len(dataset.pieces())} pieces" if not windows else ""
            text += f" (different sizes{pieces})"
        text += f", labels: {dataset.kind}, {dataset.num_classes} classes"
        share = dataset.ignored_share()
        if share > 0:
            text += f", {share:.0%} of the pixels ignored"
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
        if self._named:
            return self.dataset.choose(text), []
        if text.startswith(SEQUENCE):
            raise InputError(f"--val is {text!r}, but only --data has sequences; give slices such as 20:25")
        return data.parse_slices(text, len(self)), []

    def split(
        self, validation: Sequence[int], test: Sequence[int], *, windows: bool = False
    ) -> tuple[Pair | Dataset, Pair | None]:
        """(training, validation): stacks in memory, or with ``windows`` images that stay in their files, and windows of those
        that are held out."""
        from unet_fast.train.windows import held_out_windows

        out = {*validation, *test}
        rest = [index for index in range(len(self)) if index not in out]
        if not rest:
            raise InputError("there are no training images: the validation slices take all of them")
        if not windows:
            return self.dataset.pair(rest), self.dataset.pair(sorted(validation)) if validation else None
        kept = self.dataset.subset(sorted(validation))
        return self.dataset.subset(rest), held_out_windows(kept) if validation else None
