"""The deformation behind the warping error in Python: simple pixels by components, and two ways to sweep over them."""

from __future__ import annotations

import functools
import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

# (dy, dx) of the neighbour behind bit b; bit 7 - b is the opposite neighbour
NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


def components(cells: set[tuple[int, int]], diagonal: bool) -> list[set[tuple[int, int]]]:
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
        foreground = {cell for b, cell in enumerate(NEIGHBOURS) if bits >> b & 1}
        background = set(NEIGHBOURS) - foreground
        edge_touching = [c for c in components(foreground, diagonal=False) if any(0 in cell for cell in c)]
        table[bits] = len(edge_touching) == 1 and len(components(background, diagonal=True)) == 1
    return bytes(table)


def warp_by_heap(probabilities: NDArray[Any], truth: NDArray[np.bool_], threshold: float) -> NDArray[np.bool_]:
    """Visits after the first sweep only neighbours of flips; fast enough for whole images."""
    height, width = truth.shape
    stride = width + 2
    target = np.zeros((height + 2, stride), dtype=bool)
    target[1:-1, 1:-1] = probabilities > probabilities.dtype.type(threshold)
    state = np.zeros_like(target)
    state[1:-1, 1:-1] = truth
    codes = np.zeros_like(state, dtype=np.uint8)
    for b, (dy, dx) in enumerate(NEIGHBOURS):
        codes[1:-1, 1:-1] |= state[1 + dy : height + 1 + dy, 1 + dx : width + 1 + dx].astype(np.uint8) << np.uint8(b)

    places = np.flatnonzero(target != state)
    y, x = np.divmod(places, stride)
    distance = np.abs(probabilities[y - 1, x - 1].astype(np.float64) - truth[y - 1, x - 1])
    places = places[np.argsort(-distance, kind="stable")]  # equal distances in raster order
    turn_of = np.full(state.size, -1, dtype=np.int64)
    turn_of[places] = np.arange(places.size)

    simple = simple_table()
    code: list[int] = codes.ravel()[places].tolist()  # by turn, kept current while neighbours flip
    # by turn: (bit, turn) of the mismatched neighbours whose code holds this pixel as that bit
    around = np.stack([turn_of[places + dy * stride + dx] for dy, dx in NEIGHBOURS], axis=1).tolist()
    bit_seen_from = [1 << (7 - b) for b in range(8)]
    flipped = bytearray(places.size)
    sweep = [turn for turn, bits in enumerate(code) if simple[bits]]  # ascending, so already a heap
    queued = bytearray(places.size)
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


def warp_by_sweeps(p: NDArray[Any], truth: NDArray[np.bool_], threshold: float) -> NDArray[np.bool_]:
    """The definition: full sweeps over the mismatches by falling |p - t| until their count stays."""
    simple = simple_table()
    target = np.pad(p > p.dtype.type(threshold), 1)
    state = np.pad(truth, 1)
    values = np.pad(p, 1).astype(np.float64)
    remaining = -1
    while remaining != (mismatch := target != state).sum():
        remaining = mismatch.sum()
        places = np.argwhere(mismatch)
        order = np.argsort(-np.abs(values[mismatch] - state[mismatch]), kind="stable")
        for y, x in places[order]:
            if simple[sum(int(state[y + dy, x + dx]) << b for b, (dy, dx) in enumerate(NEIGHBOURS))]:
                state[y, x] = not state[y, x]
    return state[1:-1, 1:-1]
