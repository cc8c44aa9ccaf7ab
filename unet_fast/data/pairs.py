"""Images together with their labels: which file belongs to which, and whether the two fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_fast.data.formats import natural_key, split_digits
from unet_fast.data.label_codes import Coding, LabelOptions
from unet_fast.data.labels import Kind
from unet_fast.data.pages import Pages
from unet_fast.data.stacks import PathLike, file_name, list_images
from unet_fast.errors import InputError
from unet_fast.notes import note

if TYPE_CHECKING:
    from typing_extensions import Unpack

# words that tell an image file from its label file, at either end of a name: cell7_img.png and cell7_mask.png
_ROLE_WORDS = frozenset(
    "image images img imgs im raw volume frame mask masks label labels lbl lab seg segmentation gt truth groundtruth "
    "annotation annotations instance instances inst target cp".split()
)


@dataclass
class Pair:
    """A labelled stack.

    images: ``(N, C, H, W)``, values and dtype as stored, finite (see :func:`unet_fast.data.normalize`).
    labels: ``(N, H, W)`` uint8 or int32, as in :class:`unet_fast.data.Labels`.
    kind: ``"mask"``, ``"classes"`` or ``"instances"``.
    num_classes: classes that a network for these labels has to tell apart.
    names: one name an image, for messages.
    ignored: ``(N, H, W)`` bool, pixels that neither a loss nor a score counts; None for none.
    coding: what the numbers of the label files meant; None for labels that came from no file.
    normalized: the images are normalised already, as float32: by the statistics of larger images of which they are windows.
    """

    images: np.ndarray
    labels: np.ndarray
    kind: Kind
    num_classes: int
    names: list[str]
    ignored: np.ndarray | None = None
    coding: Coding | None = None
    normalized: bool = False

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self.images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Sequence[int]) -> Pair:
        """The slices ``indices`` as a pair of its own (see :func:`unet_fast.data.parse_slices`).

        Neighbouring slices share the memory of this one.
        """
        order: Any = list(indices)
        if order and order == list(range(order[0], order[-1] + 1)):
            order = slice(order[0], order[-1] + 1)
        return replace(
            self,
            images=self.images[order],
            labels=self.labels[order],
            names=[self.names[i] for i in indices],
            ignored=None if self.ignored is None else self.ignored[order],
        )


def read_pair(images_path: PathLike, labels_path: PathLike, **options: Unpack[LabelOptions]) -> Pair:
    """Read images and labels that belong together; each path is a TIFF stack, a PNG, or a folder of such files.

    Files of two folders are matched by :func:`match_files`, and each must hold as many pages as its partner; pages of two
    files, or of one file and of the files of a folder, are paired by their order. ``kind``, ``num_classes`` and
    ``ignore_index`` are as in :func:`unet_fast.data.read_labels`.

    Raises what :func:`unet_fast.data.read_images` and :func:`unet_fast.data.read_labels` raise, and
    :class:`InputError` when the two differ in length or size, cannot be matched, or are the same file.
    """
    from unet_fast.data.datasets import read_matching  # which makes pairs

    return read_matching(images_path, labels_path, **options).pair()


def paired_pages(images_path: PathLike, labels_path: PathLike) -> tuple[Pages, Pages]:
    """Pages of images, and of their labels in the same order; ``InputError`` where they do not pair file by file."""
    if Path(images_path).exists() and Path(labels_path).exists() and Path(images_path).samefile(labels_path):
        raise InputError(f"images and labels are both {images_path}; give the file or folder of each")
    image_files, label_files = list_images(images_path), list_images(labels_path)
    if len(image_files) > 1 and len(label_files) > 1:
        label_files = match_files(image_files, label_files)
    images, labels = Pages(image_files), Pages(label_files, labels=True)
    check_pairing(images, images_path, labels, labels_path)
    return images, labels


def check_pairing(images: Pages, images_path: PathLike, labels: Pages, labels_path: PathLike) -> None:
    """Raise unless every file has as many pages as its partner; one file against several is paired by order, aloud."""
    if len(images.files) == len(labels.files):
        for image_file, label_file, a, b in zip(
            images.files, labels.files, images.counts(), labels.counts(), strict=True
        ):
            if a != b and len(images.files) > 1:
                raise InputError(
                    f"images and labels differ in length: {image_file} holds {a} images, its labels {label_file} hold {b}; "
                    "give one label page per image page"
                )
    if len(images) != len(labels):
        shapes = (
            f"{images_path} has shape {(len(images), *images.shape(0))} and {labels_path} has shape "
            f"{(len(labels), *labels.shape(0))} (N, C, H, W)"
        )
        raise InputError(f"images and labels differ in length: {shapes}; give stacks with one label image per image")
    if len(images.files) != len(labels.files):
        pairs = [f"{a} and {b}" for a, b in zip(images.names, labels.names, strict=True)]
        note(f"{images_path} and {labels_path} are paired by the order of their pages: {_first(pairs)}")


def _first(items: Sequence[str]) -> str:
    return ", ".join(items[:4]) + (f", ... ({len(items)} in all)" if len(items) > 4 else "")


def match_files(
    images: Sequence[Path], labels: Sequence[Path], sides: tuple[str, str] = ("image", "label")
) -> list[Path]:
    """The label file of each image file, in the order of ``images``.

    The first of these rules by which any names agree decides, and must then pair all files:
    equal names without suffix (``a.png``, ``a.tif``), also when what no file could be called is left out, as in the names of
    predictions; equal names without words such as image, mask, label or
    instances at either end (``a_img.png``, ``a_mask.png``); equal numbers (``t007.tif``, ``man_seg007.tif``).
    Only where no names agree by any rule and the counts are equal are files paired by natural order, provided that
    the names of one side hold no numbers of their own: numbers that disagree say that the files do not belong together.

    Raises :class:`InputError` that names a file without partner, and calls the two what ``sides`` says.
    """
    # a prediction is named by what of the image's name any file could be called
    rules: tuple[Callable[[Path], Hashable], ...] = (
        lambda file: file.stem,
        lambda file: file_name(file.stem),
        _plain_name,
        _numbers,
    )
    for rule in rules:
        image_keys, label_keys = [rule(file) for file in images], [rule(file) for file in labels]
        by_key = dict(zip(label_keys, labels, strict=True))
        common = set(image_keys) & set(by_key)
        unique = len(set(image_keys)) == len(images) and len(by_key) == len(labels)
        if not unique or not common or (rule is _plain_name and len(common) == 1 and "" in common):
            continue
        if len(common) == len(images) == len(labels):
            return [by_key[key] for key in image_keys]
        if rule in rules[:2]:
            continue  # some names may agree by chance before the role words are taken off
        break
    else:
        numbered = all(len({_numbers(file) for file in files}) == len(files) for files in (images, labels))
        if len(images) == len(labels) and not numbered:
            partners = sorted(labels, key=lambda file: natural_key(file.name))
            pairs = [f"{image.name} and {partner.name}" for image, partner in zip(images, partners, strict=True)]
            note(
                f"no names of the {sides[0]} and the {sides[1]} files agree, so they are paired by their order, which may be "
                f"wrong: {_first(pairs)}"
            )
            return partners
        image_keys, by_key = [file.stem for file in images], {file.stem: file for file in labels}
    lonely = [file for file, key in zip(images, image_keys, strict=True) if key not in by_key]
    side, other = sides
    if not lonely:
        lonely = [file for key, file in by_key.items() if key not in set(image_keys)]
        side, other = other, side
    more = f" (nor have {len(lonely) - 1} more)" if len(lonely) > 1 else ""
    raise InputError(
        f"{len(images)} {sides[0]} and {len(labels)} {sides[1]} files do not match: the {side} {lonely[0]} has no {other}{more}; "
        "name the files alike (cell7.tif and cell7_mask.tif), or give stacks"
    )


def _plain_name(file: Path) -> str:
    """Name without suffix and without the words that say image or label, in lower case."""
    words = [word for word in re.split(r"[-_. ]+|(?<=[a-z])(?=[0-9])", file.stem.lower()) if word]
    while words and words[0] in _ROLE_WORDS:
        words.pop(0)
    while words and words[-1] in _ROLE_WORDS:
        words.pop()
    return "_".join(words)


def _numbers(file: Path) -> tuple[int, ...]:
    """All numbers in the name."""
    return tuple(int(digits) for digits, _ in split_digits(file.stem) if digits)
