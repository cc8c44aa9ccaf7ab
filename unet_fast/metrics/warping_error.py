"""Warping error: the mismatches that no deformation of the truth can explain, so splits, mergers, holes and specks.

The truth is deformed towards the prediction by flipping *simple* pixels, whose flip changes no topology. A
pixel with the eight neighbours ``a b c / d . e / f g h`` is simple when the 4-connected components of the
foreground among the neighbours that touch the pixel by an edge, and the 8-connected components of the
background among them, are exactly one each (topological numbers of the (4, 8) adjacency). That depends on the
8 bits only: a table of 256 entries.

Sweep order (V. Jain et al., "Boundary learning by optimization with topological constraints", CVPR 2010):
mismatches by falling |p - t|, each flipped if simple at its turn, sweeps repeated until one changes nothing.
A pixel that was not simple at its last turn stays so until a neighbour flips; so each later turn visits only
neighbours of flips, from a heap in sweep order, and the result is that of full sweeps.
"""

from __future__ import annotations

import functools
import heapq
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.errors import InputError
from unet_fast.metrics._inputs import check_same_shape, label_stack, probability_stack

# (dy, dx) of the neighbour behind bit b; bit 7 - b is the opposite neighbour
_NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


def _components(cells: set[tuple[int, int]], diagonal: bool) -> list[set[tuple[int, int]]]:
    """Connected components of a set of neighbour positions."""
    found = []
    rest = set(cells)
    while rest:
        component, edge = set(), [rest.pop()]
        while edge:
            y, x = edge.pop()
            component.add((y, x))
            near = {c for c in rest if max(abs(c[0] - y), abs(c[1] - x)) == 1 and (diagonal or c[0] == y or c[1] == x)}
            rest -= near
            edge.extend(near)
        found.append(component)
    return found


@functools.cache
def simple_table() -> bytes:
    """256 bytes: 1 where the foreground neighbours given by the bits make the centre pixel simple."""
    table = bytearray(256)
    for bits in range(256):
        foreground = {cell for b, cell in enumerate(_NEIGHBOURS) if bits >> b & 1}
        background = set(_NEIGHBOURS) - foreground
        edge_touching = [c for c in _components(foreground, diagonal=False) if any(0 in cell for cell in c)]
        table[bits] = len(edge_touching) == 1 and len(_components(background, diagonal=True)) == 1
    return bytes(table)


def warp_truth(probabilities: NDArray[Any], truth: NDArray[np.bool_], threshold: float) -> NDArray[np.bool_]:
    """``truth`` (H, W) deformed, without a change of topology, as near to ``probabilities > threshold`` as it gets."""
    height, width = truth.shape
    stride = width + 2
    target = np.zeros((height + 2, stride), dtype=bool)
    target[1:-1, 1:-1] = probabilities > probabilities.dtype.type(threshold)
    state = np.zeros_like(target)
    state[1:-1, 1:-1] = truth
    codes = np.zeros_like(state, dtype=np.uint8)
    for b, (dy, dx) in enumerate(_NEIGHBOURS):
        codes[1:-1, 1:-1] |= state[1 + dy : height + 1 + dy, 1 + dx : width + 1 + dx].astype(np.uint8) << np.uint8(b)

    places = np.flatnonzero(target != state)
    y, x = np.divmod(places, stride)
    distance = np.abs(probabilities[y - 1, x - 1].astype(np.float64) - truth[y - 1, x - 1])
    places = places[np.argsort(-distance, kind="stable")]  # equal distances in raster order
    turn_of = np.full(state.size, -1, dtype=np.int64)
    turn_of[places] = np.arange(places.size)

    simple = simple_table()
    place_at: list[int] = places.tolist()
    code: list[int] = codes.ravel()[places].tolist()  # by turn, kept current while neighbours flip
    # by turn: (bit, turn) of the mismatched neighbours whose code holds this pixel as that bit
    around = np.stack([turn_of[places + dy * stride + dx] for dy, dx in _NEIGHBOURS], axis=1).tolist()
    bit_seen_from = [1 << (7 - b) for b in range(8)]
    flipped = bytearray(len(place_at))
    sweep = [turn for turn, bits in enumerate(code) if simple[bits]]  # ascending, so already a heap
    queued = bytearray(len(place_at))
    for turn in sweep:
        queued[turn] = 1
    following: list[int] = []
    while sweep:
        while sweep:
            turn = heapq.heappop(sweep)
            queued[turn] = 0
            if not simple[code[turn]]:
                continue
            flipped[turn] = 1
            for other, bit in zip(around[turn], bit_seen_from, strict=True):
                if other < 0:
                    continue
                code[other] ^= bit
                if not flipped[other] and not queued[other] and simple[code[other]]:
                    queued[other] = 1
                    if other > turn:
                        heapq.heappush(sweep, other)
                    else:
                        following.append(other)
        sweep, following = following, []
        heapq.heapify(sweep)
    state.ravel()[places[np.frombuffer(flipped, dtype=bool)]] ^= True
    return state[1:-1, 1:-1]


def warping_error_per_slice(prediction: ArrayLike, truth: ArrayLike, *, threshold: float = 0.5) -> NDArray[np.float64]:
    """The warping error of every slice, ``(N,)``; see :func:`warping_error`."""
    probabilities = probability_stack("prediction", prediction)
    labels = label_stack("truth", truth)
    check_same_shape("prediction", probabilities, "truth", labels)
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold is {threshold!r}, expected a number in [0, 1]")
    errors = []
    for p, t in zip(probabilities, labels != 0, strict=True):
        wanted = p > p.dtype.type(threshold)
        errors.append(np.count_nonzero(warp_truth(p, t, threshold) != wanted) / t.size)
    return np.array(errors)


def warping_error(prediction: ArrayLike, truth: ArrayLike, *, threshold: float = 0.5) -> float:
    """Mismatching pixels left after the best topology-preserving deformation of the truth that greedy flips find.

    Each slice, padded by one pixel of 0: pixels where ``prediction > threshold`` and truth differ are visited
    by falling ``|prediction - truth|``; one that is simple in its 3x3 neighbourhood is flipped in the truth;
    this repeats until the count of mismatches stays. Error = mismatches left / (H * W), mean over slices.
    Shifted borders cost nothing.

    Args:
        prediction: probability of the bright phase, ``(N, H, W)`` or ``(H, W)``, floating point in [0, 1] (or
            boolean).
        truth: mask or class map of the same shape, integer or boolean; 0 is the dark phase.
        threshold: in [0, 1].

    Raises:
        InputError: shapes that differ or have another rank, an empty stack, NaN, values outside [0, 1],
            negative labels.
        InputTypeError: an integer prediction, or a floating-point truth.
    """
    return float(warping_error_per_slice(prediction, truth, threshold=threshold).mean())
