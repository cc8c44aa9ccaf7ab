"""Folders in the layouts that public data sets come in: recognised, read, and assembled into pairs of one size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unet_fast.data.datasets_layouts import LAYOUTS, Item
from unet_fast.data.label_codes import Coding, decide
from unet_fast.data.label_kinds import Kind
from unet_fast.data.pairs import Pair
from unet_fast.data.stacks import PathLike, parse_slices
from unet_fast.errors import InputError

__all__ = ["Dataset", "Item", "read_dataset"]

SEQUENCE = "sequence:"


@dataclass
class Dataset:
    """Labelled images of any sizes.

    layout: which of the layouts was recognised, in words.
    items: images with interpreted labels, in the order in which ``--val`` counts them.
    kind, num_classes, coding: as in :class:`unet_fast.data.Pair`.
    """

    layout: str
    items: list[Item]
    kind: Kind
    num_classes: int
    coding: Coding

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> list[str]:
        """One name an image."""
        return [item.name for item in self.items]

    @property
    def files(self) -> list[Path]:
        """Every file that was read."""
        return [file for item in self.items for file in item.files]

    def images(self, indices: Sequence[int]) -> ItemPages:
        """The images ``indices`` as pages to predict."""
        return ItemPages([self.items[index] for index in indices])

    @property
    def size(self) -> tuple[int, int]:
        """The commonest (height, width); the larger of two that are equally common."""
        counts = Counter(item.label.shape for item in self.items)
        height, width = max(counts, key=lambda shape: (counts[shape], shape))
        return height, width

    def of_sequence(self, name: str) -> list[int]:
        """Indices of the images of a sequence; ``InputError`` that lists the sequences for an unknown one."""
        known = sorted({item.sequence for item in self.items if item.sequence})
        if name not in known:
            raise InputError(f"there is no sequence {name!r}; sequences of this data: {', '.join(known) or 'none'}")
        return [index for index, item in enumerate(self.items) if item.sequence == name]

    def choose(self, text: str | None) -> list[int]:
        """Indices of the images that ``text`` names: ``"20:25"``, ``"3,7"``, ``"sequence:02"``; None names all."""
        if text is None:
            return list(range(len(self)))
        if text.startswith(SEQUENCE):
            return self.of_sequence(text.removeprefix(SEQUENCE))
        return parse_slices(text, len(self))

    def pair(self, indices: Sequence[int] | None = None) -> Pair:
        """The images ``indices`` (default all) as one stack of :attr:`size`.

        A larger image is cut into as few equal, evenly spaced pieces as cover it, which overlap where its size is no
        multiple. A smaller one is continued by its mirror image, whose pixels are ignored. Colour images whose channels
        agree in all of the data are read as grey; beside real colour, grey images get three equal channels.
        """
        chosen = [self.items[index] for index in (range(len(self)) if indices is None else indices)]
        if not chosen:
            raise InputError("no images are chosen, expected at least one")
        pieces = [piece for item in chosen for piece in _pieces(item, self.size)]
        ignored = [piece.ignored for piece in pieces]
        masks: np.ndarray | None = None
        if any(mask is not None for mask in ignored):
            masks = np.stack([np.zeros(self.size, bool) if mask is None else mask for mask in ignored])
        images = np.stack([piece.image for piece in pieces])
        labels, names = np.stack([piece.label for piece in pieces]), [piece.name for piece in pieces]
        return Pair(images, labels, self.kind, self.num_classes, names, masks, self.coding)

    def whole(self, indices: Sequence[int] | None = None) -> Pair:
        """The images ``indices`` (default all), each in one piece, as a stack of the greatest height and width.

        Smaller ones are continued by their mirror image, whose pixels are ignored: the form to score predictions in.
        """
        chosen = [self.items[index] for index in (range(len(self)) if indices is None else indices)]
        shapes = [item.label.shape for item in chosen]
        largest = (max(shape[0] for shape in shapes), max(shape[1] for shape in shapes))
        return replace(self, items=[_continued(item, largest) for item in chosen]).pair()


class ItemPages:
    """Images of a data set, of any sizes, as :class:`unet_fast.data.Pages` offers those of files."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items, self.names = list(items), [item.name for item in items]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._items[index].image

    def shape(self, index: int) -> tuple[int, int, int]:
        """(C, H, W) of image ``index``."""
        channels, height, width = self._items[index].image.shape
        return channels, height, width

    def select(self, indices: Sequence[int]) -> ItemPages:
        """Some of the images."""
        return ItemPages([self._items[index] for index in indices])


