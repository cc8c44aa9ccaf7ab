"""Objects across bands of an image: the numbers are those of the whole image, which is never in memory."""

from __future__ import annotations

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.csgraph import connected_components


class Join:
    """4-connected components of a mask that arrives in bands of whole rows, from the top.

    Each band is labelled by itself; what touches across the line between two bands is remembered as a pair, and the
    pairs are resolved at the end. Memory: a few numbers an object, and one row.

    Equivalent to, with all bands below each other::

        unet_fast.predict.foreground_instances(np.concatenate(bands), threshold=0.5, min_size=min_size)
    """

    def __init__(self) -> None:
        self._count = 0
        self._offsets: list[int] = []
        self._sizes: list[np.ndarray] = [np.zeros(1, np.int64)]
        self._pairs: list[np.ndarray] = []
        self._last: np.ndarray | None = None

    def __len__(self) -> int:
        """Bands so far."""
        return len(self._offsets)

    def add(self, mask: np.ndarray, *, counted: np.ndarray | None = None) -> None:
        """The next band, (h, W) bool. The size of a component is the number of its pixels, or of those ``counted``."""
        labels, count = ndimage.label(mask)
        self._offsets.append(self._count)
        counts = labels if counted is None else labels[counted]
        self._sizes.append(np.bincount(counts.ravel(), minlength=count + 1)[1:].astype(np.int64))
        first = np.where(labels[0] > 0, labels[0].astype(np.int64) + self._count, 0)
        if self._last is not None:
            both = (first > 0) & (self._last > 0)
            self._pairs.append(np.unique(np.stack([self._last[both], first[both]], axis=1), axis=0))
        self._last = np.where(labels[-1] > 0, labels[-1].astype(np.int64) + self._count, 0)
        self._count += count

    def numbers(self, min_size: int) -> np.ndarray:
        """int64 (n + 1,): the number of every component of a band, in order; 0 for what is too small.

        In narrower integers, which the caller may choose, :meth:`band` is faster.
        """
        pairs = np.concatenate([np.zeros((0, 2), np.int64), *self._pairs])
        size = self._count + 1
        graph = sparse.coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
        _, group = connected_components(graph, directed=False)
        # groups are named after their first member, which is that of the first pixel in reading order
        _, first, group = np.unique(group, return_index=True, return_inverse=True)
        total = np.zeros(len(first), np.int64)
        np.add.at(total, group, np.concatenate(self._sizes))
        kept = total >= min_size
        kept[group[0]] = False  # background
        order = np.argsort(first)
        number = np.zeros(len(first), np.int64)
        number[order] = np.cumsum(kept[order])
        return np.where(kept, number, 0)[group]

    def band(self, index: int, mask: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Band ``index`` again, as the final numbers (h, W), in the dtype of ``numbers``."""
        labels, _ = ndimage.label(mask)
        own = numbers[self._offsets[index] : self._offsets[index] + int(labels.max()) + 1].copy()
        own[0] = 0
        return own[labels]
