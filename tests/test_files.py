"""Writing: whole or not at all, with the right permissions, never onto what is read, and nothing left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile

from unet_fast.data import read_images, write_stack
from unet_fast.errors import InputError
from unet_fast.files import (
    atomic_folder,
    atomic_path,
    protecting_inputs,
    reading,
    refuse_overwrite,
    refuse_read,
    refuse_twins,
    remove_leftovers,
)

pytestmark = pytest.mark.core


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o000])
def test_new_files_follow_the_umask_which_is_never_touched(
    tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda mask: pytest.fail("the umask of the whole process was changed"))
            with atomic_path(tmp_path / "a.txt") as temporary:
                assert mode(temporary) & ~umask == mode(temporary)
                temporary.write_text("x")
    finally:
        os.umask(before)
    assert mode(tmp_path / "a.txt") == 0o666 & ~umask


@pytest.mark.parametrize("bits", [0o600, 0o640, 0o664, 0o400])
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "a.txt"
    path.write_text("secret")
    path.chmod(bits)
    with atomic_path(path) as temporary:
        assert mode(temporary) & 0o077 & ~bits == 0, "readable by others while it is written"
        temporary.write_text("new")
    assert mode(path) == bits and path.read_text() == "new"


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="cannot write .*a.txt: No space left on device; check"):
        with atomic_path(path) as temporary:
            temporary.write_text("half of")
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half of")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_names_as_long_as_the_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".tif")
    write_stack(path, np.zeros((4, 4), np.uint8))
    assert read_images(path).shape == (1, 1, 4, 4)


KILLED = """
import os, signal, sys
from unet_fast.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half of")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftovers_of_a_killed_writer_go_with_the_next_one(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "a.txt"], check=False)
    assert done.returncode < 0 and len(os.listdir(tmp_path)) == 1
    # those of writers that live are theirs, also in another thread
    ready, go_on = threading.Event(), threading.Event()

    def write() -> None:
        with atomic_path(tmp_path / "slow.txt") as temporary:
            temporary.write_text("slow")
            ready.set()
            go_on.wait(30)

    thread = threading.Thread(target=write)
    thread.start()
    ready.wait(30)
    with atomic_path(tmp_path / "b.txt") as temporary:
        temporary.write_text("x")
    (tmp_path / ".unet-fast-0.png").touch()  # of a writer that was killed before its first byte
    remove_leftovers(tmp_path)
    go_on.set()
    thread.join()
    assert sorted(os.listdir(tmp_path)) == ["b.txt", "slow.txt"]
    assert (tmp_path / "slow.txt").read_text() == "slow"


def test_a_file_that_is_swept_up_before_it_is_locked_is_made_again(tmp_path: Path, monkeypatch) -> None:
    flock, swept = fcntl.flock, []

    def late(handle: int, how: int) -> None:
        if not swept:
            swept.extend(tmp_path.iterdir())
            swept[0].unlink()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert len(swept) == 1 and (tmp_path / "a.txt").read_text() == "x"


@pytest.mark.parametrize("way", ["same", "dots", "link", "hard link", "linked folder"])
def test_what_is_read_is_not_written_over(tmp_path: Path, way: str) -> None:
    (tmp_path / "d").mkdir()
    source = tmp_path / "d" / "a.tif"
    tifffile.imwrite(source, np.ones((4, 5), np.uint8))
    target = source
    if way == "dots":
        target = tmp_path / "d" / ".." / "d" / "a.tif"
    elif way == "link":
        target = tmp_path / "b.tif"
        target.symlink_to(source)
    elif way == "hard link":
        target = tmp_path / "b.tif"
        target.hardlink_to(source)
    elif way == "linked folder":
        (tmp_path / "e").symlink_to(tmp_path / "d")
        target = tmp_path / "e" / "a.tif"
    before = source.read_bytes()
    with protecting_inputs():
        read_images(source)
        with pytest.raises(InputError, match="is one of the files that are read"):
            write_stack(target, np.zeros((4, 5), np.uint8))
    with pytest.raises(InputError, match="which is read; write to another"):
        refuse_overwrite([tmp_path / "free.tif", target], [source])
    assert source.read_bytes() == before
    write_stack(target, np.zeros((4, 5), np.uint8))  # a program of one's own may
    refuse_overwrite([tmp_path / "free.tif"], [source])


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.zarr"
    for text in ("old", "new"):
        with atomic_folder(target) as work:
            (work / "x").write_text(text)
            assert not target.exists() or (target / "x").read_text() == "old"
    assert (target / "x").read_text() == "new" and os.listdir(tmp_path) == ["a.zarr"]
    with pytest.raises(ValueError), atomic_folder(target) as work:
        (work / "x").write_text("half")
        raise ValueError
    # the last rename fails: what was there comes back
    rename = Path.rename

    def fails(path: Path, other: Path) -> Path:
        if path.name.startswith(".unet-fast-"):
            raise OSError(errno.EIO, "input/output error")
        return rename(path, other)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="cannot write .*a.zarr: input/output error"), atomic_folder(target) as work:
        (work / "x").write_text("lost")
    monkeypatch.undo()
    assert (target / "x").read_text() == "new" and os.listdir(tmp_path) == ["a.zarr"]
    # a link is replaced, not what it leads to; a folder with something that is read stays
    (tmp_path / "link.zarr").symlink_to(target)
    with atomic_folder(tmp_path / "link.zarr") as work:
        (work / "x").write_text("other")
    assert not (tmp_path / "link.zarr").is_symlink() and (target / "x").read_text() == "new"
    with protecting_inputs():
        reading(target / "x")
        with pytest.raises(InputError, match="which is read, and would be replaced"), atomic_folder(target):
            pass


def test_leftover_folders_go_with_the_next_writer(tmp_path: Path) -> None:
    code = KILLED.replace("atomic_path", "atomic_folder").replace("temporary.", "(temporary / 'x').")
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.zarr"], check=False)
    assert done.returncode < 0 and len(os.listdir(tmp_path)) == 1
    with atomic_folder(tmp_path / "slow.zarr") as work:
        remove_leftovers(tmp_path)
        assert os.listdir(tmp_path) == [work.name]
    assert os.listdir(tmp_path) == ["slow.zarr"]


def test_no_second_image_of_one_name_comes_beside_those_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "images")
    inputs = [tmp_path / "images" / "a.png"]
    with pytest.raises(InputError, match="a.tif would lie beside the image .*a.png, of the same name"):
        refuse_twins([tmp_path / "link" / "a.tif"], inputs)
    refuse_twins([tmp_path / "a.tif", tmp_path / "images" / "b.tif"], inputs)


def test_outputs_are_asked_for_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with protecting_inputs():
        reading(tmp_path / "a")
        refuse_read([tmp_path / "b"])
        with pytest.raises(InputError, match="one of the files that are read"):
            refuse_read([tmp_path / "b", tmp_path / "a"])
