"""The tolerance of every operator, each with its reason, by the dtype of its images."""

from __future__ import annotations

import os

import torch

# Triton's interpreter cuts float32 off to bfloat16, where a GPU (and torch) rounds: twice the error.
_CUT = 2 if os.environ.get("TRITON_INTERPRET") == "1" else 1

# Copies and integer work are exact.
EXACT = {"rtol": 0.0, "atol": 0.0}

# One rounding of the result to the dtype, with float32 (float64 for float64) sums before it.
BY_DTYPE = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2},
}

# Of the largest gradient, for bias, ReLU, pooling and convolutions: the results' roundings and sums over pixels of rounded
# numbers.
GRADIENT = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}

# A normalised number: as BY_DTYPE, of up to some 5, less a mean that is rounded to float32, times a slope and a weight.
NORM = BY_DTYPE | {torch.float32: {"rtol": 1e-5, "atol": 2e-5}}

# Of the largest gradient, which is that of x less two means of products.
NORM_GRADIENT = GRADIENT | {torch.float32: 3e-5}

# Distances: exact integers or float64 up to one rounding to float32.
DISTANCE = {"rtol": 2e-7, "atol": 0.0}
# Weights: an exponential in float32 of an argument down to -16 (relative 2e-6); the term is left out below 1e-7 w0.
WEIGHT_MAP = {"rtol": 3e-6, "atol": 2e-6}

# The loss is computed and returned in float32 whatever the dtype of the logits (float64 for float64).
CROSS_ENTROPY = {dtype: {"rtol": 2e-6, "atol": 1e-6} for dtype in BY_DTYPE} | {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12}
}
# Of the largest gradient: one rounding to the dtype; bfloat16 is rounded once more when it is scaled in backward.
CROSS_ENTROPY_GRADIENT = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3 * _CUT}

# Of the largest gradient: as that of the cross-entropy, and quotients of sums over pixels; one rounding to the dtype.
DICE_GRADIENT = CROSS_ENTROPY_GRADIENT | {torch.float64: 1e-11, torch.float32: 4e-6, torch.float16: 2e-3}

# Warps: coordinates of up to 200 pixels times the slope between two random pixels (1), one rounding to the dtype.
WARP = {
    torch.float64: {"rtol": 0.0, "atol": 1e-11},
    torch.float32: {"rtol": 0.0, "atol": 5e-5},
    torch.float16: {"rtol": 0.0, "atol": 1e-3},
    torch.bfloat16: {"rtol": 0.0, "atol": 8e-3},
}

# Of images of any size of numbers: one rounding is relative.
LARGE_WARP = WARP | {torch.float16: {"rtol": 1e-3, "atol": 1e-3}, torch.bfloat16: {"rtol": 8e-3, "atol": 8e-3}}

# Of the largest gradient: the reference adds up to 16 shares a pixel, each rounded to the dtype.
WARP_GRADIENT = {torch.float64: 1e-11, torch.float32: 5e-5, torch.float16: 3e-3, torch.bfloat16: 2.5e-2}

# A bias gradient, a sum in double of sums of some 64 numbers in float32, against the sum of the rounded numbers.
CHANNEL_SUM = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 1e-4},
    torch.float16: {"rtol": 1e-2, "atol": 5e-2},
    torch.bfloat16: {"rtol": 5e-2, "atol": 0.5},
}

# A convolution or a matrix product of some 100 terms, in an order that the library chooses, and its gradients.
CONVOLUTION = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-5, "atol": 1e-4},
    torch.float16: {"rtol": 5e-3, "atol": 2e-2},
    torch.bfloat16: {"rtol": 2e-2, "atol": 0.1},
}

# Of the largest gradient: sums over pixels in float32, whose terms cancel, one rounding to the dtype, one when it is scaled.
HEAD_GRADIENT = {torch.float64: 1e-11, torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}

# A whole network in bfloat16 against float32, root mean square error over root mean square: 8 bits a layer, 10 layers.
NETWORK_LOW_PRECISION = 0.03

# Of the largest gradient. In float32 the transforms of F(4x4, 3x3) amplify a rounding about five times.
WINOGRAD_GRADIENT = GRADIENT | {torch.float32: 3e-5}
