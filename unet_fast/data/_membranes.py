"""The tissue behind :func:`unet_fast.data.synthetic.membranes`.

Geometry: an additively weighted Voronoi diagram of packed disks in a warped metric. Its sites drift smoothly from slice
to slice, and groups of neighbouring sites make one neurite, so that profiles are curved, of very different sizes, and
sometimes not convex. The membrane is the set of pixels closer to a border between neurites than a half width, which
swells where the membrane is cut obliquely and at synapses; corners of the neurites are rounded by a morphological
opening.

Everything that lasts over slices is drawn once from the seed; what differs by slice comes from a generator of that
slice, so slice ``z`` does not depend on how many slices are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unet_fast.data._noise import smooth_field, stamp

_PERIODS = np.array([11.0, 29.0, 83.0])  # of the drift, in slices
_DRIFTS = np.array([4.0, 10.0, 20.0])  # its amplitudes, in pixels
_PADDING = 40  # sites lie up to this far outside the image
_SITES_PER_CELL = 1.15
_SPREAD = 0.65  # of the logarithm of the radii of the sites
_OPENING = 4.0  # radius by which corners are rounded


@dataclass
class _Mitochondrion:
    """An ellipsoid that follows the site it was born at. Lengths in pixels; ``middle`` and ``span`` in slices."""

    site: int
    offset: np.ndarray
    radii: np.ndarray
    angle: float
    period: float
    middle: float
    span: float
    darkness: float


class Tissue:
    """A block of neuropil: ``draw(z)`` gives slice ``z`` as (image uint8 ``(H, W)``, instances int32 ``(H, W)``)."""

    def __init__(self, size: tuple[int, int], seed: int, cells: int | None) -> None:
        self.size = size
        self.seed = seed
        rng = np.random.default_rng([seed, 0])
        height, width = size
        area = height * width
        count = area / 2000.0 if cells is None else float(cells)
        self._place_sites(rng, _SITES_PER_CELL * count / area)
        self.warp = [smooth_field(rng, size, spacing) for spacing in (90, 90, 90, 90, 24, 24, 24, 24)]
        n = len(self.sites)
        self.phases = rng.uniform(0, 2 * np.pi, (len(_PERIODS), n, 2))
        self.neurite = self._group(rng)
        self.brightness = rng.normal(0, 7, n) - 30 * (rng.random(n) < 0.08)  # a few dark, glia-like profiles
        self.grain = np.where(self.brightness < -20, 1.7, rng.uniform(0.6, 1.5, n))
        self.vesicles = np.where(rng.random(n) < 0.3, rng.uniform(0.003, 0.008, n), 0.0012)  # a pixel
        self.mitochondria = self._place_mitochondria(rng)

    def _place_sites(self, rng: np.random.Generator, density: float) -> None:
        """Pack disks of very different radii, the largest first, each into the roomiest of a few random places."""
        extent = np.array(self.size) + 2 * _PADDING
        count = max(3, int(round(density * extent.prod())))
        radii = np.sort(rng.lognormal(0, _SPREAD, count))[::-1]
        radii *= np.sqrt(0.8 * extent.prod() / (np.pi * np.square(radii).sum()))
        sites = np.empty((count, 2))
        for i, radius in enumerate(radii):
            places = rng.uniform(0, extent, (24, 2))
            if i:
                gaps = np.hypot(*(places[:, None] - sites[None, :i]).transpose(2, 0, 1)) - radii[:i] - radius
                places = places[np.argmax(gaps.min(axis=1))][None]
            sites[i] = places[0]
        self.sites, self.radii = sites - _PADDING, radii

    def _group(self, rng: np.random.Generator) -> np.ndarray:
        """Neurite number of each site: neighbouring sites are joined at random, up to six."""
        from scipy.spatial import cKDTree

        owner = np.arange(len(self.sites))
        limits = rng.choice([1, 2, 3, 6], len(owner), p=[0.45, 0.3, 0.15, 0.1])
        near = cKDTree(self.sites).query(self.sites, k=min(5, len(owner)))[1]
        for site in rng.permutation(len(owner)):
            other = int(rng.choice(near[site]))
            members = (owner == owner[site]) | (owner == owner[other])
            if members.sum() <= min(limits[owner[site]], limits[owner[other]]):
                owner[members] = owner[site]
        return owner

    def _place_mitochondria(self, rng: np.random.Generator) -> list[_Mitochondrion]:
        chosen = np.flatnonzero(rng.random(len(self.sites)) < 0.85 * (self.radii > 1.1 * np.median(self.radii)))
        return [
            _Mitochondrion(
                site=int(site),
                offset=rng.normal(0, 0.2 * self.radii[site], 2),
                radii=np.minimum(self.radii[site] * rng.uniform(0.4, 0.85, 2), rng.uniform(18, 30, 2)),
                angle=float(rng.uniform(0, np.pi)),
                period=float(rng.uniform(5, 9)),
                middle=float(rng.uniform(0, 40)),
                span=float(rng.uniform(6, 13)),
                darkness=float(rng.uniform(40, 72)),
            )
            for site in chosen
        ]

    def _positions(self, z: int) -> np.ndarray:
        """Sites in slice ``z``: sums of three sines, so that the drift is smooth and never leaves the block."""
        angles = 2 * np.pi * z / _PERIODS[:, None, None] + self.phases
        return self.sites + (_DRIFTS[:, None, None] * np.sin(angles)).sum(axis=0)

    def _owners(self, rng: np.random.Generator, z: int, positions: np.ndarray) -> np.ndarray:
        """Site that owns each pixel, the one with the smallest distance minus radius, in the warped metric.

        The candidates are found on a coarse grid; the choice among them is made at every pixel.
        """
        from scipy.spatial import cKDTree

        height, width = self.size
        turn = 2 * np.pi * z / 60
        c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        w = self.warp
        y = np.arange(height, dtype=np.float32)[:, None] + 19 * (c * w[0] + s * w[1]) + 3.2 * (c * w[4] + s * w[5])
        x = np.arange(width, dtype=np.float32)[None] + 19 * (c * w[2] + s * w[3]) + 3.2 * (c * w[6] + s * w[7])
        shift = rng.normal(0, 1.2, 2)  # sections are never aligned perfectly
        y, x = y + np.float32(shift[0]), x + np.float32(shift[1])
        # the smallest power distance finds nearly the same neighbours, and is a plain search with a third coordinate
        lifted = np.column_stack([positions, np.sqrt(self.radii.max() ** 2 - self.radii**2)])
        step = 4
        coarse = np.stack([y[::step, ::step], x[::step, ::step], np.zeros_like(y[::step, ::step])], axis=-1)
        candidates = cKDTree(lifted).query(coarse, k=min(6, len(positions)))[1].reshape(*coarse.shape[:2], -1)
        best = np.full(self.size, np.inf, np.float32)
        owner = np.zeros(self.size, np.intp)
        for k in range(candidates.shape[2]):
            site = candidates[..., k].repeat(step, axis=0)[:height].repeat(step, axis=1)[:, :width]
            near = positions[site].astype(np.float32)
            reach = np.hypot(y - near[..., 0], x - near[..., 1]) - self.radii[site].astype(np.float32)
            closer = reach < best
            best[closer], owner[closer] = reach[closer], site[closer]
        return owner

    def draw(self, z: int) -> tuple[np.ndarray, np.ndarray]:
        """Slice ``z``: image uint8 and instances int32, each ``(H, W)``."""
        from scipy import ndimage
        from skimage.measure import label as components

        rng = np.random.default_rng([self.seed, 1, z])
        positions = self._positions(z)
        site = self._owners(rng, z, positions)
        neurite = self.neurite[site]
        distance = _border_distance(neurite)
        oblique = np.clip(smooth_field(rng, self.size, 34) - 1.0, 0, 1.2)
        synapse = self._synapses(rng, distance)
        half = 2.0 + 0.35 * smooth_field(rng, self.size, 15) + 2.8 * oblique + 6.0 * synapse
        inside, outward = _round_corners(distance, np.maximum(half, 1.2))
        instances = components(np.where(inside, neurite + 1, 0), background=0, connectivity=1)
        sizes = np.bincount(instances.ravel())
        small = sizes < 30  # slivers of a neurite that only just reaches this slice
        small[0] = True
        numbers = np.where(small, 0, np.cumsum(~small)).astype(np.int32)
        instances = numbers[instances]
        tone = self._tone(rng, z, site, distance, outward, half, oblique, synapse, positions)
        blur = float(rng.uniform(0.6, 1.1))
        image = ndimage.gaussian_filter(tone, blur)
        return _expose(rng, image), instances

    def _synapses(self, rng: np.random.Generator, distance: np.ndarray) -> np.ndarray:
        """Dark patches on membranes, 0 to 1."""
        height, width = self.size
        out = np.zeros(self.size, np.float32)
        near = np.flatnonzero(distance.ravel() < 1)
        count = rng.poisson(height * width / 45000)
        for pixel in rng.choice(near, count) if near.size else ():
            radius = rng.uniform(4, 9)
            reach = int(3 * radius)
            grid = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
            stamp(out, np.exp(-(grid**2).sum(axis=0) / (2 * radius**2)), *divmod(int(pixel), width), np.maximum)
        return out

    def _tone(
        self,
        rng: np.random.Generator,
        z: int,
        site: np.ndarray,
        distance: np.ndarray,
        outward: np.ndarray,
        half: np.ndarray,
        oblique: np.ndarray,
        synapse: np.ndarray,
        positions: np.ndarray,
    ) -> np.ndarray:
        """Noise-free grey values: cytoplasm, organelles, then membranes on top."""
        size = self.size
        neurite = self.neurite[site]
        tone = 158 + self.brightness[neurite].astype(np.float32)
        grain = self.grain[neurite].astype(np.float32)
        tone += grain * (
            9 * smooth_field(rng, size, 3.2) + 7 * smooth_field(rng, size, 8) + 6 * smooth_field(rng, size, 30)
        )
        # granules and cut microtubules: the tails of a fine field, mostly dark
        fine = smooth_field(rng, size, 4.4)
        tone += grain * (22 * np.clip(fine - 1.3, 0, 1) - 48 * np.clip(-fine - 1.0, 0, 1.2))
        # endoplasmic reticulum: ridges of a field, as thin and almost as dark as membranes, in places
        ridge = np.exp(-((smooth_field(rng, size, 20) / 0.1) ** 2))
        tone -= 62 * ridge * np.clip(smooth_field(rng, size, 36) - 0.4, 0, 1)
        tone -= self._vesicles(rng, neurite, distance)
        self._draw_mitochondria(rng, z, tone, neurite, distance, half, positions)
        depth = 98 + 14 * smooth_field(rng, size, 18) - 48 * np.clip(oblique, 0, 1)
        profile = np.exp(-((distance / (0.95 * half)) ** 2))
        profile = np.maximum(profile, 0.75 * np.clip((outward - 1) / 2, 0, 1))  # where three neurites meet
        return tone - depth * profile - 34 * synapse * np.exp(-((distance / 14) ** 2))

    def _vesicles(self, rng: np.random.Generator, neurite: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Rings of a few pixels in the neurites that hold them."""
        out = np.zeros(self.size, np.float32)
        density = np.where(distance > 7, self.vesicles[neurite], 0)
        grid = np.mgrid[-7:8, -7:8].astype(np.float32)
        radius = np.hypot(grid[0], grid[1])
        for y, x in np.argwhere(rng.random(self.size, dtype=np.float32) < density):
            ring = np.exp(-((radius - rng.uniform(2.0, 3.8)) ** 2) / 1.3)
            stamp(out, np.float32(rng.uniform(26, 60)) * ring, int(y), int(x), np.maximum)
        return out

    def _draw_mitochondria(
        self,
        rng: np.random.Generator,
        z: int,
        tone: np.ndarray,
        neurite: np.ndarray,
        distance: np.ndarray,
        half: np.ndarray,
        positions: np.ndarray,
    ) -> None:
        """Dark bodies with a rim and cristae, clipped to the cytoplasm of their neurite."""
        for body in self.mitochondria:
            phase = (((z - body.middle) % 40) - 20) / body.span  # each returns every 40 slices
            shrink = np.sqrt(max(0.0, 1 - phase**2))
            if shrink < 0.4:
                continue
            radii = body.radii * shrink
            y, x = positions[body.site] + body.offset
            reach = int(radii.max()) + 3
            y0, y1 = max(int(y) - reach, 0), min(int(y) + reach + 1, self.size[0])
            x0, x1 = max(int(x) - reach, 0), min(int(x) + reach + 1, self.size[1])
            if y0 >= y1 or x0 >= x1:
                continue
            window = (slice(y0, y1), slice(x0, x1))
            gy, gx = np.mgrid[y0:y1, x0:x1].astype(np.float32)
            c, s = np.cos(body.angle), np.sin(body.angle)
            u, v = c * (gy - y) + s * (gx - x), c * (gx - x) - s * (gy - y)
            shape = (y1 - y0, x1 - x0)
            wobble = 1.2 * smooth_field(rng, shape, 12)
            depth = (1 - np.hypot(u / radii[0], v / radii[1])) * radii.min() + wobble  # px below the surface
            room = np.where(neurite[window] == self.neurite[body.site], distance[window] - half[window] - 2.5, -1)
            depth = np.minimum(depth, room)
            inside = np.clip(depth + 0.5, 0, 1)
            if np.count_nonzero(depth > 2) < 60:
                continue
            waves = np.sin(2 * np.pi * (u / body.period) + 1.3 * smooth_field(rng, shape, 14))
            cristae = 26 * np.clip(waves, -0.5, 1) * np.clip(depth - 2, 0, 1)
            rim = 30 * np.exp(-((depth - 1.2) ** 2) / 1.6)
            tone[window] -= inside * (body.darkness + cristae + 6 * smooth_field(rng, shape, 3)) + rim * (depth > -1)


