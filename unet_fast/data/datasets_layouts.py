"""The layouts of public data sets: how each is recognised, what its tree looks like, how it is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unet_fast.data.formats import SUFFIXES, check_regular, decode_file, natural_key
from unet_fast.data.label_kinds import Kind
from unet_fast.data.labels import label_values
from unet_fast.data.pairs import paired_pages
from unet_fast.data.stacks import Stack, check_finite, folder_images, list_images
from unet_fast.errors import InputError
from unet_fast.files import reading
from unet_fast.notes import note

_LABEL_NAMES = ("labels", "masks", "instances")
_SILVER, _GOLD = "_ST", "_GT"
_TIFF = (".tif", ".tiff")


@dataclass(frozen=True)
class Item:
    """One labelled image.

    image: ``(C, H, W)`` in the stored dtype. label: ``(H, W)`` integer. ignored: ``(H, W)`` bool, pixels that count
    nowhere, or None. name: for messages. sequence: of a time series, or "". files: what was read for it.
    """

    image: np.ndarray
    label: np.ndarray
    name: str
    ignored: np.ndarray | None = None
    sequence: str = ""
    files: tuple[Path, ...] = ()


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
    candidates = [root / name, *(root / f"{name}{suffix}" for suffix in SUFFIXES)]
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


def _label(path: Path) -> np.ndarray:
    """One label image (H, W) of whole numbers."""
    return label_values(Stack(_decode(path, indexed=True)[None], [path.stem]), path)[0]


def _check_size(image: np.ndarray, label: np.ndarray, image_file: Path, label_file: Path) -> None:
    if image.shape[1:] != label.shape:
        raise InputError(
            f"{image_file} is {image.shape[1]} x {image.shape[2]} but {label_file} is {label.shape[0]} x "
            f"{label.shape[1]}; crop or resize them to the same height and width"
        )


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
    sources, targets = paired_pages(images, labels)
    single = len(sources.files) == len(sources) > 1
    items = []
    for index in range(len(sources)):
        (image_file, _), (label_file, _) = sources.place(index), targets.place(index)
        image = sources[index]
        label = label_values(Stack(targets[index][None], [targets.names[index]]), label_file)[0]
        _check_size(image, label, image_file, label_file)
        name = image_file.stem if single else f"{image_file.stem}[{index}]"
        check_finite(image, f"the image {name} of {image_file}")
        items.append(Item(image, label, name, files=(image_file, label_file)))
    return items


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
    items = []
    for sequence in _sequences(root):
        frames = _frames(root / sequence)
        for frame, label_file in sorted(_annotations(root, sequence).items()):
            if frame not in frames:
                raise InputError(f"{label_file} labels frame {frame}, but {root / sequence} holds no t{frame:03d}.tif")
            image, label = _decode(frames[frame]), _label(label_file)
            _check_size(image, label, frames[frame], label_file)
            name = f"{sequence}/{frames[frame].stem}"
            items.append(Item(image, label, name, sequence=sequence, files=(frames[frame], label_file)))
    return items


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
        image, label = _decode(image_file), _label(vessels[number])
        _check_size(image, label, image_file, vessels[number])
        outside = None
        used = [image_file, vessels[number]]
        if fields:
            used.append(fields[number])
            field = _label(fields[number])
            _check_size(image, field, image_file, fields[number])
            outside = field == 0
        items.append(Item(image, label, image_file.stem, outside, files=tuple(used)))
    return items


# 2018 Data Science Bowl ---------------------------------------------------------------------------------------------


def _cases(root: Path) -> list[Path]:
    return [path for path in _folders(root) if (path / "images").is_dir() and (path / "masks").is_dir()]


def _find_dsb(root: Path) -> Path | None:
    return next((path for path in (root, root / "stage1_train") if path.is_dir() and _cases(path)), None)


def _read_dsb(root: Path) -> list[Item]:
    items = []
    for case in _cases(root):
        files = list_images(case / "images")
        if len(files) != 1:
            raise InputError(f"{case / 'images'} holds {len(files)} images, expected one")
        image = _decode(files[0])
        label = np.zeros(image.shape[1:], np.int32)
        masks = folder_images(case / "masks")
        for number, file in enumerate(masks, start=1):
            mask = _label(file)
            _check_size(image, mask, files[0], file)
            label[mask != 0] = number
        items.append(Item(image, label, case.name, files=(*files, *masks)))
    return items


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
        "plain pairs",
        "  images/ (or images.tif)   and labels/, masks/ or instances/ (or .tif), files named alike",
        _find_plain,
        _read_plain,
    ),
)
