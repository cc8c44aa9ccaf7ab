"""Writing files so that a killed run, a full disk or a read-only folder never leaves half a file behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def ensure_folder(path: str | os.PathLike[str]) -> Path:
    """Create ``path`` (and its parents) if needed and return it; one clear ``OSError`` when that is impossible."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"cannot create the folder {folder}: {error.strerror or error}; choose a folder that you may write to"
        ) from error
    return folder


def remove_temporaries(path: str | os.PathLike[str]) -> None:
    """Remove what killed runs left of :func:`atomic_path` beside ``path``; nobody may be writing that file now."""
    target = Path(path)
    for left in target.parent.glob(f"{_prefix(target)}*{target.suffix}"):
        if len(left.name) == len(_prefix(target)) + _RANDOM + len(target.suffix) and left.is_file():
            left.unlink(missing_ok=True)


_RANDOM = 8  # characters that tempfile draws


def _prefix(target: Path) -> str:
    return f".{target.stem}-"


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path`` in one step, on any error it is removed.

    A reader therefore sees the old file or the new one, never a part. Raises ``OSError`` with one line that names the
    file and the cause (permission, no space left) when writing fails.
    """
    target = Path(path)
    ensure_folder(target.parent)
    temporary: Path | None = None
    try:
        # the suffix stays the same because writers choose the format by it
        handle, name = tempfile.mkstemp(prefix=_prefix(target), suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; outputs follow the user's umask
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise OSError(
            f"cannot write {target}: {error.strerror or error}; check the permissions and free space of that folder"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
