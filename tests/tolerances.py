"""Every tolerance of the test suite, in one place, each with its reason."""

from __future__ import annotations

import torch

# Copies and integer work are exact.
EXACT = {"rtol": 0.0, "atol": 0.0}

# One rounding of the result to the dtype, with float32 (float64 for float64) sums before it.
BY_DTYPE = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2},
}

# Scores from float64 counts; pytest.approx's names for the two tolerances.
METRIC = {"rel": 1e-12, "abs": 1e-12}
