"""The images behind :func:`unet_fast.data.synthetic.nuclei`.

Nuclei are ellipses with a lobed outline. Part of them are pushed against a nucleus that is there already, and what
would overlap is cut off, so that the two touch along a line. The image is their fluorescence seen through a
microscope: texture, nucleoli, brightness by nucleus, blur, haze and nuclei out of focus, uneven light, debris, noise.
"""

from __future__ import annotations

import numpy as np

from unet_fast.data._noise import smooth_field, stamp

_TOUCHING = 0.45  # share of the nuclei that are placed against another one
_TRIES = 12
_LARGEST_CUT = 0.22  # of the area, when a nucleus is cut where it meets others
_DARK_SPECKLE = 0.35  # contrast of nucleoli


def draw(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """One image uint8 ``(H, W)`` and its instances int32 ``(H, W)``."""
    from scipy import ndimage

    height, width = size
    radius = float(rng.uniform(8.5, 14.5))  # of this culture, px
    coverage = float(rng.uniform(0.15, 0.38))
    instances, brightness = _place(rng, size, radius, coverage)
    glow = brightness[instances].astype(np.float32)
    # thinner towards the rim: a nucleus is a flat ellipsoid; distances are taken to other nuclei as well
    depth = ndimage.distance_transform_edt(_eroded(instances)).astype(np.float32)
    glow *= 1 - 0.5 * np.exp(-depth / (0.18 * radius))
    glow *= 1 + 0.13 * smooth_field(rng, size, 4) + 0.12 * smooth_field(rng, size, 9)
    nucleoli = np.clip(smooth_field(rng, size, 0.65 * radius) - 1.1, 0, 1)
    glow *= 1 - _DARK_SPECKLE * nucleoli
    glow = np.maximum(glow, 0)
    _add_debris(rng, glow, radius)
    blurred = ndimage.gaussian_filter(glow, float(rng.uniform(0.8, 1.7)))
    beyond = _out_of_focus(rng, size, radius)
    haze = ndimage.gaussian_filter(blurred + 2 * beyond, 1.6 * radius, truncate=2.5)
    light = np.exp(0.16 * smooth_field(rng, size, max(size) / 2.5 + 1))
    signal = light * (blurred + float(rng.uniform(0.3, 0.7)) * haze + ndimage.gaussian_filter(beyond, 0.4 * radius))
    background = float(rng.uniform(0.03, 0.09)) * (1 + 0.15 * smooth_field(rng, size, 60))
    exposure = float(rng.uniform(90, 170))  # grey values of a nucleus of brightness 1
    photons = float(rng.uniform(60, 250))
    detected = (signal + background) * photons
    # the normal limit of Poisson noise, drawn as float32: the mean is above a few photons everywhere
    detected = detected + np.sqrt(np.maximum(detected, 0)) * rng.standard_normal(size, dtype=np.float32)
    image = detected * (exposure / photons) + 1.2 * rng.standard_normal(size, dtype=np.float32) + 4
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), instances


def _place(
    rng: np.random.Generator, size: tuple[int, int], radius: float, coverage: float
) -> tuple[np.ndarray, np.ndarray]:
    """Instance map and the brightness of each instance (index 0: the background, dark)."""
    height, width = size
    instances = np.zeros(size, np.int32)
    brightness = [0.0]
    centres: list[np.ndarray] = []
    wanted = max(1, round(coverage * height * width / (np.pi * radius**2)))
    for _ in range(wanted):
        stain = float(np.clip(rng.lognormal(-0.55, 0.5), 0.16, 1.3))
        shape, radii = _outline(rng, radius * float(np.exp(rng.normal(0, 0.17))))
        against = bool(centres) and rng.random() < _TOUCHING
        for _ in range(_TRIES):
            if against:
                centre = _beside(rng, instances, centres, shape, radii)
            else:
                centre = rng.uniform((0, 0), size)
            window, part = _clip(shape, centre, size)
            if not part.any():
                continue
            taken = instances[window] > 0
            cut = np.count_nonzero(part & taken) / np.count_nonzero(part)
            if cut > _LARGEST_CUT or (not against and _near(part, taken)):
                continue
            free = _largest(part & ~taken)
            if np.count_nonzero(free) < 0.25 * np.count_nonzero(shape) and not _at_border(centre, size, radii):
                continue
            if np.count_nonzero(free) < 12:
                continue
            instances[window][free] = len(brightness)
            brightness.append(stain)
            centres.append(centre)
            break
    return instances, np.array(brightness, np.float32)


