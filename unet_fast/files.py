"""Writing files so that a killed run, a full disk or a read-only folder never leaves half a file behind, and so that no
command of ours ever writes over a file that it has read.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from unet_fast.errors import InputError

try:
    import fcntl
except ImportError:  # Windows has no such locks; leftovers stay there
    fcntl = None  # type: ignore[assignment]

_MARK = ".unet-fast-"
_protected: set[tuple[int, int]] | None = None


def ensure_folder(path: str | os.PathLike[str]) -> Path:
    """Create ``path`` (and its parents) if needed and return it; one clear ``OSError`` when that is impossible."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"cannot create the folder {folder}: {error.strerror or error}; choose a folder that you may write to"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(f"cannot write into the folder {folder}; choose a folder that you may write to")
    return folder


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path`` in one step, on any error it is removed.

    A reader therefore sees the old file or the new one, never a part. A file that is replaced keeps its permissions, a
    new one follows the umask. What a killed process left behind for the same folder is removed. Raises ``OSError`` with
    one line that names the file and the cause (permission, no space left) when writing fails, and
    :class:`InputError` when ``path`` is a file that this command has read (see :func:`protecting_inputs`).
    """
    target, temporary = _prepare(path, _refuse_protected)
    try:
        try:
            mode: int | None = stat.S_IMODE(target.stat().st_mode)
        except FileNotFoundError:
            mode = None
        handle = _create_locked(temporary, 0o666 if mode is None else mode & 0o700 | 0o200)
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            if mode is not None:
                temporary.chmod(mode)
            os.replace(temporary, target)
        finally:
            os.close(handle)
    except OSError as error:
        raise _not_written(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """:func:`atomic_path` for a whole folder: yields a new one, which takes the place of ``path`` on success.

    Raises ``OSError`` and :class:`InputError` likewise, the latter also when something inside ``path`` has been read.
    """
    target, work = _prepare(path, refuse_replacing)
    try:
        handle = _create_locked_folder(work)
        try:
            yield work
            refuse_replacing(target)
            _put_in_place(work, target)
        finally:
            os.close(handle)
    except OSError as error:
        raise _not_written(target, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _prepare(path: str | os.PathLike[str], refuse: Callable[[Path], None]) -> tuple[Path, Path]:
    """``path`` and a temporary name beside it, in a folder that is there and holds nothing of a killed process."""
    target = Path(path)
    refuse(target)
    ensure_folder(target.parent)
    remove_leftovers(target.parent)
    return target, _temporary(target)


def _put_in_place(work: Path, target: Path) -> None:
    """Rename a folder; what it replaces goes only when it is there."""
    if not target.exists() and not target.is_symlink():
        work.rename(target)
        return
    old = target.parent / f".{target.name}.{secrets.token_hex(6)}.old"
    target.rename(old)
    try:
        work.rename(target)
    except OSError:
        old.rename(target)
        raise
    if old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old, ignore_errors=True)


def _temporary(target: Path) -> Path:
    """A new name beside ``target``; the suffix stays the same because writers choose the format by it."""
    return target.parent / f"{_MARK}{secrets.token_hex(6)}{target.suffix}"


def _not_written(target: Path, error: OSError) -> OSError:
    return OSError(
        f"cannot write {target}: {error.strerror or error}; check the permissions and free space of that folder"
    )


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove what :func:`atomic_path` and :func:`atomic_folder` left in ``folder`` whose process is gone."""
    if fcntl is None:
        return
    try:
        names = [name for name in os.listdir(folder) if name.startswith(_MARK)]
    except OSError:
        return
    for name in names:
        path = os.path.join(folder, name)
        inside = os.path.isdir(path)
        try:
            handle = os.open(path, (os.O_RDONLY if inside else os.O_RDWR) | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if inside:
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)
        except OSError:
            pass  # its writer lives, or it is not ours
        finally:
            os.close(handle)


