"""Work in a few threads: the results and the order of map, little ahead, errors where they belong."""

from __future__ import annotations

import threading

import pytest

from unet_fast.data import parallel


@pytest.mark.parametrize("pixels", [1, parallel.MOST_PIXELS + 1])
def test_in_order(monkeypatch, pixels):
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 3)
    threads, taken = set(), []

    def work(number: int) -> int:
        threads.add(threading.get_ident())
        if number == 40:
            raise ValueError("forty")
        return number * number

    def numbers():
        for number in range(50):
            taken.append(number)
            yield number

    results = parallel.in_order(work, numbers(), pixels)
    for number in range(40):
        assert next(results) == number**2
        assert len(taken) <= number + 1 + 2 * 3
    with pytest.raises(ValueError, match="forty"):
        next(results)
    assert (threading.get_ident() in threads) == (pixels > parallel.MOST_PIXELS)
