"""Encoder weights from local files. Nothing is downloaded, and no file can run code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from unet_fast.errors import InputError, InputTypeError
from unet_fast.files import take_as_input

_CLASSIFIER = "fc."
_STEM = "conv1.weight"
_SAFETENSORS, _TORCH = (".safetensors",), (".pth", ".pt")


def load_encoder(encoder: nn.Module, path: str | os.PathLike[str], where: str) -> None:
    """Load a torchvision ``state_dict`` into ``encoder``; its classifier (``fc``) is left out.

    The first convolution adapts to another number of channels than 3: each of C channels gets the sum of the three
    colours' weights divided by C, so that C equal channels give what a grey image stored as RGB would give (one
    channel: the sum).

    Args:
        encoder: a :class:`~unet_fast.models.resnet.ResNetEncoder`.
        path: a .safetensors file, or a .pth / .pt file, which is read without running any code in it.
        where: address of a suitable file, for the messages.

    Raises:
        InputError: no such file, not readable as weights, or not the weights of this encoder. ``InputTypeError`` for
            something that is not a path.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputTypeError(f"weights is {path!r}, expected the path of a local file; {_advice(where)}")
    file = Path(path)
    if not file.exists():
        raise InputError(f"weights file {file} does not exist; {_advice(where)}")
    take_as_input(file)
    state = {name: value for name, value in _read(file).items() if not name.startswith(_CLASSIFIER)}
    own = encoder.state_dict()
    if _STEM in state and state[_STEM].dim() == 4 and state[_STEM].shape[1] == 3:
        state[_STEM] = _adapted(state[_STEM], own[_STEM].shape[1])
    # files of before 2018 lack the counters of batches, which only a cumulative average would need
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in own]
    other = [name for name in own if name in state and state[name].shape != own[name].shape]
    for problem, names in (("lacks", missing), ("has unknown", unknown)):
        if names:
            raise InputError(
                f"{file} {problem} {names[0]!r} (and {len(names) - 1} more names), so it does not belong to this encoder; "
                f"{_advice(where)}"
            )
    if other:
        raise InputError(
            f"{file} has {other[0]!r} of shape {tuple(state[other[0]].shape)}, this encoder needs "
            f"{tuple(own[other[0]].shape)} (torchvision's networks have base_channels=64); {_advice(where)}"
        )
    encoder.load_state_dict(own | state)


def _read(file: Path) -> dict[str, Tensor]:
    """The named tensors of a file."""
    if file.suffix not in (*_SAFETENSORS, *_TORCH):
        raise InputError(f"weights file {file} ends in {file.suffix!r}, expected .safetensors, .pth or .pt")
    try:
        if file.suffix in _SAFETENSORS:
            from safetensors import SafetensorError
            from safetensors.torch import load_file

            try:
                return load_file(file)
            except SafetensorError as error:
                raise ValueError(error) from error
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file} cannot be read as weights: it is damaged, or holds more than tensors, which is refused because such "
            "a file can run code; save model.state_dict() of torchvision's network to a .safetensors or .pth file"
        ) from error
    except (RuntimeError, ValueError, KeyError, EOFError) as error:
        raise InputError(
            f"{file} cannot be read as weights; is it complete, and of the format its name says?"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{file} holds no plain state_dict; save model.state_dict() of torchvision's network to it")
    return dict(state)


def _adapted(weight: Tensor, channels: int) -> Tensor:
    """(O, 3, k, k) -> (O, channels, k, k) with the same sum over equal channels."""
    if channels == weight.shape[1]:
        return weight
    return (weight.sum(1, keepdim=True) / channels).repeat(1, channels, 1, 1)


def _advice(where: str) -> str:
    """Where the weights come from."""
    return f"nothing is downloaded here: fetch {where} once and give its path as weights (--weights)"
