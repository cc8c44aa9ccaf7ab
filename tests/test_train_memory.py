"""Out of memory: the error names a batch and a tile that fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from unet_fast.errors import InputError
from unet_fast.train import default_config
from unet_fast.train.memory import explain_out_of_memory, is_out_of_memory


def refused(limit: int, **settings) -> str:
    """The message on a pretended GPU with room for ``limit`` pixels of a batch."""
    config = default_config("cpu", steps=1, base_channels=4, depth=2, padding="same", **settings)
    config = dataclasses.replace(config, device="cuda")
    tried: list[int] = []

    def attempt(changed) -> None:
        pixels = changed.batch_size * changed.tile**2
        tried.append(pixels)
        if pixels > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "empty_cache", lambda: None)
        error = explain_out_of_memory(config, attempt)
    assert isinstance(error, InputError) and "\n" not in str(error)
    assert len(tried) < 30, "by bisection"
    return str(error)


def test_the_largest_batch_and_tile_are_named():
    text = refused(5 * 64**2 + 1, batch_size=9, tile=64)
    assert "9 tiles of 64 px" in text and "--batch-size 5 or --tile 44 fits" in text
    assert 9 * 44**2 <= 5 * 64**2 < 9 * 48**2


def test_a_batch_of_one_gets_a_smaller_tile():
    assert "; --tile 52 fits" in refused(55**2, batch_size=1, tile=64)


def test_both_have_to_shrink():
    assert "--batch-size 1 --tile 4 fits" in refused(16, batch_size=9, tile=64)
    assert "smaller network" in refused(1, batch_size=9, tile=64)


def test_what_memory_errors_look_like():
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("size mismatch")) and not is_out_of_memory(ValueError("not enough memory"))
