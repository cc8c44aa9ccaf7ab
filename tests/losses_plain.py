"""The losses again in NumPy float64, straight from the probabilities: unstable in the tails, and easy to check."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
IGNORED = -100


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    """Of (n, K)."""
    powers = np.exp(x)
    return powers / powers.sum(1, keepdims=True)


def counted(x: Array, t: Array, w: Array | None) -> list[tuple[Array, Array, Array]]:
    """For each sample the counted pixels: logits (n, K), truth (n, max(K, 2)) by class, weights (n,)."""
    samples = []
    for i in range(len(x)):
        channels = x.shape[1]
        keep = t[i].ravel() != IGNORED
        labels = t[i].ravel()[keep]
        if channels == 1:
            truth = np.stack([1 - labels, labels], 1)
        else:
            truth = np.eye(channels)[labels.astype(int)]
        weights = np.ones(len(labels)) if w is None else w[i].ravel()[keep]
        samples.append((x[i].reshape(channels, -1).T[keep], truth, weights))
    return samples


def reduced(losses: Array, weights: Array, reduction: str) -> float:
    total = (losses * weights).sum()
    return total / {"sum": 1, "mean": len(losses), "weight_mean": weights.sum()}[reduction]


def bce(x: Array, t: Array, w: Array | None, reduction: str = "mean", frequencies: Array | None = None) -> float:
    logits, truth, weights = (np.concatenate(parts) for parts in zip(*counted(x, t, w), strict=True))
    if x.shape[1] == 1:
        p = sigmoid(logits[:, 0])
        losses = -truth[:, 1] * np.log(p) - truth[:, 0] * np.log(1 - p)
    else:
        p = sigmoid(logits)
        losses = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean(1)
    if frequencies is not None:
        shares = frequencies / frequencies.sum()
        by_class = np.array([1 / (np.count_nonzero(shares) * share) if share > 0 else 0 for share in shares])
        losses = losses * (truth @ by_class)
    return reduced(losses, weights, reduction)


def inverse_frequency_bce(x: Array, t: Array, w: Array | None, reduction: str = "mean") -> float:
    truth = np.concatenate([part[1] for part in counted(x, t, w)])
    return bce(x, t, w, reduction, truth.sum(0))


def cross_entropy(x: Array, t: Array, w: Array | None) -> float:
    return bce(x, t, w) if x.shape[1] == 1 else focal(x, t, w, gamma=0)


def focal(
    x: Array, t: Array, w: Array | None, gamma: float = 2, alpha: Array | None = None, reduction: str = "mean"
) -> float:
    logits, truth, weights = (np.concatenate(parts) for parts in zip(*counted(x, t, w), strict=True))
    if x.shape[1] == 1:
        p = np.concatenate([1 - sigmoid(logits), sigmoid(logits)], 1)
    else:
        p = softmax(logits)
    factors = np.ones(truth.shape[1]) if alpha is None else alpha
    return reduced((-truth * factors * (1 - p) ** gamma * np.log(p)).sum(1), weights, reduction)


def overlap(
    x: Array, t: Array, w: Array | None, over: str = "sample", background: bool = True
) -> list[tuple[float, float, float]]:
    """sum(w p t), sum(w p), sum(w t) for each sample (or the batch) and each class."""
    samples = counted(x, t, w)
    if over == "batch":
        samples = [tuple(np.concatenate(parts) for parts in zip(*samples, strict=True))]
    sums = []
    for logits, truth, weights in samples:
        p = sigmoid(logits) if x.shape[1] == 1 else softmax(logits)
        truth = truth[:, 1:] if x.shape[1] == 1 else truth
        first = 0 if background or x.shape[1] == 1 else 1
        for k in range(first, p.shape[1]):
            sums.append(
                ((weights * p[:, k] * truth[:, k]).sum(), (weights * p[:, k]).sum(), (weights * truth[:, k]).sum())
            )
    return sums


def dice_scores(x: Array, t: Array, w: Array | None, smooth: float = 1, **options: object) -> Array:
    return np.array([(2 * both + smooth) / (p + y + smooth) for both, p, y in overlap(x, t, w, **options)])


def dice(x: Array, t: Array, w: Array | None, **options: object) -> float:
    return 1 - dice_scores(x, t, w, **options).mean()


def iou(x: Array, t: Array, w: Array | None, smooth: float = 1, **options: object) -> float:
    return np.mean([1 - (both + smooth) / (p + y - both + smooth) for both, p, y in overlap(x, t, w, **options)])


def ms_ssim(x: Array, t: Array, w: Array | None, scales: int = 2, background: bool = True) -> float:
    """Exponents and constants of the 2003 paper; a two-dimensional window; sums over the places of the window."""
    exponents = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333][:scales])
    if scales < 5:
        exponents = exponents / exponents.sum()
    losses = []
    for i in range(len(x)):
        keep = (t[i] != IGNORED).astype(float)
        weight = keep if w is None else np.where(keep > 0, w[i], 0)
        logits = np.where(keep > 0, x[i], 0).reshape(x.shape[1], -1).T
        p = (sigmoid(logits) if x.shape[1] == 1 else softmax(logits)).T.reshape(x[i].shape)
        for k in range(0 if background or x.shape[1] == 1 else 1, x.shape[1]):
            truth = t[i] if x.shape[1] == 1 else (t[i] == k)
            losses.append(1 - _similarity(p[k] * keep, np.where(keep > 0, truth, 0), weight, exponents))
    return np.mean(losses)


def _similarity(p: Array, t: Array, w: Array, exponents: Array) -> float:
    c1, c2 = 0.01**2, 0.03**2
    y, x = np.mgrid[-5:6, -5:6]
    window = np.exp(-(y**2 + x**2) / (2 * 1.5**2))
    window /= window.sum()
    result = 1.0
    for scale, exponent in enumerate(exponents):
        if scale:
            p, t, w = (
                value[: len(value) // 2 * 2, : value.shape[1] // 2 * 2]
                .reshape(len(value) // 2, 2, value.shape[1] // 2, 2)
                .mean((1, 3))
                for value in (p, t, w)
            )

        def mean(value: Array) -> Array:
            from scipy.signal import convolve2d  # what it imports takes seconds

            return convolve2d(value, window, mode="valid")

        m_p, m_t = mean(p), mean(t)
        v_p, v_t, cov = mean(p * p) - m_p**2, mean(t * t) - m_t**2, mean(p * t) - m_p * m_t
        value = (2 * cov + c2) / (v_p + v_t + c2)
        if scale == len(exponents) - 1:
            value = value * (2 * m_p * m_t + c1) / (m_p**2 + m_t**2 + c1)
        inner = w[5:-5, 5:-5]
        average = (value * inner).sum() / inner.sum()
        result *= average**exponent if average > 1e-3 else 1e-3**exponent * (1 + exponent * (average - 1e-3))
    return result


def focal_dice(x: Array, t: Array, w: Array | None) -> float:
    return focal(x, t, w, gamma=0.9) + dice(x, t, w)


def focal_log_dice(x: Array, t: Array, w: Array | None) -> float:
    return 10 * focal(x, t, w, gamma=2) - np.log(dice_scores(x, t, w)).mean()


def bce_dice(x: Array, t: Array, w: Array | None) -> float:
    return 0.5 * cross_entropy(x, t, w) - dice_scores(x, t, w).mean()


def focal_ms_ssim_iou(x: Array, t: Array, w: Array | None) -> float:
    return focal(x, t, w, gamma=2) + ms_ssim(x, t, w, scales=2) + iou(x, t, w)
