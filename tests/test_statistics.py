"""Mean and standard deviation from blocks: against NumPy, bit for bit the same however the image is cut."""

from __future__ import annotations

import numpy as np
import pytest

from unet_fast.data import normalize
from unet_fast.data.statistics import measure
from unet_fast.errors import InputError

DTYPES = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int64, np.float16, np.float32, np.float64, np.bool_]


def drawn(rng: np.random.Generator, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    kind = np.dtype(dtype).kind
    if kind == "f":
        return (100 * rng.standard_normal(shape) + 50).astype(dtype)
    if kind == "b":
        return rng.random(shape) < 0.3
    info = np.iinfo(dtype)
    return rng.integers(max(info.min, -(2**40)), min(info.max, 2**40), shape, dtype=np.int64).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_statistics_of_blocks_are_those_of_the_image(rng, dtype):
    image = drawn(rng, dtype, (2, 301, 257))
    whole = measure(lambda: [image])
    np.testing.assert_allclose(whole.mean, image.astype(np.float64).mean((1, 2)), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(whole.std, image.astype(np.float64).std((1, 2)), rtol=1e-12)
    cut = measure(lambda: (image[:, y : y + 37] for y in range(0, 301, 37)))
    assert (cut.mean == whole.mean).all() and (cut.std == whole.std).all()
    result = whole.apply(image)
    np.testing.assert_array_equal(result, normalize(image[None])[0])
    # a window small enough to be computed without the table
    np.testing.assert_array_equal(whole.apply(image[:, 100:110, 7:50]), result[:, 100:110, 7:50])
    expected = (image.astype(np.float64) - whole.mean[:, None, None]) / whole.std[:, None, None]
    np.testing.assert_array_equal(result, expected.astype(np.float32))


def test_constant_and_foreign(rng):
    flat = np.full((1, 300, 300), 0.1, np.float32)
    assert (measure(lambda: [flat]).apply(flat) == 0).all()
    swapped = drawn(rng, np.uint16, (1, 300, 300)).astype(">u2")
    np.testing.assert_array_equal(normalize(swapped[None]), normalize(swapped.astype(np.uint16)[None]))
    large = np.full((1, 4, 4), 1e300)
    with pytest.raises(InputError, match="NaN or infinite"):
        measure(lambda: [large * [[[1, -1, 1, 1]]] * np.float64(1e8)])
    with pytest.raises(InputError, match="empty"):
        measure(lambda: [])
