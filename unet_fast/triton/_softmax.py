"""exp and log1p over the ranges that a softmax needs: csrc/common/softmax.h in Triton, with the same constants.

Triton's own exp and log of float32 are the approximate instructions, whose relative error grows with the argument (exp)
and is unbounded near 1 (log); with these, a loss of 1e-30 has as many right digits as one of 1. float64 takes Triton's.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def exp_nonpositive(x):
    """exp(x) for x <= 0, -infinity and NaN; 0 below the smallest normal number."""
    if x.dtype == tl.float64:
        result = tl.exp(x)
    else:
        clamped = tl.where(x < -87.33654, -87.33654, x)  # a NaN stays a NaN
        shifted = clamped * 1.44269504 + 12582912.0  # 1.5 * 2^23: adding it rounds to an integer
        n = shifted - 12582912.0
        r = (clamped - n * 0.693359375) - n * -2.12194440e-4
        p = 1.3814598513e-3
        p = p * r + 8.3687168836e-3
        p = p * r + 4.1668388048e-2
        p = p * r + 1.6666520632e-1
        p = p * r + 4.9999993448e-1
        value = 1.0 + (r + r * r * p)
        # the integer n sits in the low bits of `shifted`, on top of those of 12582912.0
        exponent = shifted.to(tl.int32, bitcast=True) - 0x4B400000 + 127
        result = tl.where(x < -87.33654, 0.0, value * (exponent << 23).to(tl.float32, bitcast=True))
    return result


@triton.jit
def log1p_nonnegative(u, y, inverse):
    """log(1 + u) for u >= 0 and NaN, with y = 1 + u as rounded and inverse = 1 / y."""
    lost = (u - (y - 1.0)) * inverse  # what the rounding of 1 + u lost
    if u.dtype == tl.float64:
        result = tl.log(y) + lost
    else:
        bits = y.to(tl.int32, bitcast=True)
        exponent = (bits - 0x3F3504F3) >> 23
        f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
        q = -7.6344977577e-2
        q = q * f + 1.2761577536e-1
        q = q * f - 1.3160182162e-1
        q = q * f + 1.4201757917e-1
        q = q * f - 1.6623357360e-1
        q = q * f + 2.0001226880e-1
        q = q * f - 2.5000821034e-1
        q = q * f + 3.3333331708e-1
        e = exponent.to(tl.float32)
        result = e * 0.693359375 + (f + (f * f * (f * q - 0.5) + (e * -2.12194440e-4 + lost)))
    return result
