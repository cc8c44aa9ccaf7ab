"""The layouts of public data sets: how each is recognised, what its tree looks like, how it is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from unet_fast.data.formats import SUFFIXES, decode_file, natural_key
from unet_fast.data.items import Item, MadeSource, PageSource, Place, Source, items_of, sizes_differ
from unet_fast.data.label_kinds import Kind
from unet_fast.data.labels import label_values
from unet_fast.data.pages import Pages
from unet_fast.data.pairs import paired_pages
from unet_fast.data.stacks import Stack, folder_images, list_images
from unet_fast.data.zarr_files import SUFFIX as ZARR
from unet_fast.data.zarr_files import is_zarr, label_names
from unet_fast.errors import InputError
from unet_fast.files import check_regular, reading
from unet_fast.notes import note

_LABEL_NAMES = ("labels", "masks", "instances")
_SILVER, _GOLD = "_ST", "_GT"
_TIFF = (".tif", ".tiff")


@dataclass(frozen=True)
class Layout:
    """A layout: its name and tree for messages, ``find(root)`` -> the folder to read or None, ``read(folder)``.

    ``kind`` is what its labels are, None where that differs from data set to data set.
    """

    name: str
    tree: str
    find: Callable[[Path], Path | None]
    read: Callable[[Path], list[Item]]
    kind: Kind | None = None


def _folders(root: Path) -> list[Path]:
    return sorted(
        (path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")),
        key=lambda path: natural_key(path.name),
    )


def _image_or_folder(root: Path, name: str) -> Path | None:
    """``root/name`` with the suffix of an image, or the folder of that name."""
    candidates = [root / name, *(root / f"{name}{suffix}" for suffix in (*SUFFIXES, ZARR))]
    return next((path for path in candidates if path.exists()), None)


def _decode(path: Path, *, indexed: bool = False) -> np.ndarray:
    """One image (C, H, W) of a file that holds one; GIF, in which DRIVE keeps its masks, as well."""
    if path.suffix.lower() == ".gif":
        from PIL import Image, UnidentifiedImageError

        check_regular(path)
        reading(path)
        try:
            with Image.open(path) as image:
                if getattr(image, "n_frames", 1) > 1:
                    raise InputError(f"{path} is an animated GIF of {image.n_frames} frames, expected one image")  # type: ignore[attr-defined]
                return np.asarray(image.convert("L"))[None]
        except InputError:
            raise
        except (
            UnidentifiedImageError,
            Image.DecompressionBombError,
            EOFError,
            ValueError,
            SyntaxError,
            OSError,
        ) as error:
            raise InputError(f"{path} cannot be read as an image ({error}); copy or export the file again") from error
    pages = decode_file(path, indexed=indexed)
    if len(pages) != 1:
        raise InputError(
            f"{path} holds {len(pages)} images, expected one; 3-D images and stacks do not fit this layout"
        )
    return pages[0]


def _label(path: Path, size: Place, image: Path) -> np.ndarray:
    """One label image (H, W) of whole numbers, which must have the size of its image."""
    label = label_values(Stack(_decode(path, indexed=True)[None], [path.stem]), path)[0]
    if label.shape != size:
        raise sizes_differ(image, size, path, label.shape)
    return label


def _made(file: Path, image: Path, size: Place) -> MadeSource:
    """The label of a file that may be no page: a GIF."""
    return MadeSource(partial(_label, file, size, image), file, size, np.dtype(np.int32))


def _single_pages(files: Sequence[Path], *, labels: bool = False) -> Pages:
    """The pages of files that hold one image each."""
    pages = Pages(files, labels=labels)
    for file, count in zip(pages.files, pages.counts(), strict=True):
        if count != 1:
            raise InputError(f"{file} holds {count} images, expected one; 3-D images and stacks do not fit this layout")
    return pages


# ISBI 2012 and plain pairs ------------------------------------------------------------------------------------------


def _find_isbi(root: Path) -> Path | None:
    return root if all(_image_or_folder(root, name) for name in ("train-volume", "train-labels")) else None


def _read_isbi(root: Path) -> list[Item]:
    return _read_matching(_image_or_folder(root, "train-volume"), _image_or_folder(root, "train-labels"))


def _plain_labels(root: Path) -> Path | None:
    return next((path for name in _LABEL_NAMES if (path := _image_or_folder(root, name))), None)


def _find_plain(root: Path) -> Path | None:
    return root if _image_or_folder(root, "images") and _plain_labels(root) else None


def _read_plain(root: Path) -> list[Item]:
    return _read_matching(_image_or_folder(root, "images"), _plain_labels(root))


def _read_matching(images: Path | None, labels: Path | None) -> list[Item]:
    """Stacks page by page, or folders file by file, whose images may differ in size."""
    assert images is not None and labels is not None  # the layout was found
    return items_of(*paired_pages(images, labels))


def _find_ome(root: Path) -> Path | None:
    return root if is_zarr(root) and label_names(root) else None


def _read_ome(root: Path) -> list[Item]:
    names = label_names(root)
    if len(names) > 1:
        raise InputError(
            f"{root} has several labels: {', '.join(names)}; name one: --images {root} --labels {root / 'labels' / names[0]}"
        )
    return _read_matching(root, root / "labels" / names[0])


# Cell Tracking Challenge --------------------------------------------------------------------------------------------


def _annotations(root: Path, sequence: str) -> dict[int, Path]:
    """Label file of every annotated frame; the gold truth goes before the silver one."""
    files: dict[int, Path] = {}
    for suffix in (_SILVER, _GOLD):
        folder = root / f"{sequence}{suffix}" / "SEG"
        for file in folder_images(folder, _TIFF) if folder.is_dir() else ():
            if not file.name.startswith("man_seg"):
                continue
            numbers = re.findall(r"\d+", file.stem)
            if len(numbers) != 1:
                raise InputError(f"{file} labels one plane of a 3-D image; only 2-D sequences are supported")
            files[int(numbers[0])] = file
    return files


def _sequences(root: Path) -> list[str]:
    return [path.name for path in _folders(root) if path.name.isdecimal() and _annotations(root, path.name)]


def _find_ctc(root: Path) -> Path | None:
    return root if _sequences(root) else None


def _read_ctc(root: Path) -> list[Item]:
    found: list[tuple[str, Path, Path]] = []
    for sequence in _sequences(root):
        frames = _frames(root / sequence)
        for frame, label_file in sorted(_annotations(root, sequence).items()):
            if frame not in frames:
                raise InputError(f"{label_file} labels frame {frame}, but {root / sequence} holds no t{frame:03d}.tif")
            found.append((sequence, frames[frame], label_file))
    images = _single_pages([image for _, image, _ in found])
    labels = _single_pages([label for *_, label in found], labels=True)
    return [
        Item(
            f"{sequence}/{image.stem}",
            PageSource(images, index),
            PageSource(labels, index),
            sequence=sequence,
            files=(image, label),
        )
        for index, (sequence, image, label) in enumerate(found)
    ]


def _frames(folder: Path) -> dict[int, Path]:
    """The images of a sequence by their frame; other files beside them (a mean, a preview) are left out, aloud."""
    frames: dict[int, Path] = {}
    others = []
    for file in folder_images(folder, _TIFF):
        number = re.fullmatch(r"t(\d+)", file.stem)
        if number is None:
            others.append(file.name)
        elif int(number.group(1)) in frames:
            raise InputError(
                f"{frames[int(number.group(1))]} and {file} are both frame {int(number.group(1))}; keep one of them"
            )
        else:
            frames[int(number.group(1))] = file
    if others:
        note(
            f"{folder}: {', '.join(others[:4])}{', ...' if len(others) > 4 else ''} left out: no frames, which are called t000.tif"
        )
    return frames


# DRIVE --------------------------------------------------------------------------------------------------------------


def _find_drive(root: Path) -> Path | None:
    places = (root, root / "training")
    return next((path for path in places if (path / "images").is_dir() and (path / "1st_manual").is_dir()), None)


def _numbered(folder: Path) -> dict[int, Path]:
    """Files by the number at the start of their name: 21_training.tif, 21_manual1.gif, 21_training_mask.gif."""
    files: dict[int, Path] = {}
    for file in folder_images(folder, (*SUFFIXES, ".gif")) if folder.is_dir() else ():
        number = re.match(r"\d+", file.name)
        if number is None:
            note(f"{file} left out: its name does not begin with the number of an image")
            continue
        twin = files.setdefault(int(number.group()), file)
        if twin is not file:
            raise InputError(f"{twin} and {file} have the same number; keep one of them")
    return files


def _read_drive(root: Path) -> list[Item]:
    images, vessels, fields = (_numbered(root / name) for name in ("images", "1st_manual", "mask"))
    items = []
    for number, image_file in images.items():
        if number not in vessels:
            raise InputError(f"{image_file} has no manual vessels: {root / '1st_manual'} holds no file {number:02d}_*")
        if fields and number not in fields:
            raise InputError(f"{image_file} has no field of view: {root / 'mask'} holds no file {number:02d}_*")
        used = (image_file, vessels[number], *([fields[number]] if fields else []))
        pixels: Source
        if image_file.suffix.lower() == ".gif":
            grey = _decode(image_file)
            pixels = MadeSource(partial(_decode, image_file), image_file, grey.shape[1:], grey.dtype)
        else:
            pixels = PageSource(_single_pages([image_file]), 0)
        size = pixels.shape[1:]
        drawn, *field = (_made(file, image_file, size) for file in used[1:])
        outside = field[0] if field else None
        items.append(Item(image_file.stem, pixels, drawn, outside, files=used))
    return items


# 2018 Data Science Bowl ---------------------------------------------------------------------------------------------


def _cases(root: Path) -> list[Path]:
    return [path for path in _folders(root) if (path / "images").is_dir() and (path / "masks").is_dir()]


def _find_dsb(root: Path) -> Path | None:
    return next((path for path in (root, root / "stage1_train") if path.is_dir() and _cases(path)), None)


def _read_dsb(root: Path) -> list[Item]:
    cases = []
    for case in _cases(root):
        files = list_images(case / "images")
        if len(files) != 1:
            raise InputError(f"{case / 'images'} holds {len(files)} images, expected one")
        cases.append((case.name, files[0], folder_images(case / "masks")))
    images = _single_pages([image for _, image, _ in cases])
    items = []
    for index, (name, image, masks) in enumerate(cases):
        pixels = PageSource(images, index)
        together = partial(_one_number_a_mask, masks, image, pixels.shape[1:])
        drawn = MadeSource(together, image, pixels.shape[1:], np.dtype(np.int32))
        items.append(Item(name, pixels, drawn, files=(image, *masks)))
    return items


def _one_number_a_mask(masks: Sequence[Path], image: Path, size: Place) -> np.ndarray:
    label = np.zeros(size, np.int32)
    for number, file in enumerate(masks, start=1):
        label[_label(file, size, image) != 0] = number
    return label


LAYOUTS = (
    Layout(
        "ISBI 2012 stacks",
        "  train-volume.tif   train-labels.tif",
        _find_isbi,
        _read_isbi,
    ),
    Layout(
        "Cell Tracking Challenge",
        "  01/t000.tif ...   01_GT/SEG/man_seg000.tif ...   and/or 01_ST/SEG/man_seg000.tif ...   02/ ...",
        _find_ctc,
        _read_ctc,
        "instances",
    ),
    Layout(
        "DRIVE",
        "  [training/]images/21_training.tif ...   1st_manual/21_manual1.gif ...   mask/21_training_mask.gif ...",
        _find_drive,
        _read_drive,
        "mask",
    ),
    Layout(
        "2018 Data Science Bowl",
        "  [stage1_train/]ID/images/ID.png   ID/masks/*.png (one nucleus each)   for every ID",
        _find_dsb,
        _read_dsb,
        "instances",
    ),
    Layout(
        "OME-Zarr image with labels",
        "  IMAGE.zarr, whose group labels names one label image",
        _find_ome,
        _read_ome,
    ),
    Layout(
        "plain pairs",
        "  images/ (or images.tif, images.zarr)   and labels/, masks/ or instances/ (or .tif, .zarr), files named alike",
        _find_plain,
        _read_plain,
    ),
)
