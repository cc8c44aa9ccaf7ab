"""Which modules of a network can run faster, and why the others cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from unet_fast.accelerate import blocks, flow, layers, reading
from unet_fast.accelerate.inference import Predicting
from unet_fast.accelerate.joined import UPSAMPLINGS, doubles
from unet_fast.accelerate.patch import Patch, patch_of
from unet_fast.ops._convolution import suit

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Found:
    """One module that is replaced: ``what`` runs as one there."""

    path: str
    patch: Patch
    what: str


@dataclass(frozen=True)
class Left:
    """One module that is left alone, and why."""

    path: str
    kind: str
    why: str


def find(model: nn.Module) -> tuple[list[Found], list[Left]]:
    """Install patches wherever something can be joined, from the leaves up, and tell of them and of what was left."""
    found: list[Found] = []
    left: list[Left] = []
    for path, module in reversed(list(model.named_modules())):
        if "forward" in module.__dict__:
            there = patch_of(module)
            if isinstance(there, Predicting):
                there = there.inner
                if there is None:
                    continue
            if there is not None:
                found.append(Found(path, there, describe(there)))
            else:
                left.append(Left(path, type(module).__name__, "its forward was already replaced by other code"))
            continue
        try:
            patch = patch_for(module)
        except reading.Unreadable as error:
            if _has_layers(module) or _JOINS & set(type(module).forward.__code__.co_names):
                left.append(Left(path, type(module).__name__, str(error)))
            continue
        if patch is None:
            why = why_not(module)
            if why is not None:
                left.append(Left(path, type(module).__name__, why))
            continue
        patch.install()
        found.append(Found(path, patch, describe(patch)))
    return found[::-1], left[::-1]


def patch_for(module: nn.Module) -> Patch | None:
    """The patch that makes ``module`` faster, or None; raises :class:`~unet_fast.accelerate.reading.Unreadable`."""
    if isinstance(module, nn.Conv2d):
        fast = type(module) is nn.Conv2d and layers.is_fast(module) and suit(module.out_channels, module.in_channels)
        return flow.LayerPatch(module) if fast else None
    if isinstance(module, nn.Upsample) and type(module) in UPSAMPLINGS and doubles(module):
        return flow.UpsamplingPatch(module)
    if type(module).forward is nn.Sequential.forward:
        return flow.RowPatch(module) if joins(list(module.children())) else None
    kind = blocks.known(module)
    if kind is not None:
        return kind(module)
    if type(module).__module__.startswith("torch.") or not _calls_layers(module):
        return None
    flows = {}
    training = module.training
    for mode in (training, not training):
        module.training = mode
        try:
            flows[mode] = reading.read(module)
        finally:
            module.training = training
    return flow.FlowPatch(module, flows) if any(_is_worth(module, one) for one in flows.values()) else None


def joins(row: Sequence[nn.Module]) -> bool:
    """Whether some layers of a row run as one."""
    return any(len(group) > 1 for group in groups(row))


def groups(row: Sequence[nn.Module]) -> list[list[nn.Module]]:
    """The layers of a row, those together that run as one."""
    rest, out = layers.expand(row), []
    while rest:
        count = layers.group(rest)
        out.append(rest[:count])
        rest = rest[count:]
    return out


_JOINS = {"cat", "concat", "concatenate"}


def _calls_layers(module: nn.Module) -> bool:
    """Whether a module calls layers itself, or modules in which some are joined, or may do nothing but hand on a map."""
    children = _children(module)
    hands_on = bool(children) and all(type(child) in (nn.Identity, *layers.DROPOUTS) for child in children)
    return hands_on or _has_layers(module) or any(patch_of(child) is not None for child in children)


def _has_layers(module: nn.Module) -> bool:
    return any(isinstance(child, (*CONVOLUTIONS, *layers.NORMS)) for child in _children(module))


def _children(module: nn.Module) -> list[nn.Module]:
    """The children of a module, and those in lists."""
    out: list[nn.Module] = []
    for child in module.children():
        out += child.children() if isinstance(child, nn.ModuleList | nn.ModuleDict) else [child]
    return out


def _is_worth(module: nn.Module, one: flow.Flow) -> bool:
    """Whether a flow joins maps, joins layers of different modules, or is a row that its caller can join with others."""
    for step in one.steps:
        if isinstance(step, flow.Join):
            return True
        if isinstance(step, flow.Row):
            row = flow.modules_of(module, step)
            apart = sum(len(groups([layer])) for layer in row)
            alone = len(one.steps) == 1
            if len(groups(row)) < apart or (alone and (joins(row) or all(map(layers.idle, row)))):
                return True
    return False


def describe(patch: Patch) -> str:
    """What a patch runs as one, in words."""
    counted: dict[str, int] = {}
    for row in patch.rows():
        for group in groups(row):
            if len(group) > 1 or layers.is_fast(group[0]) or isinstance(group[0], layers.NORMS):
                name = " + ".join(_name(layer) for layer in group if not layers.idle(layer))
                counted[name] = counted.get(name, 0) + 1
    words = [*patch.words]
    words += [name + (f" (x{count})" if count > 1 else "") for name, count in counted.items()]
    return ", ".join(words) or "passes its input on"


def _name(layer: nn.Module) -> str:
    if isinstance(layer, nn.Conv2d):
        height, width = layer.kernel_size
        return f"{height}x{width} convolution"
    return type(layer).__name__


def why_not(module: nn.Module) -> str | None:
    """Why a module that computes was left as it is; None for what only holds others or is joined to what is before it."""
    if isinstance(module, nn.Conv2d):
        if type(module) is not nn.Conv2d:
            return "a class of its own"
        return (
            f"{_name(module)}, {module.in_channels} to {module.out_channels} channels, stride {module.stride[0]}, "
            f"{module.groups} groups: torch's own runs"
        )
    if isinstance(module, CONVOLUTIONS):
        return "torch's own runs"
    return None
