"""Objects out of a network that tells cores from rims: each core grows until it meets another one or the background.

What is kept of a prediction is one byte a pixel, its *level*: 0 for background, else 1 + 254 times the probability of a core.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from unet_fast.data.cores import CORE
from unet_fast.predict.join import Join

_CORE_LEVEL = 128  # cores are where their probability exceeds a half
HALO = 256  # rows around a band that take part in its growth


def levels_of(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """(N, 3, H, W) probabilities of background, rim and core -> levels (N, H, W) uint8."""
    levels = 1 + np.rint(254 * probabilities[:, CORE]).astype(np.uint8)
    return np.where(1 - probabilities[:, 0] > threshold, levels, np.uint8(0))


def core_instances(levels: np.ndarray, *, min_size: int) -> np.ndarray:
    """The objects of levels (H, W): int32, 0 = background, numbered from 1 in the reading order of their cores.

    Markers are the 4-connected components of the cores, and the components of the foreground that hold no core. They grow
    by a watershed of the probability of cores over the foreground; objects of fewer than ``min_size`` pixels are
    removed at the end.

    Equivalent to, where every component of the foreground holds a core::

        markers = scipy.ndimage.label(levels > 128)[0]
        labels = skimage.segmentation.watershed(-levels.astype(int), markers, mask=levels > 0)
    """
    return next(grown(lambda: iter([levels]), min_size))


def grown(bands: Callable[[], Iterator[np.ndarray]], min_size: int) -> Iterator[np.ndarray]:
    """:func:`core_instances` of levels that arrive in bands of whole rows, each time anew: int32 (h, W), band by band.

    Markers and numbers are those of the whole image; a band grows together with :data:`HALO` rows around it, so that the line
    between two touching objects depends on the bands where these reach further than that.
    """
    pieces, markers = Join(), Join()
    for levels in bands():
        pieces.add(levels > 0, counted=levels > _CORE_LEVEL)
    with_core = pieces.numbers(1)

    def marks() -> Iterator[np.ndarray]:
        for index, levels in enumerate(bands()):
            yield (levels > _CORE_LEVEL) | ((levels > 0) & (pieces.band(index, levels > 0, with_core) == 0))

    for mask in marks():
        markers.add(mask)
    numbers = markers.numbers(0).astype(np.int32)

    def labels() -> Iterator[np.ndarray]:
        numbered = (markers.band(index, mask, numbers) for index, mask in enumerate(marks()))
        for window, marked, own in _windows(bands(), numbered):
            yield _watershed(window, marked)[own]

    sizes = np.zeros(int(numbers.max()) + 1, np.int64)
    kept: list[np.ndarray] = []
    for number, band in enumerate(labels()):
        sizes += np.bincount(band.ravel(), minlength=len(sizes))
        kept = [band] if number == 0 else []
    large = sizes >= min_size
    large[0] = False
    final = np.where(large, np.cumsum(large), 0).astype(np.int32)
    for band in kept or labels():  # the only band of an image is not grown again
        yield final[band]


def _watershed(levels: np.ndarray, markers: np.ndarray) -> np.ndarray:
    from skimage.segmentation import watershed

    return np.asarray(watershed(-levels.astype(np.int16), markers, mask=levels > 0), dtype=np.int32)


def _windows(
    levels: Iterator[np.ndarray], markers: Iterator[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray, slice]]:
    """Each band with the bands around it that reach :data:`HALO` rows far: (levels, markers, its own rows among them)."""
    before: deque[tuple[np.ndarray, np.ndarray]] = deque()
    after: deque[tuple[np.ndarray, np.ndarray]] = deque()
    coming = zip(levels, markers, strict=True)
    while True:
        while _rows(list(after)[1:]) < HALO and (band := next(coming, None)) is not None:
            after.append(band)
        if not after:
            return
        window = [*before, *after]
        start = _rows(before)
        own = slice(start, start + len(after[0][0]))
        yield np.concatenate([each[0] for each in window]), np.concatenate([each[1] for each in window]), own
        before.append(after.popleft())
        while len(before) > 1 and _rows(list(before)[1:]) >= HALO:
            before.popleft()


def _rows(bands: Sequence[tuple[np.ndarray, np.ndarray]] | deque[tuple[np.ndarray, np.ndarray]]) -> int:
    return sum(len(band[0]) for band in bands)