def _border_distance(neurite: np.ndarray) -> np.ndarray:
    """Distance of each pixel to the nearest border between neurites, float32; large where there is none."""
    from scipy import ndimage

    border = np.zeros(neurite.shape, bool)
    differs = neurite[1:] != neurite[:-1]
    border[1:] |= differs
    border[:-1] |= differs
    differs = neurite[:, 1:] != neurite[:, :-1]
    border[:, 1:] |= differs
    border[:, :-1] |= differs
    if not border.any():
        return np.full(neurite.shape, np.hypot(*neurite.shape), np.float32)
    return ndimage.distance_transform_edt(~border).astype(np.float32) + np.float32(0.5)


def _round_corners(distance: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels farther than ``half`` from a border, opened by a disk so that corners are round and slivers vanish.

    Returns that set (bool) and how far each other pixel is from it (float32, negative or 0 inside).
    """
    from scipy import ndimage

    core = distance > half + _OPENING
    if not core.any():
        return core, np.full(distance.shape, _OPENING, np.float32)
    outward = ndimage.distance_transform_edt(~core).astype(np.float32) - np.float32(_OPENING)
    return (outward <= 0) & (distance > half), outward


def _expose(rng: np.random.Generator, tone: np.ndarray) -> np.ndarray:
    """What the camera makes of the slice: uneven light, contrast of the slice, correlated and shot noise; uint8."""
    from scipy import ndimage

    size = (tone.shape[0], tone.shape[1])
    light = 1 + 0.07 * smooth_field(rng, size, max(size) / 2 + 1)
    gain, offset = rng.normal(1.05, 0.08), rng.normal(-10, 7)
    image = (tone - 128) * np.float32(gain) + 128 + np.float32(offset)
    image *= light
    white = rng.standard_normal((2, *size), dtype=np.float32)
    level = np.float32(rng.uniform(0.8, 1.6))
    # shot noise grows with the square root of the grey value; scanning and development correlate neighbours
    shot = ndimage.gaussian_filter(white[0], 0.5) * 22 * np.sqrt(np.clip(image, 20, 255) / 128)
    image += level * (shot + 20 * ndimage.gaussian_filter(white[1], 1.0))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
