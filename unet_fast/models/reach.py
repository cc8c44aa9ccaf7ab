"""The receptive field: the span of pixels that an output pixel needs, followed backwards through the layers of a network.

A span is (first, last) along one axis, both included, on the grid of one level. Each function takes the span of a
layer's output and returns the span of its input; borders are ignored, so the answer holds for every image.
"""

from __future__ import annotations

from collections.abc import Callable

Span = tuple[int, int]


def convolution(span: Span, kernel: int = 3, stride: int = 1, padding: int = 1) -> Span:
    """Through a convolution or a pooling: output pixel y reads ``stride * y - padding`` and ``kernel - 1`` more."""
    return stride * span[0] - padding, stride * span[1] - padding + kernel - 1


def convolutions(span: Span, count: int) -> Span:
    """Through ``count`` centred 3x3 convolutions."""
    return span[0] - count, span[1] + count


def pooling(span: Span, factor: int = 2) -> Span:
    """Through a max-pooling over windows of ``factor`` pixels that do not overlap."""
    return convolution(span, factor, factor, 0)


def transposed(span: Span, kernel: int = 2, padding: int = 0) -> Span:
    """Through a stride-2 transposed convolution: input pixel i reaches ``2 i - padding`` and ``kernel - 1`` more."""
    return -((kernel - 1 - padding - span[0]) // 2), (span[1] + padding) // 2


def bilinear(span: Span, factor: int) -> Span:
    """Through bilinear up-sampling: output y reads the two pixels around (y + 1/2) / factor - 1/2."""
    first, last = ((2 * y + 1 - factor) // (2 * factor) for y in span)
    return first, last + 1


def hull(*spans: Span) -> Span:
    """The smallest span that holds all ``spans``."""
    return min(first for first, _ in spans), max(last for _, last in spans)


def radius(step: int, needed: Callable[[Span], Span]) -> int:
    """The farthest input pixel that an output pixel depends on, over every position relative to the pooling grid.

    ``needed`` maps the span of an output on the full grid to that of the input; ``step`` is the period of the grid.
    """
    farthest = 0
    for position in range(step):
        first, last = needed((position, position))
        farthest = max(farthest, position - first, last - position)
    return farthest
