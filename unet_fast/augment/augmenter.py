"""The fused augmentation: every tile, its labels and its weights come from one warp with one field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from unet_fast import checks
from unet_fast.augment import grey as grey_values
from unet_fast.augment import parameters
from unet_fast.augment.settings import Augmentation
from unet_fast.errors import InputError, InputTypeError
from unet_fast.ops import elastic_warp

Maps = TypeVar("Maps", torch.Tensor, Sequence[torch.Tensor])


class Augmenter:
    """Cut random, turned, flipped, deformed tiles out of images, with the labels that belong to them.

    Everything happens on the device of the images, without waiting for the host. The result depends on ``generator`` alone.

    Args:
        input_size: side, or (h, w), of the image tiles in pixels: the network's input.
        output_size: of the label tiles, the network's output; None for ``input_size``. Both have the same centre, so
            the difference must be even (as it is for valid convolutions). Tiles may be larger than the image.
        settings: what is random about a tile, see :class:`Augmentation`; None for its defaults.
        changes: fields of ``settings`` that are otherwise: ``elastic_sigma=5.0``, ``rotation=0.0``, ...

    Raises:
        InputError: an option is out of its range; the message names the range.

    Source: Ronneberger, Fischer, Brox, U-Net (MICCAI 2015), section 3.1.
    """

    def __init__(
        self,
        input_size: int | Sequence[int],
        output_size: int | Sequence[int] | None = None,
        settings: Augmentation | None = None,
        **changes: Any,
    ) -> None:
        self.input_size = _pair("input_size", input_size)
        self.output_size = self.input_size if output_size is None else _pair("output_size", output_size)
        for outer, inner in zip(self.input_size, self.output_size, strict=True):
            if inner > outer or (outer - inner) % 2:
                raise InputError(
                    f"output_size is {self.output_size} for input_size {self.input_size}; expected at most the input "
                    "size and an even difference, so that both tiles have the same centre"
                )
        if "elastic_grid" in changes:
            changes["elastic_grid"] = _pair("elastic_grid", changes["elastic_grid"])
        self.settings = replace(settings or Augmentation(), **changes)

    def __repr__(self) -> str:
        given = {"input_size": self.input_size, "output_size": self.output_size, **vars(self.settings)}
        return f"Augmenter({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def __call__(
        self, images: torch.Tensor, labels: Maps, *, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, Maps]:
        """One tile from each image.

        Args:
            images: (N, C, H, W), floating, on any device.
            labels: (N, H, W) integers (or bool), or a tuple of such maps, of which all but the first may also be
                floating, such as weights. Integers are taken from the nearest pixel, so that labels never mix; images
                and floating maps are interpolated bilinearly.
            generator: source of all random numbers, on the device of the images; None for torch's own.

        Returns:
            Tiles (N, C, *input_size) and maps (N, *output_size) of unchanged dtypes; a tuple when a tuple came in.

        Raises:
            InputError: shapes, devices or dtypes that do not match; an empty image; NaN in a tile (looked for only on
                the CPU, where it costs no waiting).
        """
        maps: list[torch.Tensor] = self._check(images, labels, generator)
        tile, warped = self._warp(images, maps, self._draw(images, generator))
        return tile, _like(labels, warped)

    def sample(
        self, images: torch.Tensor, labels: Maps, batch_size: int, *, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, Maps]:
        """``batch_size`` tiles, each from an image drawn with equal chances; otherwise as :meth:`__call__`."""
        maps: list[torch.Tensor] = self._check(images, labels, generator)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size is {batch_size!r}, expected an integer of at least 1")
        if len(images) == 0:
            raise InputError("images has no samples, expected at least one to draw tiles from")
        sources = [images, *maps]
        if len(images) == 1:  # no copy
            taken = [source.expand(batch_size, *source.shape[1:]) for source in sources]
        else:
            index = parameters.draw_indices(batch_size, len(images), device=images.device, generator=generator)
            taken = [source.index_select(0, index) for source in sources]
        tile, warped = self._warp(taken[0], taken[1:], self._draw(taken[0], generator))
        return tile, _like(labels, warped)

    def draw(
        self,
        count: int,
        image_size: Sequence[int],
        channels: int = 1,
        *,
        device: torch.device,
        generator: torch.Generator | None = None,
    ) -> parameters.Drawn:
        """The random numbers of ``count`` tiles of images of ``image_size`` (H, W), for :meth:`apply`.

        Several processes can so draw the same numbers for the tiles of all of them, and each make only its own tiles.
        """
        height, width = image_size
        settings = self.settings
        matrix = parameters.draw_matrix(count, (height, width), settings, device=device, generator=generator)
        displacement = parameters.draw_displacement(
            count, settings.elastic_grid, settings.elastic_sigma, device=device, generator=generator
        )
        tables = None
        if settings.grey:
            tables = grey_values.draw_tables(count, channels, device=device, generator=generator)
        return parameters.Drawn(matrix, displacement, tables)

    def apply(self, images: torch.Tensor, labels: Maps, drawn: parameters.Drawn) -> tuple[torch.Tensor, Maps]:
        """One tile from each image, with the random numbers that :meth:`draw` gave for it; see :meth:`__call__`."""
        maps: list[torch.Tensor] = self._check(images, labels, None)
        tile, warped = self._warp(images, maps, drawn)
        return tile, _like(labels, warped)

    def _draw(self, images: torch.Tensor, generator: torch.Generator | None) -> parameters.Drawn:
        count, channels, height, width = images.shape
        return self.draw(count, (height, width), channels, device=images.device, generator=generator)

    def _warp(
        self, images: torch.Tensor, maps: list[torch.Tensor], drawn: parameters.Drawn
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        tile, *warped = elastic_warp(
            (images, *(each.unsqueeze(1) for each in maps)),
            drawn.displacement,
            matrix=drawn.matrix,
            output_size=(self.input_size, *[self.output_size] * len(maps)),
            interpolation=("bilinear", *("bilinear" if each.is_floating_point() else "nearest" for each in maps)),
            field=self.settings.field,
            padding=self.settings.padding,
        )
        on_cpu = images.device.type == "cpu"
        if drawn.tables is not None or on_cpu:
            low, high = grey_values.value_range(tile)
            if on_cpu:
                _refuse_nan(low)
            if drawn.tables is not None:
                tile = grey_values.apply_tables(tile, drawn.tables, low, high)
        return tile, [each.squeeze(1) for each in warped]

    def _check(
        self,
        images: torch.Tensor,
        labels: torch.Tensor | Sequence[torch.Tensor],
        generator: torch.Generator | None,
    ) -> list[torch.Tensor]:
        checks.check_tensor("images", images)
        checks.check_dtype("images", images, checks.FLOATING)
        checks.check_rank("images", images, (4,), "(N, C, H, W)")
        if min(images.shape[1:]) < 1:
            raise InputError(f"images has shape {tuple(images.shape)}, expected at least one channel and one pixel")
        if isinstance(labels, (tuple, list)):
            names = [f"labels[{i}]" for i in range(len(labels))]
            maps = list(labels)
        else:
            names, maps = ["labels"], [labels]
        if not maps:
            raise InputError("labels is empty, expected a map (N, H, W) or a tuple of maps")
        for i, (name, each) in enumerate(zip(names, maps, strict=True)):
            checks.check_tensor(name, each)
            allowed = (*checks.INTEGRAL, torch.bool)
            checks.check_dtype(name, each, allowed if i == 0 else (*allowed, *checks.FLOATING))
            checks.check_rank(name, each, (3,), "(N, H, W)")
            checks.check_same_device("images", images, name, each)
            expected = (images.shape[0], *images.shape[2:])
            if each.shape != expected:
                raise InputError(
                    f"{name} has shape {tuple(each.shape)}, expected {tuple(expected)}: one map for each of the images "
                    f"{tuple(images.shape)}"
                )
        if generator is not None and generator.device.type != images.device.type:
            raise InputError(
                f"generator is on {generator.device} but images is on {images.device}; "
                f"make one with torch.Generator({str(images.device)!r})"
            )
        return maps


def _refuse_nan(lowest: torch.Tensor) -> None:
    """Raise for NaN among the smallest values of tiles. Reading them means waiting on a GPU, so this is for the CPU."""
    if bool(lowest.isnan().any()):
        raise InputError("images contains NaN (seen in a tile); replace it, for example by the mean of the image")


def _like(labels: Maps, warped: list[torch.Tensor]) -> Maps:
    """A map where a map came in, a tuple where several did."""
    return warped[0] if isinstance(labels, torch.Tensor) else tuple(warped)


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(type(side) is int for side in pair):
        raise InputTypeError(f"{name} is {value!r}, expected an integer or two, (height, width)")
    if min(pair) < 1:
        raise InputError(f"{name} is {value!r}, expected at least 1")
    return pair[0], pair[1]
