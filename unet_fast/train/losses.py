"""Losses by name, for a run's configuration, and how they reach the heads of a network."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_fast import checks, ops
from unet_fast._settings import Record, setting
from unet_fast.errors import InputError
from unet_fast.models import HeadOutputs, create
from unet_fast.models.base import SingleHeadModel
from unet_fast.nn import losses
from unet_fast.nn.losses.ms_ssim import EXPONENTS, WINDOW


class WeightedCrossEntropy(nn.Module):
    """The U-Net's own loss: softmax cross-entropy with weights per pixel; of one channel that of its sigmoid."""

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits (N, K, H, W), target (N, H, W), weight (N, H, W) -> the mean over counted pixels."""
        if logits.shape[1] == 1:
            return losses.bce_with_logits_loss(logits, target, weight)
        return ops.weighted_cross_entropy(logits, target, weight)


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "weighted_cross_entropy": WeightedCrossEntropy,
    "bce": losses.BCEWithLogitsLoss,
    "inverse_frequency_bce": losses.InverseFrequencyBCELoss,
    "dice": losses.DiceLoss,
    "iou": losses.IoULoss,
    "focal": losses.FocalLoss,
    "ms_ssim": losses.MSSSIMLoss,
    "focal_dice": losses.FocalDiceLoss,
    "focal_log_dice": losses.FocalLogDiceLoss,
    "bce_dice": losses.BCEDiceLoss,
    "focal_ms_ssim_iou": losses.FocalMSSSIMIoULoss,
}


# whose value is a mean over the pixels that count
MEANS_OF_PIXELS = ("weighted_cross_entropy", "bce", "inverse_frequency_bce", "focal")


@dataclass(frozen=True)
class Loss(Record):
    """What a run minimises.

    Attributes:
        name, options: a name of ``unet_fast.train.LOSSES``, and the options of that loss.
        head_weights: of a network with several heads, one weight per head, the main one first; None: 1 each.
        w0, sigma: border term of the weight map, see :func:`unet_fast.ops.weight_map`. The paper's w0 = 10 comes on top
            of weights that balance the classes; where nearly all background lies between two cells, as membranes do,
            both lift the same pixels, and w0 = 4 gives the lower pixel error; none of it gives one that is lower still,
            which is the default of a CPU for two classes without numbered objects, see docs/train.md.
        balance: weight classes by their inverse frequency in the training labels.
    """

    name: str = setting("weighted_cross_entropy", "loss")
    options: dict[str, Any] = setting({}, "loss_options")
    head_weights: tuple[float, ...] | None = None
    w0: float = 4.0
    sigma: float = 5.0
    balance: bool = True

    def check(self) -> None:  # noqa: D102
        checks.check_choice("loss", self.name, tuple(LOSSES))
        self.check_not_negative("w0")
        if not self.sigma > 0:
            raise InputError(f"sigma is {self.sigma}, expected a number of pixels above 0")


# border and class weights belong to the weighted cross-entropy; other losses get them when asked for
UNWEIGHTED = {"w0": 0.0, "balance": False, "loss_options": {}, "head_weights": None}


def create_loss(settings: Loss, class_counts: Tensor, model: dict[str, Any], tile: int) -> nn.Module:
    """The loss that ``settings`` say, on the device of ``class_counts``.

    ``class_counts`` (K,), pixels of each class in the training labels, are the frequencies of ``inverse_frequency_bce``.
    MS-SSIM takes as many scales as fit into the smallest head of the network (``model``, arguments of
    :func:`unet_fast.models.create`) at output tiles of ``tile`` pixels, unless the options say how many.

    Raises:
        InputError: an option that the loss does not have (naming those that it has), or a value that it refuses.
    """
    make = LOSSES[settings.name]
    parameters = inspect.signature(make).parameters
    options: dict[str, Any] = {}
    if "frequencies" in parameters:
        options["frequencies"] = class_counts
    if "scales" in parameters:
        smallest = _smallest_head(model, tile)
        fitting = [scales for scales in range(1, len(EXPONENTS) + 1) if WINDOW << (scales - 1) <= smallest]
        options["scales"] = max(fitting, default=1)
    for name in settings.options:
        if name not in parameters:
            known = ", ".join(parameters) or "none"
            raise InputError(f"loss {settings.name!r} has no option {name!r}; its options are {known}")
    return make(**{**options, **settings.options}).to(class_counts.device)


def _smallest_head(arguments: dict[str, Any], tile: int) -> int:
    """The least side of what the network returns in training, in pixels; nothing is computed."""
    # the reference consists of torch's own operations, which know the meta device
    with ops.use_backend("reference"), torch.device("meta"), torch.no_grad():
        model = create(**arguments).train()
        side = model.input_size(tile)
        # two images: batch normalisation refuses a single value
        outputs = model(torch.empty(2, model.in_channels, side, side))
    heads = [outputs] if isinstance(outputs, Tensor) else outputs.heads
    return min(min(head.shape[2:]) for head in heads)


class HeadLoss(nn.Module):
    """A loss over whatever a network returns in training mode.

    One map of logits goes to ``loss``. Several heads go to it one by one (deep supervision, weighted by ``weights``),
    target and weights sampled at the nearest pixel to the size of each. The classification of a network that has one
    (:class:`~unet_fast.models.UNet3Plus`) is trained beside them by the cross-entropy of "the tile shows foreground".
    ``head_losses`` holds the losses of the last call one by one, before weighting.
    """

    def __init__(self, loss: nn.Module, weights: tuple[float, ...] | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.supervision = losses.DeepSupervision(loss, weights)
        self.weights = weights
        self.head_losses: Tensor | None = None

    def of_network(
        self,
        network: nn.Module,
        images: Tensor,
        target: Tensor,
        weight: Tensor,
        wrapped: Callable[..., Any] | None = None,
    ) -> Tensor:
        """The loss of what ``network`` makes of ``images``; where the two fuse, without storing the logits.

        ``wrapped`` is what is called in its place, such as a DistributedDataParallel around it. Autocast acts on the network alone: the loss is computed in float32.
        """
        if (
            isinstance(self.loss, WeightedCrossEntropy)
            and isinstance(network, SingleHeadModel)
            and network.num_classes > 1
            and (self.weights is None or len(self.weights) == 1)
        ):
            value = (wrapped or network)(images, target, weight)
            self.head_losses = value.detach().view(1)
            return value
        outputs = (wrapped or network)(images)
        with torch.autocast(images.device.type, enabled=False):
            return self(outputs, target, weight)

    def forward(self, outputs: Tensor | HeadOutputs, target: Tensor, weight: Tensor) -> Tensor:
        """Return a scalar: outputs of the network, target (N, H, W) int64, -100 ignored, weight (N, H, W)."""
        if isinstance(outputs, Tensor):
            if self.weights is not None and len(self.weights) != 1:
                raise InputError(f"head_weights has {len(self.weights)} entries, but this network has one head")
            value = self.loss(outputs, target, weight)
            self.head_losses = value.detach().view(1)
            return value
        total = self.supervision(outputs.heads, target, weight)
        self.head_losses = self.supervision.head_losses
        if outputs.class_logits is not None:
            shows = (target > 0).flatten(1).any(1).long()
            total = total + F.cross_entropy(outputs.class_logits.float(), shows)
        return total


def logits_of(probabilities: Tensor) -> Tensor:
    """Logits whose sigmoid (K = 1) or softmax gives (N, K, H, W) ``probabilities``, which may be 0 or 1."""
    kept = probabilities.clamp(1e-7, 1 - 1e-7)
    return torch.logit(kept) if probabilities.shape[1] == 1 else kept.log()
