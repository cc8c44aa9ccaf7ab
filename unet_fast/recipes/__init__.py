"""Recipes: how the systems of the literature were trained. ``get(name)``, ``names()``."""

from __future__ import annotations

from unet_fast.errors import InputError
from unet_fast.recipes.base import Recipe
from unet_fast.recipes.batch_norm import BatchNorm
from unet_fast.recipes.dental import Dental
from unet_fast.recipes.electron_microscopy import ElectronMicroscopy
from unet_fast.recipes.keras import Keras
from unet_fast.recipes.paper import Paper
from unet_fast.recipes.plus_plus import PlusPlus
from unet_fast.recipes.pretrained import Pretrained
from unet_fast.recipes.three_plus import ThreePlus

__all__ = ["RECIPES", "Recipe", "get", "names"]

RECIPES: tuple[Recipe, ...] = (
    Paper(),
    ElectronMicroscopy(),
    BatchNorm(),
    Pretrained(),
    Keras(),
    Dental(),
    PlusPlus(),
    ThreePlus(),
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