def read_dataset(
    path: PathLike, *, kind: Kind | None = None, num_classes: int | None = None, ignore_index: int | None = None
) -> Dataset:
    """Recognise and read a folder of labelled images.

    Layouts, tried in this order (see :mod:`unet_fast.data.datasets_layouts`): ISBI 2012 stacks, Cell Tracking Challenge,
    DRIVE, 2018 Data Science Bowl, and plain pairs of images and labels. ``kind``, ``num_classes`` and ``ignore_index`` are
    as in :func:`unet_fast.data.read_labels`; what the numbers mean is decided from all images together.

    Raises:
        InputError: none of the layouts (the message shows their trees), or what is there is incomplete or damaged.
        FileNotFoundError: no such folder.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist; check the path")
    for layout in LAYOUTS if root.is_dir() else ():
        found = layout.find(root)
        if found is None:
            continue
        items = layout.read(found)
        if not items:
            raise InputError(
                f"{found} looks like {layout.name}, but no image in it has labels; expected\n{layout.tree}"
            )
        items, coding = _interpreted(items, found, kind or layout.kind, num_classes, ignore_index)
        return Dataset(layout.name, _one_colour(items), coding.kind, coding.num_classes, coding)
    trees = "\n".join(f"{layout.name}:\n{layout.tree}" for layout in LAYOUTS)
    what = "holds no labelled images in a known layout" if root.is_dir() else "is a file, expected a folder"
    raise InputError(f"{root} {what}; use --images and --labels, or arrange the files as one of\n{trees}")


def _interpreted(
    items: list[Item], path: Path, kind: Kind | None, num_classes: int | None, ignore_index: int | None
) -> tuple[list[Item], Coding]:
    """Labels of one kind, whose numbers mean the same in all images, of whatever size."""
    labels = [item.label[None] for item in items]
    coding = decide(labels, [item.name for item in items], path, kind, num_classes, ignore_index)
    result = []
    for item, label in zip(items, labels, strict=True):
        void = coding.left_out(label)
        ignored = item.ignored if void is None else void[0] if item.ignored is None else item.ignored | void[0]
        result.append(replace(item, label=coding.decode(label)[0], ignored=ignored))
    return result, coding


def _one_colour(items: list[Item]) -> list[Item]:
    """The same number of channels everywhere: grey where all channels agree in all images, else three."""
    grey = all(len(item.image) == 1 or bool((item.image == item.image[:1]).all()) for item in items)
    if grey:
        return [replace(item, image=item.image[:1]) for item in items]
    channels = max(len(item.image) for item in items)
    for item in items:
        if len(item.image) not in (1, channels):
            raise InputError(
                f"the image {item.name} has {len(item.image)} channels, others have {channels}; convert them to one"
            )
    return [
        replace(item, image=np.repeat(item.image, channels, axis=0)) if len(item.image) == 1 else item for item in items
    ]


def _pieces(item: Item, size: tuple[int, int]) -> list[Item]:
    """``item`` as pieces of ``size``."""
    if item.label.shape == size:
        return [item]
    item = _continued(item, size)
    return [
        replace(
            item,
            image=item.image[:, y : y + size[0], x : x + size[1]],
            label=item.label[y : y + size[0], x : x + size[1]],
            ignored=None if item.ignored is None else item.ignored[y : y + size[0], x : x + size[1]],
            name=f"{item.name}[{y},{x}]",
        )
        for y in _starts(item.label.shape[0], size[0])
        for x in _starts(item.label.shape[1], size[1])
    ]


def _continued(item: Item, size: tuple[int, int]) -> Item:
    """``item`` with at least ``size``: its mirror image below and to the right, ignored."""
    shape = item.label.shape
    border = [(0, max(0, wanted - length)) for wanted, length in zip(size, shape, strict=True)]
    if not any(after for _, after in border):
        return item
    return replace(
        item,
        image=np.pad(item.image, [(0, 0), *border], mode="reflect"),
        label=np.pad(item.label, border),
        ignored=np.pad(np.zeros(shape, bool) if item.ignored is None else item.ignored, border, constant_values=True),
    )


def _starts(length: int, size: int) -> list[int]:
    count = -(-length // size)
    return [0] if count == 1 else [index * (length - size) // (count - 1) for index in range(count)]
