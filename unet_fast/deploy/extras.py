"""Libraries that are asked for by name: each belongs to an extra, and its absence is one line that says how to get it."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from unet_fast.errors import BackendError

# module -> the extra of pyproject.toml that brings it
EXTRAS = {
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "bioimageio.core": "bioimageio",
    "bioimageio.spec": "bioimageio",
    "zarr": "zarr",
    "dask.distributed": "dask",
}


def is_installed(module: str) -> bool:
    """Whether ``module`` could be imported; it is not loaded."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is missing
        return False


def load(module: str, what: str) -> Any:
    """Import ``module`` for ``what``, or raise ``BackendError`` with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BackendError(
            f"{what} needs {module.split('.')[0]}, which cannot be imported ({error}); "
            f"install it with: pip install 'unet_fast[{EXTRAS[module]}]'"
        ) from error
