"""What a program needs to know of a network besides its weights, as a record that travels inside the exported file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from unet_fast.errors import InputError
from unet_fast.models import SegmentationModel
from unet_fast.models.geometry import Geometry

KEY = "unet_fast"
NORMALIZATION = "each channel of each image: minus its mean, divided by its standard deviation (0 where that is 0)"
WHOLE_IMAGE = "none: give the network the values that it was trained on"


_OF_A_RUN = ("tile", "tta", "threshold", "padding", "separate", "min_size")


@dataclass(frozen=True)
class Description:
    """Geometry, channels and the way to predict.

    Attributes:
        model: arguments of :func:`unet_fast.models.create`.
        geometry: which sizes the network takes, and how far an output pixel sees.
        normalized: whether images are normalised, each by itself, before the network sees them.
        tile, tta, threshold, padding, separate, min_size: as in :class:`unet_fast.train.TrainConfig`; what prediction does unless told otherwise.
        tile_dependence: see :attr:`unet_fast.models.SegmentationModel.tile_dependence`.
    """

    model: dict[str, Any]
    geometry: Geometry
    normalized: bool = False
    tile: int = 512
    tta: int = 1
    threshold: float | None = None
    padding: str = "mirror"
    separate: str = "ridge"
    min_size: int | None = None
    tile_dependence: str | None = None

    @classmethod
    def of(cls, model: SegmentationModel, settings: Any = None) -> Description:
        """Of a network, with the settings of its run (a :class:`unet_fast.train.TrainConfig`) where it comes from one."""
        known: dict[str, Any] = {}
        if settings is not None:
            known = {name: getattr(settings, name) for name in _OF_A_RUN}
            known["normalized"] = getattr(settings, "normalized", True)
        return cls(model.config, model.geometry, tile_dependence=model.tile_dependence, **known)

    def metadata(self) -> dict[str, str]:
        """As text under names, for the metadata of a file; :meth:`read` takes the first, people the others."""
        geometry = self.geometry
        lost = f"; the output is {geometry.margin} pixels smaller on each side" if geometry.margin else ""
        smallest = geometry.smallest_output + 2 * geometry.margin
        sizes = f"H and W are {smallest} + k * {geometry.step}, k = 0, 1, ...{lost}"
        if geometry.any_from is not None:
            sizes = f"H and W are {geometry.any_from} or more{lost}; tiles of one image should be multiples of {geometry.step}"
        return {
            KEY: json.dumps(dataclasses.asdict(self)),
            "input": f"images (N, {self.model['in_channels']}, H, W), float32",
            "sizes": sizes,
            "normalization": NORMALIZATION if self.normalized else WHOLE_IMAGE,
            "output": "logits (N, K, h, w); softmax over K gives probabilities, the sigmoid where K = 1",
        }

    @classmethod
    def read(cls, metadata: dict[str, str], path: object) -> Description:
        """What :meth:`metadata` wrote. Raises ``InputError`` for a file that was not exported by this package."""
        if KEY not in metadata:
            raise InputError(
                f"{path} does not say which sizes its network takes; give a file that unet-fast export wrote"
            )
        try:
            values = json.loads(metadata[KEY])
            if "border" in values:  # its name in files of older versions
                values["padding"] = values.pop("border")
            return cls(**{**values, "geometry": Geometry(**values["geometry"])})
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path} describes its network in a way that is not understood ({error}); export it again"
            ) from error
