"""The Triton kernels of weighted_cross_entropy, interpreted on the CPU: the tests of the op once more, and its own."""

from __future__ import annotations

import math
import os

import pytest
import torch

from tests.devices import INTERPRETER, run_interpreted

if os.environ.get("TRITON_INTERPRET") == INTERPRETER["TRITON_INTERPRET"]:
    from unet_fast.ops import use_backend, weighted_cross_entropy

    @pytest.mark.parametrize("k", [2, 3, 300])
    @pytest.mark.parametrize("bad", [-1, 300])
    def test_a_target_outside_the_classes_is_nan(k, bad):
        """A GPU cannot raise without making the host wait; and nothing but the pixel's own gradient is spoiled."""
        logits, target = torch.zeros(2, k, 3, 4, requires_grad=True), torch.zeros(2, 3, 4, dtype=torch.int64)
        target[1, 2, 3] = bad
        with use_backend("triton"):
            loss = weighted_cross_entropy(logits, target)
            each = weighted_cross_entropy(logits, target, reduction="none")
        assert math.isnan(loss)
        assert each.isnan().sum() == 1 and each[1, 2, 3].isnan()
        loss.backward()
        broken = logits.grad.isnan().any(1)
        assert broken.sum() == 1 and broken[1, 2, 3]

    def test_the_loop_over_tiles(monkeypatch, generator):
        """More tiles than programs: each program takes several, of several images."""
        from unet_fast.triton import weighted_cross_entropy as kernels

        logits = torch.randn(3, 2, 40, 60, generator=generator)
        target = torch.randint(0, 2, (3, 40, 60), generator=generator)
        weight = torch.rand(3, 40, 60, generator=generator)
        whole = kernels.weighted_cross_entropy(logits, target, weight, -100, 3, True)
        monkeypatch.setattr(kernels, "_LOSS_PROGRAMS", 2)
        monkeypatch.setattr(kernels, "_DIVISOR_PROGRAMS", 2)
        for once, again in zip(
            whole, kernels.weighted_cross_entropy(logits, target, weight, -100, 3, True), strict=True
        ):
            torch.testing.assert_close(once, again)

else:

    def test_the_tests_of_the_op():
        # left out, because they are slow here: millions of pixels, numeric derivatives, most of value_and_gradient
        chosen = "not many_threads and not gradcheck and not loss_scale and not bad_input and not outside_the_classes"
        sample = "not (value_and_gradient and (none or sum or weight_mean or dtype0))"
        files = ("tests/test_triton_weighted_cross_entropy.py", "tests/test_weighted_cross_entropy.py")
        run_interpreted(*files, "-k", f"a_target_outside or ({chosen} and {sample})")

    def test_fuzzed():
        run_interpreted("tests/test_fuzz.py", "-k", "weighted_cross_entropy")
