"""Objects out of a network that tells cores from rims: each core grows until it meets another one or the background.

What is kept of a prediction is one byte a pixel, its *level*: 0 for background, else 1 + 254 times the probability of a core.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from scipy import ndimage

from unet_fast.data.cores import CORE
from unet_fast.predict.join import Join

_HEIGHT = 64  # levels by which a summit rises above the saddle to a higher one: a quarter of certainty
_SMOOTHING = 1.0  # standard deviation in pixels of the Gaussian that takes the noise of single pixels away
HALO = 256  # rows around a band that take part in its growth


def levels_of(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """(N, 3, H, W) probabilities of background, rim and core -> levels (N, H, W) uint8."""
    levels = 1 + np.rint(254 * probabilities[:, CORE]).astype(np.uint8)
    return np.where(1 - probabilities[:, 0] > threshold, levels, np.uint8(0))


def core_instances(levels: np.ndarray, *, min_size: int) -> np.ndarray:
    """The objects of levels (H, W): int32, 0 = background, numbered from 1 in the reading order of their markers.

    The *relief* are the levels after a Gaussian of 1 px, 0 in the background. Markers are its extended maxima of height 64: summits
    that rise by a quarter of certainty above the saddle to a higher one (Soille, Morphological Image Analysis, section 6.3.4), and
    the components of the foreground that hold none. They grow by a watershed of the relief over the foreground; objects of
    fewer than ``min_size`` pixels are removed at the end.

    Equivalent to, where every component of the foreground holds a summit::

        relief = np.where(levels > 0, np.rint(scipy.ndimage.gaussian_filter(levels.astype(float), 1)), 0)
        lower = skimage.morphology.reconstruction(np.maximum(relief - 64, 0), relief, footprint=cross)  # 4 neighbours
        summits = skimage.morphology.local_maxima(lower, connectivity=1) & (lower > 0)
        markers = scipy.ndimage.label(summits)[0]
        labels = skimage.segmentation.watershed(-relief, markers, mask=levels > 0)
    """
    return next(grown(lambda: iter([levels]), min_size))


def grown(bands: Callable[[], Iterator[np.ndarray]], min_size: int) -> Iterator[np.ndarray]:
    """:func:`core_instances` of levels that arrive in bands of whole rows, each time anew: int32 (h, W), band by band.

    A band has its summits, and grows, together with ``HALO`` rows around it; markers and numbers are joined over the whole image.
    So the lines between touching objects, and their number, depend on the bands only where these reach further than that.
    """
    pieces, markers = Join(), Join()

    def summits() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for (window,), own in _windows(zip(bands(), strict=True)):
            yield window[own], _summits(relief_of(window))[own]

    for levels, found in summits():
        pieces.add(levels > 0, counted=found)
    with_summit = pieces.numbers(1)

    def marks() -> Iterator[np.ndarray]:
        for index, (levels, found) in enumerate(summits()):
            yield found | ((levels > 0) & (pieces.band(index, levels > 0, with_summit) == 0))

    for mask in marks():
        markers.add(mask)
    numbers = markers.numbers(0).astype(np.int32)

    def labels() -> Iterator[np.ndarray]:
        numbered = (markers.band(index, mask, numbers) for index, mask in enumerate(marks()))
        for (window, marked), own in _windows(zip(bands(), numbered, strict=True)):
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


def relief_of(levels: np.ndarray) -> np.ndarray:
    """Levels (H, W) without the noise of single pixels: int16, 0 in the background."""
    smooth = ndimage.gaussian_filter(levels.astype(np.float32), _SMOOTHING)
    return np.where(levels > 0, np.rint(smooth), 0).astype(np.int16)


def _summits(relief: np.ndarray) -> np.ndarray:
    """The extended maxima of a relief (H, W), bool."""
    from skimage.morphology import local_maxima, reconstruction

    if int(relief.max(initial=0)) <= _HEIGHT:
        return np.zeros(relief.shape, bool)
    cross = ndimage.generate_binary_structure(2, 1)
    lower = reconstruction(np.maximum(relief - _HEIGHT, 0), relief, footprint=cross)
    # a frame of background: at the edge of the image, too, a summit is what lies above its surroundings
    return np.asarray(local_maxima(np.pad(lower, 1), connectivity=1))[1:-1, 1:-1] & (lower > 0)


def _watershed(levels: np.ndarray, markers: np.ndarray) -> np.ndarray:
    from skimage.segmentation import watershed

    return np.asarray(watershed(-relief_of(levels), markers, mask=levels > 0), dtype=np.int32)


def _windows(bands: Iterator[tuple[np.ndarray, ...]]) -> Iterator[tuple[list[np.ndarray], slice]]:
    """Each band of one or several arrays with the bands around it that reach :data:`HALO` rows far, and its own rows among them."""
    before: deque[tuple[np.ndarray, ...]] = deque()
    after: deque[tuple[np.ndarray, ...]] = deque()
    while True:
        while _rows(list(after)[1:]) < HALO and (band := next(bands, None)) is not None:
            after.append(band)
        if not after:
            return
        start = _rows(before)
        own = slice(start, start + len(after[0][0]))
        yield [np.concatenate(parts) for parts in zip(*before, *after, strict=True)], own
        before.append(after.popleft())
        while len(before) > 1 and _rows(list(before)[1:]) >= HALO:
            before.popleft()


def _rows(bands: Iterable[tuple[np.ndarray, ...]]) -> int:
    return sum(len(band[0]) for band in bands)
