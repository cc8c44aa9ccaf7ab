"""What a loss over regions does with the pixels of a tile, for :mod:`unet_fast.triton.dice_cross_entropy`: targets and weights, logits,
and the slopes of the sums. A tile is a matrix of classes by pixels; ``c`` is a column of classes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from unet_fast.triton._softmax import exp_nonpositive, join_softmax, load_classes, softmax_of


@triton.jit
def read_pixels(
    target, weight, class_weight, n, p, inside, pixels, ignore_index, target_n, target_p,
    CLASSES: tl.constexpr, SOFT: tl.constexpr, SIGMOID: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Class, whether it counts, weight (0 where it does not, NaN where the class is none), and what it adds to the divisor."""
    w = tl.full(p.shape, 1.0, WIDE)
    share = tl.full(p.shape, 1.0, WIDE)
    if weight is not None:
        w = tl.load(weight + n * pixels + p, mask=inside, other=0.0)
    if SOFT:
        label = tl.zeros(p.shape, tl.int64)
        counted = inside
        if CLASSES == 1:
            counted = inside & (tl.load(target + n * target_n + p * target_p, mask=inside, other=0.0) != ignore_index)
    else:
        label = tl.load(target + n * pixels + p, mask=inside, other=0).to(tl.int64)
        counted = inside & (label != ignore_index)
        MOST: tl.constexpr = 2 if CLASSES == 1 else CLASSES
        exists = (label >= 0) & (label < MOST)
        w = tl.where(exists, w, float("nan"))
        if not SIGMOID:
            if class_weight is not None:
                share = tl.load(class_weight + label, mask=counted & exists, other=0.0)
    return label, counted, tl.where(counted, w, 0.0), tl.where(counted, share, 0.0)


@triton.jit
def truth_of(
    target, label, n, p, c, counted, target_n, target_c, target_p,
    CLASSES: tl.constexpr, SOFT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Of the classes c, a column, at all pixels; NaN where it is no probability."""
    if SOFT:
        at = (n * target_n + p * target_p)[None, :] + c.to(tl.int64) * target_c
        value = tl.load(target + at, mask=(c < CLASSES) & counted[None, :], other=0.0)
        truth = tl.where((value >= 0.0) & (value <= 1.0), value, float("nan"))
    else:
        ONE: tl.constexpr = 1 if CLASSES == 1 else 0  # of the only class, 1 is the truth
        truth = ((c + ONE) == label[None, :]).to(WIDE)
    return truth


@triton.jit
def weights_of(class_weight, c, CLASSES: tl.constexpr, WIDE: tl.constexpr):
    """Of the classes c, a column; 0 where there is no class."""
    v = (c < CLASSES).to(WIDE)
    if class_weight is not None:
        v = tl.load(class_weight + c, mask=c < CLASSES, other=0.0)
    return v


@triton.jit
def factor_of(truth, v, SMOOTHING: tl.constexpr, CLASSES: tl.constexpr):
    """c of the cross-entropy of a softmax."""
    return v * (truth * (1.0 - SMOOTHING) + SMOOTHING / CLASSES)


@triton.jit
def sigmoid_of(x):
    """exp(-|x|) and 1 / (1 + exp(-|x|)), NaN for an infinite x, which must not go unnoticed."""
    u = exp_nonpositive(tl.where(x < 0, x, -x)) + (x - x)
    return u, 1.0 / (1.0 + u)


@triton.jit
def softmax_of_all(
    logits, pixel, k, inside, counted, class_stride,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr, PIXELS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """softmax_of all classes, BLOCK at a time."""
    m = tl.full([PIXELS], float("-inf"), WIDE)
    first = tl.zeros([PIXELS], tl.int32)
    rest = tl.zeros([PIXELS], WIDE)
    for start in range(0, CLASSES, BLOCK):
        c = k + start
        x = load_classes(logits, pixel, c, inside, class_stride, CLASSES, WIDE)
        x = tl.where(counted[None, :] | (c >= CLASSES), x, 0.0)
        next_m, next_first, next_rest, _ = softmax_of(x, c, CLASSES)
        m, first, rest = join_softmax(m, first, rest, next_m, next_first, next_rest)
    return m, first, rest + (m - m)  # NaN for an infinite largest logit, which must not go unnoticed


@triton.jit
def slope_of(slopes, truth, c, CLASSES: tl.constexpr, WIDE: tl.constexpr):
    """G of the classes c, a column, at all pixels."""
    of_both = tl.load(slopes + c, mask=c < CLASSES, other=0.0).to(WIDE)
    of_predicted = tl.load(slopes + CLASSES + c, mask=c < CLASSES, other=0.0).to(WIDE)
    return of_predicted + of_both * truth
