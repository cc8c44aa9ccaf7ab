"""One file holds all that a run needs to continue: weights, their average, optimizer, random state, position.

Tensors lie in a safetensors file under dotted names; everything that is not a tensor lies in its metadata as JSON, beside a
checksum of it all, which is compared at every load. Nothing is pickled, so a checkpoint from a stranger cannot run code. The
file is replaced in one step: a killed run leaves the previous checkpoint whole.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from unet_fast.errors import InputError
from unet_fast.files import atomic_path, check_regular


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Write named tensors of any device and a JSON-able ``state``. Raises ``OSError`` where that is impossible."""
    # clones, because safetensors refuses tensors that share memory, and contiguous, because it stores no strides
    stored = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state)
    with atomic_path(path) as temporary:
        save_file(stored, str(temporary), metadata={"state": text, "checksum": _checksum(stored, text)})


def save_file(tensors: dict[str, torch.Tensor], filename: str, metadata: dict[str, str]) -> None:
    """As safetensors' own, which replaces the file by another one: a lock on it, as on all that is half written, would go."""
    with open(filename, "wb") as file:
        file.write(save(tensors, metadata))


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote.

    Raises ``InputError`` for a missing, cut or foreign file, and for one whose checksum does not fit what it holds. A file of
    a version that wrote none is read without.
    """
    if not path.exists():
        raise InputError(f"there is no file {path}")
    check_regular(path)
    return tensors_of(path.read_bytes(), path)  # safetensors itself opens no path that is not UTF-8


def tensors_of(data: bytes, path: object) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """:func:`load_tensors` of a file's bytes; ``path`` is only named in errors."""
    try:
        tensors = load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        text = metadata["state"]
        if set(metadata) != {"state"} and metadata.get("checksum") != _checksum(tensors, text):
            raise ValueError("its checksum differs")
        state = json.loads(text)
        if not isinstance(state, dict):
            raise ValueError("its state is not a record")
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} is damaged or was not written by unet_fast ({error}); train again, or copy it again from its source"
        ) from error
    return tensors, state


def _checksum(tensors: dict[str, torch.Tensor], text: str) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of contiguous CPU tensors, and of ``text``."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_finite(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Raise ``InputError`` that names a tensor with NaN or infinite values."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(f"{path} holds NaN or infinite values ({name}): its training diverged; train again")


@torch.no_grad()
def create_state(optimizer: torch.optim.Optimizer) -> None:
    """Give an Adam or SGD optimizer the state that it would create at its first step, which then is like all others."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if state:
                continue
            if "betas" in group:
                on_device = group["fused"] or group["capturable"]
                state["step"] = torch.zeros((), device=parameter.device if on_device else "cpu")
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            elif group["momentum"]:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state of an optimizer as named tensors, ``<number of the parameter>.<key>``."""
    return {
        f"{parameter}.{key}": value
        for parameter, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
        if isinstance(value, torch.Tensor)
    }


@torch.no_grad()
def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of :func:`flatten_optimizer`, in place; learning rate and other settings stay those of ``optimizer``.

    Raises:
        ValueError: a tensor is missing, is too many, or has another shape or dtype. Fused optimizers walk through memory
            without checking sizes.
    """
    create_state(optimizer)
    copy_checked(flatten_optimizer(optimizer), tensors)


def copy_checked(targets: dict[str, torch.Tensor], sources: dict[str, torch.Tensor]) -> None:
    """Copy tensors into those of the same names; ``ValueError`` unless names, shapes and dtypes are the same."""
    differing = sorted(targets.keys() ^ sources.keys())
    if differing:
        where = "missing" if differing[0] in targets else "unexpected"
        raise ValueError(f"{differing[0]} is {where}")
    for name, target in targets.items():
        source = sources[name]
        if source.shape != target.shape or source.dtype != target.dtype:
            raise ValueError(
                f"{name} is {tuple(source.shape)} {source.dtype}, expected {tuple(target.shape)} {target.dtype}"
            )
    for name, target in targets.items():
        target.copy_(sources[name])


def with_prefix(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under ``prefix.name``."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under_prefix(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those tensors whose name starts with ``prefix.``, without it."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}