def _create_locked_folder(path: Path) -> int:
    """:func:`_create_locked` for a folder."""
    while True:
        path.mkdir()
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue  # remove_leftovers was there between the creation and the opening
        if _locked(handle, path):
            return handle


def _create_locked(path: Path, mode: int) -> int:
    """Create a file that must not exist and lock it: as long as its handle is open, nobody takes it for a leftover."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        if _locked(handle, path):
            return handle


def _locked(handle: int, path: Path) -> bool:
    """Whether what was just created is ours; closed where remove_leftovers was there between the creation and the lock."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return True  # a file system without locks: leftovers stay there
    if path.exists():
        return True
    os.close(handle)
    return False


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def protecting_inputs() -> Iterator[None]:
    """Until the end of the block, :func:`atomic_path` refuses to replace what :func:`reading` was told of.

    Files are identified by device and inode, so that no other path, link or spelling of the name gets around it.
    """
    global _protected
    before, _protected = _protected, set()
    try:
        yield
    finally:
        _protected = before


def reading(path: Path) -> None:
    """Remember ``path`` as a file that is read, see :func:`protecting_inputs`."""
    if _protected is not None:
        identity = _identity(path)
        if identity is not None:
            _protected.add(identity)


def check_regular(path: Path) -> None:
    """Raise unless ``path`` is there and a regular file: a pipe or a device would be waited for, maybe for ever."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise FileNotFoundError(
                f"{path} is a link to {os.readlink(path)}, which does not exist; fetch the file (git annex get), or remove the link"
            ) from None
        raise FileNotFoundError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise OSError(f"cannot read {path}: {error.strerror or error}; check the path and its permissions") from error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"
        raise InputError(f"{path} is {what}, expected a regular file; save it to a file first")


def take_as_input(path: Path) -> None:
    """Make sure that ``path`` is a regular file (see :func:`check_regular`), and remember it as one that is read."""
    check_regular(path)
    reading(path)


def _refuse_protected(target: Path) -> None:
    if _protected and _identity(target) in _protected:
        raise InputError(f"{target} is one of the files that are read, and would be overwritten; choose another --out")


def refuse_read(outputs: Iterable[Path]) -> None:
    """Raise :class:`InputError` when one of ``outputs`` has been read by this command, before anything is computed for it."""
    for output in outputs:
        _refuse_protected(output)


def refuse_replacing(folder: Path) -> None:
    """Raise :class:`InputError` when ``folder``, or anything in it, has been read by this command (see :func:`protecting_inputs`)."""
    _refuse_protected(folder)
    if not _protected or not folder.is_dir():
        return
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if _identity(path) in _protected:
                raise InputError(f"{folder} holds {path}, which is read, and would be replaced; choose another --out")


def refuse_twins(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise :class:`InputError` when one of ``outputs`` would lie beside one of ``inputs`` with another suffix only.

    A folder of images with two of one name is no longer read.
    """
    known = {(_identity(Path(path).parent), Path(path).stem): path for path in inputs}
    for output in outputs:
        twin = known.get((_identity(output.parent), output.stem))
        if twin is not None:
            raise InputError(f"{output} would lie beside the image {twin}, of the same name; write to another folder")


def refuse_overwrite(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise :class:`InputError` when one of ``outputs`` is one of the files ``inputs``, by whatever path, or a folder that holds one."""
    known = {identity: path for path in inputs if (identity := _identity(Path(path))) is not None}
    folders = {parent: path for path in known.values() for parent in Path(path).resolve().parents}
    for folder, path in folders.items():
        if (identity := _identity(folder)) is not None:
            known.setdefault(identity, path)
    for output in outputs:
        identity = _identity(Path(output))
        if identity in known:
            verb = "holds" if Path(output).is_dir() and not Path(output).samefile(known[identity]) else "is"
            raise InputError(f"{output} {verb} {known[identity]}, which is read; write to another file or folder")
