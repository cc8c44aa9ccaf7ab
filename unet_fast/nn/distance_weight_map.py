"""The U-Net's loss weight per pixel as a module."""

from __future__ import annotations

import torch

from unet_fast import ops


class DistanceWeightMap(torch.nn.Module):
    """Instance labels to loss weights: :func:`unet_fast.ops.weight_map` with fixed options.

    ``class_weights`` may be None, "balanced", or two numbers [background, cells] (a tensor or a sequence), which become
    a buffer that moves with the module. Input (N, H, W) integer labels, 0 = background; output (N, H, W) float32.

    Example::

        weigh = uf.nn.DistanceWeightMap(class_weights="balanced")
        loss = uf.ops.weighted_cross_entropy(logits, (instances > 0).long(), weigh(instances))
    """

    class_weights: torch.Tensor | None

    def __init__(
        self,
        *,
        w0: float = 10.0,
        sigma: float = 5.0,
        class_weights: str | torch.Tensor | tuple[float, float] | list[float] | None = None,
        inside: bool = False,
    ) -> None:
        super().__init__()
        self.w0, self.sigma, self.inside = float(w0), float(sigma), inside
        self.balanced = isinstance(class_weights, str)
        fixed = None if class_weights is None or isinstance(class_weights, str) else class_weights
        buffer = None if fixed is None else torch.as_tensor(fixed, dtype=torch.float32).detach().clone()
        self.register_buffer("class_weights", buffer)
        # bad options raise here, with the operator's own message, rather than in the first step of a training run
        given = class_weights if isinstance(class_weights, str) else buffer
        ops.weight_map(
            torch.zeros((0, 1, 1), dtype=torch.int32, device=None if buffer is None else buffer.device),
            w0=w0,
            sigma=sigma,
            class_weights=given,
            inside=inside,
        )

    def forward(self, instances: torch.Tensor) -> torch.Tensor:
        """(N, H, W) labels to (N, H, W) float32 weights."""
        return ops.weight_map(
            instances,
            w0=self.w0,
            sigma=self.sigma,
            class_weights="balanced" if self.balanced else self.class_weights,
            inside=self.inside,
        )

    def extra_repr(self) -> str:
        weights = "balanced" if self.balanced else self.class_weights
        shown = weights.tolist() if isinstance(weights, torch.Tensor) else weights
        return f"w0={self.w0:g}, sigma={self.sigma:g}, class_weights={shown!r}, inside={self.inside}"
