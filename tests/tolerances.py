"""Every tolerance of the test suite, each with its reason: those of the operators, which stand beside their records, and
those of what is made of them."""

from __future__ import annotations

import torch

from unet_fast.ops._tolerances import (  # noqa: F401
    BY_DTYPE,
    CHANNEL_SUM,
    CONVOLUTION,
    CROSS_ENTROPY,
    CROSS_ENTROPY_GRADIENT,
    DICE_GRADIENT,
    DISTANCE,
    EXACT,
    HEAD_GRADIENT,
    NETWORK_LOW_PRECISION,
    NORM,
    NORM_GRADIENT,
    WARP,
    WEIGHT_MAP,
)

# Scores from float64 counts; pytest.approx's names for the two tolerances.
METRIC = {"rel": 1e-12, "abs": 1e-12}

# A whole network in float32: dozens of sums of up to thousands of terms, in an order that the convolution library chooses.
NETWORK_FLOAT32 = {"rtol": 1e-4, "atol": 1e-4}

# The same in float64, gradients included.
NETWORK_FLOAT64 = {"rtol": 1e-9, "atol": 1e-9}

# A fused network's error against float64, over that of the plain network in the same precision: of one tensor, which may
# be a bias of 8 numbers, and the mean over all; and the part of the value below which no error counts. The two round at
# other places, neither more often.
NETWORK_ERROR_RATIO = 4.0
NETWORK_MEAN_ERROR_RATIO = 1.2
NETWORK_ERROR_FLOOR = 2e-6

# OpenCV takes the root of a sum of float32 numbers.
OPENCV_DISTANCE = {"rtol": 1e-6, "atol": 1e-6}
# Coordinates up to 100 read back from a ramp through a warp whose matrix is float32.
RAMP = {"rtol": 0.0, "atol": 2e-5}
# A grey curve whose table is float32, over a range of 30.
GREY_CURVE = {"rtol": 0.0, "atol": 1e-5}

# A loss, in float32 with float32 sums (float64 for float64), against NumPy in float64; pytest.approx's names.
LOSS = {torch.float64: {"rel": 1e-9, "abs": 1e-10}, torch.float32: {"rel": 2e-5, "abs": 2e-6}}

# Winograd's convolution and its gradients, root mean square error over root mean square: float32 (6e-8) times what the
# transforms of F(4x4, 3x3) amplify (about 5), times what sums of some hundred terms add.
WINOGRAD_ERROR = 3e-6
