"""How random tiles are made, as a record that training, recipes and the augmenter share."""

from __future__ import annotations

from dataclasses import dataclass

from unet_fast import checks
from unet_fast._settings import Record, setting
from unet_fast._warp_arguments import FIELDS, PADDINGS
from unet_fast.errors import InputError


@dataclass(frozen=True)
class Augmentation(Record):
    """What is random about a training tile.

    Attributes:
        shift: put the tile's centre on a pixel that is uniform over the image; else on the centre of the image. What
            lies outside the image is padded; with the mirror every source pixel is expected in equally many tiles
            (only the outermost row or column, which the mirror does not repeat, in half as many).
        rotation: angles are uniform in +-rotation degrees, 0 to 180.
        flips: flip either axis with probability 1/2.
        quarter_turns: turn by 0, 90, 180 or 270 degrees more; with flips, the 8 symmetries of the square, equally often
            and, without rotation and deformation, free of interpolation.
        affine: move three points of the image (at a third of its shorter side from the centre) by up to this many pixels
            along either axis, uniformly, and the image by the affine map that they define; 0 for none.
        elastic_sigma: standard deviation, in pixels, of the Gaussian displacement of each control point; 0 for none.
        elastic_grid: control points (gh, gw) *over the source image*, from border to border. The paper's 3 x 3 on
            512 px means one every 256 px; larger images need more points for the same deformation.
        field: how the control points become a field: "bicubic", "bspline", "bspline_smooth", as in
            :func:`unet_fast.ops.elastic_warp`.
        grey: send the grey values of each tile and channel through a random smooth rising curve, see
            :mod:`unet_fast.augment.grey`. The curve's 0..1 is the range from the tile's least to its largest value,
            so it suits normalised and raw images alike.
        padding: what lies beyond the image, "mirror", "zeros" or "nearest", as in :func:`unet_fast.ops.elastic_warp`.
            With "zeros" the labels outside are 0. A trained network predicts with what it was trained with.

    Raises:
        InputError: an option is of another type or out of its range; the message names the range.

    Source: Ronneberger, Fischer, Brox, U-Net (MICCAI 2015), section 3.1.
    """

    shift: bool = True
    rotation: float = 180.0
    flips: bool = True
    quarter_turns: bool = False
    affine: float = 0.0
    elastic_sigma: float = 10.0
    elastic_grid: tuple[int, int] = (3, 3)
    field: str = "bicubic"
    grey: bool = True
    padding: str = setting("mirror", "image_padding", older="border")

    def check(self) -> None:  # noqa: D102
        if not 0 <= self.rotation <= 180:
            raise InputError(f"rotation is {self.rotation}, expected an angle from 0 to 180 degrees")
        for name, pixels in (("elastic_sigma", self.elastic_sigma), ("affine", self.affine)):
            if not pixels >= 0:
                raise InputError(f"{name} is {pixels}, expected a finite number of pixels, at least 0")
        if min(self.elastic_grid) < 1:
            raise InputError(f"elastic_grid is {self.elastic_grid}, expected at least 1 point an axis")
        checks.check_choice("field", self.field, FIELDS)
        checks.check_choice("padding", self.padding, PADDINGS)
        if self.field == "bspline_smooth" and min(self.elastic_grid) < 4:
            raise InputError(
                f"elastic_grid is {self.elastic_grid}, but field 'bspline_smooth' needs at least 4 points an axis"
            )
