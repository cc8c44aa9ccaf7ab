"""A checksum at the end of an ONNX file: most damage to weights gives a file that still runs, and computes something else.

A message of protobuf followed by another one is their sum. So a record of the file's metadata that holds the SHA-256 of all
bytes before it can be put behind a finished file; other programs see one more line of metadata, and whoever checks it needs
no parser. A program that rewrites the file moves or keeps that record, which then no longer fits.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from unet_fast.errors import InputError

NAME = "unet_fast_sha256"
_METADATA_PROPS = 14  # the field of onnx's ModelProto
_DIGITS = 2 * hashlib.sha256().digest_size


def _text(field: int, value: bytes) -> bytes:
    """A field of bytes in a message of protobuf, both shorter than 128."""
    return bytes([field << 3 | 2, len(value)]) + value


def _record(digest: str) -> bytes:
    return _text(_METADATA_PROPS, _text(1, NAME.encode()) + _text(2, digest.encode()))


_LENGTH = len(_record("0" * _DIGITS))


def sealed(model: bytes) -> bytes:
    """A serialized ONNX model with its checksum behind it."""
    return model + _record(hashlib.sha256(model).hexdigest())


def read_sealed(path: Path) -> bytes:
    """The bytes of a file that :func:`sealed` made. Raises ``InputError`` for any other file, and for one that was changed since."""
    data = path.read_bytes()
    if data[-_LENGTH:] == _record(hashlib.sha256(data[:-_LENGTH]).hexdigest()):
        return data
    if NAME.encode() in data:
        raise InputError(f"{path} is damaged, or was changed after its export: its checksum differs; export it again")
    raise InputError(
        f"{path} is not an ONNX file that unet-fast export wrote (it holds none of its checksums), and does not say which sizes "
        "its network takes; export the run again, or run the file by ONNX Runtime itself"
    )
