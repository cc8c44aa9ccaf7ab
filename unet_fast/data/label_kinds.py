"""What the numbers of label files mean: masks, classes or instances, told apart by the numbers and by how they lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from unet_fast.errors import InputError
from unet_fast.labels import Kind

Slices = (
    Sequence[np.ndarray] | np.ndarray
)  # (H, W) one by one: an array (N, H, W), or anything that reads them when they are taken

# The rule of detect_kind. Up to four values are rather classes (a crop may show each class once); class numbers beyond
# 63 are unheard of in class maps, while grey-coded masks and photographs given by mistake have them.
_MIN_INSTANCES = 5
MAX_CLASS = 63
_PROBED_SLICES = 32
# of a mask with grey rims: share of the brightest value among what is not 0, and of grey pixels that lie in a rim
_BRIGHT_SHARE, _RIM_SHARE, _RIM_WIDTH = 0.2, 0.9, 3


def detect_kind(labels: np.ndarray) -> Kind:
    """Tell ``(N, H, W)`` labels without negative values apart. The rule, in this order:

    1. one or two distinct values (0/255, 0/1, ...), or 0/255 with grey rims (see :func:`has_grey_rims`): ``"mask"``;
    2. at least five different non-zero values, for at least half of the (slice, value) pairs all pixels of the
       value form one 8-connected component, and at least half of the non-zero pixels have a 4-neighbour of the same
       value: ``"instances"``;
    3. no value above 63: ``"classes"``;
    4. otherwise the labels are refused: grey-coded classes (0/128/255) have to be renumbered, and a grey image given
       in place of labels is noticed.

    Components are counted in at most 32 slices, evenly spaced. Class maps of five or more organs that each appear in
    one piece look like instances, and images with fewer than five objects in all look like classes: give the kind then.
    """
    labels = np.asarray(labels)
    return kind_of([labels], distinct([labels]), "the labels")


def kind_of(stacks: Sequence[Slices], values: np.ndarray, path: object) -> Kind:
    """:func:`detect_kind` of several stacks together, each a sequence of ``(H, W)``, whose sorted distinct ``values`` are known."""
    if len(values) <= 2 or has_grey_rims(stacks, values):
        return "mask"
    if np.count_nonzero(values) >= _MIN_INSTANCES and _in_one_piece(stacks):
        return "instances"
    if values[-1] <= MAX_CLASS:
        return "classes"
    raise InputError(
        f"{path} holds {len(values)} different labels ({shown(values)}) that are neither a mask, nor classes 0 to "
        f"{MAX_CLASS}, nor instances in one piece each; renumber the classes from 0, give the kind (--label-kind), or check that "
        "this is the label file"
    )


def has_grey_rims(stacks: Sequence[Slices], values: np.ndarray) -> bool:
    """Whether the labels are a mask that was resized with interpolation: 0 and a bright value, with grey rims between.

    The largest value is not a class number (above 63) and makes up at least a fifth of what is not 0; some value between lies
    above 63 as well; and at least nine tenths of the pixels between lie within 3 px of the largest value. Instances
    and classes fill areas, rims do not.
    """
    top = values[-1]
    if top <= MAX_CLASS or not np.any((values > MAX_CLASS) & (values < top)) or values[0] < 0:
        return False
    from scipy import ndimage

    bright = grey = rim = 0
    for image in _probes(stacks):
        core = image == top
        between = (image > 0) & ~core
        bright += int(core.sum())
        grey += int(between.sum())
        rim += (
            int((between & ndimage.binary_dilation(core, np.ones((3, 3), bool), _RIM_WIDTH)).sum()) if core.any() else 0
        )
    return bright > 0 and bright >= _BRIGHT_SHARE * (bright + grey) and rim >= _RIM_SHARE * grey


def _in_one_piece(stacks: Sequence[Slices]) -> bool:
    """Whether most (slice, non-zero value) pairs are 8-connected, and made of pixels that have neighbours of their value."""
    from skimage.measure import label as components

    pairs = whole = pixels = beside = 0
    for image in _probes(stacks):
        nonzero = image != 0
        alike = np.zeros(image.shape, bool)
        for axis in (0, 1):
            same = np.diff(image, axis=axis) == 0
            alike |= np.pad(same, [(0, int(a == axis)) for a in (0, 1)])
            alike |= np.pad(same, [(int(a == axis), 0) for a in (0, 1)])
        pixels += int(nonzero.sum())
        beside += int((nonzero & alike).sum())
        image = np.unique(image, return_inverse=True)[1].reshape(image.shape) + int(image.min() != 0)
        parts, count = components(image, background=0, connectivity=2, return_num=True)
        owner = np.zeros(count + 1, np.int64)
        owner[parts] = image  # every pixel of a component writes the same value
        pieces = np.bincount(owner[1:])
        pairs += int(np.count_nonzero(pieces))
        whole += int(np.count_nonzero(pieces == 1))
    return whole >= 0.5 * max(pairs, 1) and beside >= 0.5 * pixels


def _probes(stacks: Sequence[Slices]) -> Iterator[np.ndarray]:
    """At most 32 slices of the stacks together, evenly spaced."""
    step = -(-sum(len(stack) for stack in stacks) // _PROBED_SLICES)
    index = 0
    for stack in stacks:
        yield from (stack[i] for i in range(-index % step, len(stack), step))
        index += len(stack)


def distinct(stacks: Sequence[Slices]) -> np.ndarray:
    """Sorted distinct values of integer stacks; slice by slice, and by counting where the values are small."""
    found: set[int] = set()
    for stack in stacks:
        for image in stack:
            if image.dtype.itemsize == 1 and image.dtype.kind != "i":
                found.update(_distinct_bytes(image.view(np.uint8)))
            else:
                found.update(np.unique(image).tolist())
    return np.array(sorted(found), dtype=object if found and max(found) >= 2**63 else np.int64)


def _distinct_bytes(image: np.ndarray) -> list[int]:
    """Distinct values of a uint8 image; of one or two, as masks have, several times as fast as by counting all."""
    if image.size == 0:
        return []
    low, high = int(image.min()), int(image.max())
    if np.count_nonzero(image == low) + (np.count_nonzero(image == high) if high > low else 0) == image.size:
        return [low, high]
    return np.flatnonzero(np.bincount(image.ravel())).tolist()


def shown(values: np.ndarray) -> str:
    """The first of some values, for a message."""
    return ", ".join(str(value) for value in values[:6]) + (", ..." if len(values) > 6 else "")