def _outline(rng: np.random.Generator, radius: float) -> tuple[np.ndarray, float]:
    """A filled nucleus as a boolean patch with its centre in the middle, and its largest radius."""
    stretch = float(np.sqrt(rng.uniform(1.0, 2.1)))
    turn = float(rng.uniform(0, np.pi))
    lobes = rng.normal(0, [0.05, 0.035, 0.02])
    phases = rng.uniform(0, 2 * np.pi, 3)
    reach = int(np.ceil(radius * stretch * 1.3)) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    c, s = np.cos(turn), np.sin(turn)
    u, v = (c * y + s * x) / stretch, (c * x - s * y) * stretch
    angle = np.arctan2(u, v)
    rim = 1 + sum(a * np.cos((k + 2) * angle + p) for k, (a, p) in enumerate(zip(lobes, phases, strict=True)))
    return np.hypot(u, v) <= radius * rim, radius * stretch


def _beside(
    rng: np.random.Generator,
    instances: np.ndarray,
    centres: list[np.ndarray],
    shape: np.ndarray,
    radii: float,
) -> np.ndarray:
    """A place for ``shape`` beside a nucleus that exists: moved outwards until it only just overlaps."""
    start = centres[int(rng.integers(len(centres)))]
    angle = float(rng.uniform(0, 2 * np.pi))
    step = np.array([np.sin(angle), np.cos(angle)])
    area = np.count_nonzero(shape)
    size = (instances.shape[0], instances.shape[1])
    centre = start
    for distance in np.arange(0.8 * radii, 4 * radii, 1.0):
        moved = start + distance * step
        window, part = _clip(shape, moved, size)
        overlap = np.count_nonzero(part & (instances[window] > 0))
        if overlap == 0:
            break
        centre = moved
        if overlap < rng.uniform(0.005, 0.1) * area:
            break
    return centre


def _clip(shape: np.ndarray, centre: np.ndarray, size: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray]:
    """The window of the image that a patch centred at ``centre`` covers, and the part of the patch inside it."""
    corner = np.floor(centre).astype(int) - np.array(shape.shape) // 2
    low, high = np.maximum(corner, 0), np.minimum(corner + shape.shape, size)
    high = np.maximum(high, low)
    window = (slice(low[0], high[0]), slice(low[1], high[1]))
    inner = (slice(low[0] - corner[0], high[0] - corner[0]), slice(low[1] - corner[1], high[1] - corner[1]))
    return window, shape[inner]


def _near(part: np.ndarray, taken: np.ndarray) -> bool:
    """Whether the patch touches what is taken, with a gap of one pixel counted as touching."""
    from scipy import ndimage

    return bool((ndimage.binary_dilation(part, iterations=2) & taken).any())


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected component."""
    from scipy import ndimage

    parts, count = ndimage.label(mask)
    return mask if count < 2 else parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])


def _at_border(centre: np.ndarray, size: tuple[int, int], reach: float) -> bool:
    return bool((centre < reach).any() or (centre > np.array(size) - reach).any())


def _eroded(instances: np.ndarray) -> np.ndarray:
    """Pixels of an instance that have no 4-neighbour of another one or of the background."""
    inside = instances > 0
    differs = instances[1:] != instances[:-1]
    inside[1:] &= ~differs
    inside[:-1] &= ~differs
    differs = instances[:, 1:] != instances[:, :-1]
    inside[:, 1:] &= ~differs
    inside[:, :-1] &= ~differs
    return inside


def _add_debris(rng: np.random.Generator, glow: np.ndarray, radius: float) -> None:
    """Small bright fragments that are not nuclei."""
    height, width = glow.shape
    for _ in range(rng.poisson(height * width / 22000)):
        reach = 6
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
        spread = rng.uniform(0.6, 0.16 * radius, 2)
        patch = np.float32(rng.uniform(0.3, 1.2)) * np.exp(-0.5 * ((y / spread[0]) ** 2 + (x / spread[1]) ** 2))
        stamp(glow, patch, int(rng.integers(height)), int(rng.integers(width)))


def _out_of_focus(rng: np.random.Generator, size: tuple[int, int], radius: float) -> np.ndarray:
    """Nuclei of another layer, to be blurred."""
    height, width = size
    out = np.zeros(size, np.float32)
    for _ in range(rng.poisson(height * width / (90 * radius**2))):
        shape, _ = _outline(rng, radius * float(rng.uniform(0.9, 1.3)))
        stamp(
            out,
            np.float32(rng.uniform(0.08, 0.3)) * shape,
            int(rng.integers(height)),
            int(rng.integers(width)),
            np.maximum,
        )
    return out
