"""What is done of a prediction, as small files beside the output: a killed run can continue, and several processes can share.

A part is written under a temporary name and renamed, so it is there whole or not at all; making one twice gives the
same bytes. A text of everything that decides them lies beside the parts; parts of another text are not used.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Protocol

from unet_fast.errors import InputError
from unet_fast.files import ensure_folder

_PLAN = "plan.json"


class Store(Protocol):
    """Parts by number, each a list of byte strings."""

    def has(self, number: int) -> bool: ...

    def put(self, number: int, blobs: list[bytes]) -> None: ...

    def get(self, number: int, index: int) -> bytes: ...

    def discard(self) -> None: ...


class MemoryStore:
    """Parts of an image so small that it is predicted in one go."""

    def __init__(self) -> None:
        self._parts: dict[int, list[bytes]] = {}

    def has(self, number: int) -> bool:
        """Whether part ``number`` is done."""
        return number in self._parts

    def put(self, number: int, blobs: list[bytes]) -> None:
        """Keep part ``number``."""
        self._parts[number] = blobs

    def get(self, number: int, index: int) -> bytes:
        """Byte string ``index`` of part ``number``."""
        return self._parts[number][index]

    def discard(self) -> None:
        """Forget all."""
        self._parts.clear()


class FolderStore:
    """Parts in a hidden folder beside ``out``.

    Args:
        out: the output that the parts are for.
        plan: text of everything that decides the parts. Parts of another plan are removed.
        joins: another process has begun; a folder of another plan is then an error.

    Raises:
        InputError: ``joins``, and there is no folder of this plan.
    """

    def __init__(self, out: Path, plan: str, *, joins: bool = False) -> None:
        self.folder = out.parent / f".{out.name}.parts"
        self._index: dict[int, list[int]] = {}
        known = self.folder / _PLAN
        if known.is_file() and known.read_text() == plan:
            return
        if joins:
            raise InputError(
                f"{self.folder} was not begun with the same image, weights and options; every worker needs the same "
                "files and the same version of unet_fast"
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        ensure_folder(self.folder)
        self._write(known, plan.encode())

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.part"

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OSError(
                f"cannot write {path}: {error.strerror or error}; check the permissions and free space of that folder"
            ) from error

    def has(self, number: int) -> bool:
        """Whether part ``number`` is done and whole (a machine that lost power may leave a shorter file)."""
        try:
            with self._path(number).open("rb") as file:
                head = file.readline()
                lengths = json.loads(head)
                return os.fstat(file.fileno()).st_size == len(head) + sum(lengths)
        except (OSError, ValueError, TypeError):
            return False

    def put(self, number: int, blobs: list[bytes]) -> None:
        """Write part ``number``."""
        head = json.dumps([len(blob) for blob in blobs]).encode() + b"\n"
        self._write(self._path(number), head + b"".join(blobs))

    def get(self, number: int, index: int) -> bytes:
        """Byte string ``index`` of part ``number``."""
        with self._path(number).open("rb") as file:
            if number not in self._index:
                head = file.readline()
                starts = [len(head)]
                for length in json.loads(head):
                    starts.append(starts[-1] + length)
                self._index[number] = starts
            starts = self._index[number]
            file.seek(starts[index])
            return file.read(starts[index + 1] - starts[index])

    def discard(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
