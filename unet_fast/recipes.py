"""Recipes: how the systems of the literature were trained. ``get(name)``, ``names()``."""

from __future__ import annotations

from unet_fast.errors import InputError
from unet_fast.train.recipe import Recipe, constant_rate, plain_augmentation, plain_loss

__all__ = ["RECIPES", "Recipe", "get", "names"]


RECIPES: tuple[Recipe, ...] = (
    Recipe(
        "paper-2015",
        "U-Net, Ronneberger, Fischer and Brox, 2015",
        said="SGD with momentum 0.99, one large tile a step; cross-entropy weighted by class frequencies and the border term "
        "(w0 = 10, sigma about 5 px); shift, rotation, grey values, elastic deformation of 10 px on a 3x3 grid; dropout; "
        "seven rotated inputs averaged for EM",
        ours="learning rate 1e-4, constant; dropout 0.5; flips; a fifth of the images for validation",
        options={"base_channels": 64, "depth": 4, "padding": "valid", "norm": None, "dropout": 0.5},
        loss=plain_loss(w0=10.0, balance=True),
        optimizer=constant_rate(1e-4, name="sgd", momentum=0.99),
        augmentation=plain_augmentation(rotation=180.0, elastic_sigma=10.0, grey=True),
        tile=388,
        tta=7,
    ),
    Recipe(
        "em",
        "EM re-implementation (PyTorch)",
        said="20 / 5 / 5 slices; 8 versions of each image, affine from three displaced points, elastic of 10 px, 3,360 pairs; "
        "BCE with inverse class frequencies; Adam (0.99, 0.999), 3e-4 times 0.99 every 500 updates, batch 3, 24 epochs, "
        "best by validation loss; threshold 0.5",
        ours="three points moved by up to 20 px; pairs are drawn afresh instead of stored; frequencies of the labels",
        model="unet-em",
        split=(2 / 3, 1 / 6, 1 / 6),
        epochs=24,
        tiles_per_epoch=3360,
        loss=plain_loss("inverse_frequency_bce"),
        optimizer=constant_rate(3e-4, betas=(0.99, 0.999), schedule="exponential", decay=0.99, decay_steps=500),
        augmentation=plain_augmentation(shift=False, quarter_turns=True, affine=20.0, elastic_sigma=10.0),
        best_by="loss",
        batch_size=3,
        tile=512,
    ),
    Recipe(
        "batch-norm",
        "U-Net from scratch with batch normalisation (PyTorch)",
        said="256x256 inputs, Adam 1e-3 times 0.75 at half and three quarters of the training; of several losses equal parts "
        "of Dice and focal (gamma 0.9); sigmoid output",
        ours="batch 4; random 256x256 windows with flips; a fifth of the images for validation",
        model="unet-bn",
        loss=plain_loss("focal_dice"),
        optimizer=constant_rate(1e-3, schedule="step", decay=0.75),
        batch_size=4,
    ),
    Recipe(
        "pretrained-encoder",
        "U-Net with a pretrained ResNet encoder",
        said="ResNet encoder with ImageNet weights (--weights FILE); flips and rotations only; alpha * focal - log(dice)",
        ours="ResNet-34; alpha 10, focal gamma 2; Adam 1e-4, constant; batch 4, 256x256 windows; turns by any angle",
        model="unet-resnet34",
        loss=plain_loss("focal_log_dice"),
        optimizer=constant_rate(1e-4),
        augmentation=plain_augmentation(rotation=180.0),
        batch_size=4,
    ),
    Recipe(
        "keras",
        "U-Net re-implementation (Keras)",
        said="Adam 1e-4; shift, rotation, flip; the binarisation threshold is chosen by a scan",
        ours="zero-padded convolutions and dropout 0.5; cross-entropy; batch 2, 256x256 tiles; the scan is on Dice",
        options={"base_channels": 64, "depth": 4, "padding": "same", "norm": None, "dropout": 0.5},
        optimizer=constant_rate(1e-4),
        augmentation=plain_augmentation(rotation=180.0),
        batch_size=2,
        threshold=None,
    ),
    # its text was not available
    Recipe(
        "dental",
        "U-Net for dental X-ray images",
        said="7 classes, 4x4 up-convolutions, zeros instead of the mirror beyond the image, auxiliary softmax losses on the "
        "low-resolution levels of the expanding path",
        ours="all but that: SGD with momentum 0.99 at 1e-4 and the augmentation of the paper, heads weighted alike",
        model="unet-dental",
        optimizer=constant_rate(1e-4, name="sgd", momentum=0.99),
        augmentation=plain_augmentation(rotation=180.0, elastic_sigma=10.0, grey=True, padding="zeros"),
        tile=384,
    ),
    Recipe(
        "unet++",
        "UNet++ (nested U-Net with deep supervision)",
        said="one loss a head on X(0, 1..4), each 0.5 * BCE - soft Dice; the heads are averaged at prediction",
        ours="Adam 1e-4 and shift, rotation, flip as in the Keras re-implementation; batch 2, 256x256 tiles",
        model="unet++",
        loss=plain_loss("bce_dice"),
        optimizer=constant_rate(1e-4),
        augmentation=plain_augmentation(rotation=180.0),
        batch_size=2,
        threshold=None,
    ),
    Recipe(
        "unet3+",
        "UNet 3+ (full-scale skips)",
        said="focal + MS-SSIM + IoU on the heads of all five decoder scales; Adam 1e-3, 18 epochs",
        ours="the losses of the paper (a Keras re-implementation took BCE with logits: --loss bce), its rate and epochs; "
        "batch 2, 256x256 tiles, shift, rotation, flip; the classification is trained by cross-entropy",
        model="unet3+",
        options={"deep_supervision": True, "classification": True},
        epochs=18,
        loss=plain_loss("focal_ms_ssim_iou"),
        augmentation=plain_augmentation(rotation=180.0),
        batch_size=2,
        threshold=None,
    ),
)


def names() -> list[str]:
    """The names of all recipes, in the order of their sources."""
    return [recipe.name for recipe in RECIPES]


def get(name: str) -> Recipe:
    """The recipe of that name; ``InputError`` that lists the names for another one."""
    for recipe in RECIPES:
        if recipe.name == name:
            return recipe
    raise InputError(f"recipe is {name!r}, expected one of {', '.join(map(repr, names()))}; see unet-fast recipes")
