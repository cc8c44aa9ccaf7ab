"""One file holds all that a run needs to go on: weights, their average, optimizer, random state, position.

Tensors lie in a safetensors file under dotted names; everything that is no tensor lies in its metadata as JSON. Nothing
is pickled, so a checkpoint from a stranger cannot run code. The file is replaced in one step: a killed run leaves the
previous checkpoint whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from unet_fast.errors import InputError
from unet_fast.files import atomic_path


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Write named tensors of any device and a JSON-able ``state``."""
    # clones, because safetensors refuses tensors that share memory, and contiguous, because it stores no strides
    stored = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(stored, str(temporary), metadata={"state": json.dumps(state)})


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote. Raises ``InputError`` for a missing, cut or foreign file."""
    if not path.exists():
        raise InputError(f"there is no file {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118 (no mapping)
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged or was not written by unet_fast ({error})") from error


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state of an optimizer as named tensors (``<parameter>.<key>``) and the rest as JSON-able values."""
    full = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for parameter, values in full["state"].items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{parameter}.{key}"] = value
            else:
                numbers.setdefault(str(parameter), {})[key] = value
    return tensors, {"numbers": numbers, "groups": full["param_groups"]}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], values: dict[str, Any]
) -> None:
    """The inverse of :func:`flatten_optimizer`."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {int(p): dict(items) for p, items in values["numbers"].items()}
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        parameter = parameters[int(number)]
        if tensor.shape == parameter.shape:
            # fused optimizers walk through memory: moments must have the layout of a channels-last weight
            tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": values["groups"]})


def with_prefix(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under ``prefix.name``."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under_prefix(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those tensors whose name starts with ``prefix.``, without it."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}
