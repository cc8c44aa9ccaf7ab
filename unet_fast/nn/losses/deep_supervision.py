"""One loss a head of a network with several outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_fast import checks
from unet_fast.errors import InputError, InputTypeError
from unet_fast.ops._targets import calculable

RESIZE = ("target", "logits")
_SMOOTH = {1: "linear", 2: "bilinear", 3: "trilinear"}  # by the number of spatial dimensions


def deep_supervision_loss(
    heads: Sequence[Tensor] | Tensor,
    target: Tensor | Sequence[Tensor],
    weight: Tensor | Sequence[Tensor] | None = None,
    *,
    loss: Callable[..., Tensor],
    weights: Sequence[float] | None = None,
    resize: str = "target",
) -> tuple[Tensor, Tensor]:
    """``sum(weights[i] * loss(heads[i], target, weight))``, and the losses one by one.

    Args:
        heads: logits (N, K, *s_i), any number of heads, each of its own size; or heads of one size in one tensor
            (N, heads, K, *S), as MONAI's DynUNet stacks them.
        target: (N, *S) or (N, 1, *S), as ``loss`` takes it; or a sequence of one target a head, of its size, as nnU-Net gives them.
        weight: None, or a weight per pixel of the shape of the target (a sequence of them beside one of targets); it is handed on
            only where it is given, so that any loss of two arguments will do as well.
        loss: maps (logits, target[, weight]) to a scalar.
        weights: one finite number per head; None: 1 each.
        resize: what to do with a head of another size than the target. "target": sample target and weight at the
            nearest pixel (centre of the head's pixel) to the size of the head; "logits": interpolate the head
            (bi)linearly to the size of the target.

    Returns:
        The weighted sum, a scalar, and the loss of every head before weighting, (heads,), without gradients.

    Raises:
        InputError: no heads, another number of weights or targets than heads, a head of another batch size or rank than the
            target, a loss that is not a scalar.
        InputTypeError: ``heads`` is a tensor of one map or holds something else, a weight that is not a number.
    """
    checks.check_choice("resize", resize, RESIZE)
    weights = None if weights is None else check_weights(weights)
    heads = _apart(heads, target)
    targets, pixel_weights = (
        _for_each(target, len(heads), "targets"),
        _for_each(weight, len(heads), "weights per pixel"),
    )
    _check_heads(heads, targets, weights)
    values = []
    for index, (head, here, here_weight) in enumerate(zip(heads, targets, pixel_weights, strict=True)):
        size = head.shape[2:]
        if resize == "target":
            here = nearest(here, size)
            here_weight = None if here_weight is None else nearest(here_weight, size)
        elif size != here.shape[-len(size) :]:
            head = F.interpolate(head, size=here.shape[-len(size) :], mode=_SMOOTH[len(size)], align_corners=False)
        value = loss(head, here) if here_weight is None else loss(head, here, here_weight)
        if value.dim() > 0:
            raise InputError(
                f"the loss of head {index} has shape {tuple(value.shape)}, expected a scalar; "
                "use a reduction such as 'mean'"
            )
        values.append(value)
    factors = weights or (1.0,) * len(values)
    total = values[0] * factors[0]
    for value, factor in zip(values[1:], factors[1:], strict=True):
        total = total + value * factor
    return total, torch.stack([value.detach() for value in values])


def nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """The last dimensions of ``x`` sampled to ``size`` at pixel centres, any dtype; ``x`` itself where it has that
    size.

    Equivalent to, for floating (N, C, H, W)::

        F.interpolate(x, size=size, mode="nearest-exact")
    """
    for offset, wanted in enumerate(size):
        dim = x.dim() - len(size) + offset
        given = x.shape[dim]
        if given != wanted:
            index = (2 * torch.arange(wanted, device=x.device) + 1) * given // (2 * wanted)
            x = calculable(x).index_select(dim, index)
    return x


def check_weights(weights: Sequence[float]) -> tuple[float, ...]:
    """``weights`` as a tuple of finite numbers."""
    if isinstance(weights, (str, Tensor)) or not isinstance(weights, Sequence):
        raise InputTypeError(f"weights is a {type(weights).__name__}, expected a sequence of one number per head")
    for value in weights:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputTypeError(f"weights contains {value!r}, expected one number per head")
        if not abs(value) < float("inf"):
            raise InputError(f"weights contains {value!r}, expected finite numbers")
    return tuple(float(value) for value in weights)


def _apart(heads: Sequence[Tensor] | Tensor, target: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    """Stacked heads one by one: a tensor (N, heads, K, *S) beside a target (N, *S) or (N, 1, *S)."""
    if isinstance(heads, Tensor) and isinstance(target, Tensor) and heads.dim() >= 4:
        spatial = heads.shape[3:]
        if target.shape in ((heads.shape[0], *spatial), (heads.shape[0], 1, *spatial)):
            return heads.unbind(1)
    if not isinstance(heads, (list, tuple)):
        hint = (
            "; a network in evaluation mode may return one map, use the loss itself"
            if isinstance(heads, Tensor)
            else ""
        )
        raise InputTypeError(f"heads is a {type(heads).__name__}, expected a list or tuple of logits{hint}")
    return heads


def _for_each(value: Any, heads: int, what: str) -> Sequence[Any]:
    """One for each head: the same for all, unless it is a sequence."""
    if not isinstance(value, (list, tuple)):
        return [value] * heads
    if len(value) != heads:
        raise InputError(f"got {heads} heads but {len(value)} {what}; give one for each head, or one for all")
    return value


def _check_heads(heads: Sequence[Tensor], targets: Sequence[Tensor], weights: tuple[float, ...] | None) -> None:
    if not heads:
        raise InputError("heads is empty, expected at least one map of logits")
    if weights is not None and len(weights) != len(heads):
        raise InputError(f"got {len(heads)} heads but {len(weights)} weights; give one weight per head")
    for index, (head, target) in enumerate(zip(heads, targets, strict=True)):
        name = f"heads[{index}]"
        checks.check_tensor("target", target)
        checks.check_tensor(name, head)
        checks.check_rank(name, head, (3, 4, 5), "(N, K, H, W), or one or three spatial dimensions")
        if head.shape[0] != target.shape[0] or target.dim() not in (head.dim() - 1, head.dim()):
            raise InputError(
                f"{name} has shape {tuple(head.shape)} but the target {tuple(target.shape)}, "
                "expected (N, K, *s) and (N, *S)"
            )
        if head.numel() == 0 or target.numel() == 0:
            raise InputError(f"{name} of shape {tuple(head.shape)} or target of shape {tuple(target.shape)} is empty")


class DeepSupervision(nn.Module):
    """A loss on every head of a network, summed with one weight per head.

    ``forward(heads, target, weight=None)``: a sequence of logits (N, K, *s_i), or heads stacked in one tensor (N, heads, K, *S); the
    target and the weights per pixel of ``loss``, for all heads or one for each -> a scalar. After a call ``head_losses`` holds the loss of each head before weighting, (heads,), detached,
    on the device. See :func:`unet_fast.nn.losses.deep_supervision_loss` for ``weights``, ``resize`` and errors.

    Example::

        loss = uf.nn.DeepSupervision(uf.nn.BCEDiceLoss(), weights=[0.25, 0.25, 0.25, 0.25])
        loss(heads, masks).backward()
        print(loss.head_losses.tolist())
    """

    def __init__(
        self, loss: Callable[..., Tensor], weights: Sequence[float] | None = None, *, resize: str = "target"
    ) -> None:
        super().__init__()
        if not callable(loss):
            raise InputTypeError(f"loss is a {type(loss).__name__}, expected a loss module or function")
        checks.check_choice("resize", resize, RESIZE)
        self.loss = loss
        self.weights = None if weights is None else check_weights(weights)
        self.resize = resize
        self.head_losses: Tensor | None = None

    def forward(
        self,
        heads: Sequence[Tensor] | Tensor,
        target: Tensor | Sequence[Tensor],
        weight: Tensor | Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Return the weighted sum and keep the loss of each head."""
        total, self.head_losses = deep_supervision_loss(
            heads, target, weight, loss=self.loss, weights=self.weights, resize=self.resize
        )
        return total

    def extra_repr(self) -> str:
        """What ``print`` shows between the brackets."""
        return f"weights={self.weights}, resize={self.resize!r}"
