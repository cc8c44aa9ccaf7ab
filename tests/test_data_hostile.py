"""Files that ask for too much, reach outside, contradict themselves or are no files: refused in one line, never read in part."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.test_data import draw, one_line
from unet_fast.data import Pages, read_images, read_labels
from unet_fast.data.stacks import list_images
from unet_fast.errors import InputError
from unet_fast.notes import Note

OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{own}">'
    '<Image ID="Image:0"><Pixels ID="P:0" DimensionOrder="XYZCT" SizeC="1" SizeT="{n}" SizeX="9" SizeY="8" SizeZ="1" '
    'Type="uint8"><Channel ID="C:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>'
)
PLANE = '<TiffData FirstT="{t}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{uuid}</UUID></TiffData>'


@pytest.mark.parametrize("shape", [(11, 9), (11, 9, 3)])
def test_every_flipped_bit_of_a_png_is_found(rng: np.random.Generator, tmp_path: Path, shape: tuple[int, ...]) -> None:
    Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << int(rng.integers(8))
        (tmp_path / "b.png").write_bytes(changed)
        with pytest.raises(InputError, match=r"b\.png is") as error:
            read_images(tmp_path / "b.png")
        one_line(error)


def test_frames_of_an_animation_are_not_dropped(rng: np.random.Generator, tmp_path: Path) -> None:
    frames = [Image.fromarray(rng.integers(0, 255, (7, 6), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match=r"a\.png is an animated PNG of 3 frames.*TIFF stack"):
        read_images(tmp_path / "a.png")


@pytest.mark.parametrize("make", ["fifo", "folder link", "device"])
def test_what_is_no_regular_file(tmp_path: Path, make: str) -> None:
    """A pipe would be waited for without end."""
    path = tmp_path / "a.tif"
    if make == "fifo":
        os.mkfifo(path)
    elif make == "device":
        path = Path("/dev/zero")
    else:
        (tmp_path / "folder").mkdir()
        path.symlink_to(tmp_path / "folder")
        with pytest.raises(InputError, match="holds no TIFF or PNG"):
            read_images(path)
        return
    for read in (read_images, read_labels):
        with pytest.raises(InputError, match="expected a regular file"):
            read(path)
    if make == "fifo":
        with pytest.raises(InputError, match="a pipe, expected a regular file"):
            list_images(tmp_path)


@pytest.mark.parametrize("offset", [2**64 - 1, 2**63, 2**62, 2**40, 57])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_directory_beyond_the_file(tmp_path: Path, offset: int, order: str) -> None:
    head = struct.pack(order + "2sHHHQ", b"II" if order == "<" else b"MM", 43, 8, 0, offset)
    (tmp_path / "a.tif").write_bytes(head + bytes(40))
    with pytest.raises(InputError, match=r"a\.tif is truncated: the directory of page 0"):
        read_images(tmp_path / "a.tif")


def entry(data: bytearray, tag: int) -> int:
    """Where the entry of ``tag`` in the first directory of a classic little-endian TIFF begins."""
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    return next(
        at for at in range(start + 2, start + 2 + 12 * count, 12) if struct.unpack_from("<H", data, at)[0] == tag
    )


@pytest.mark.parametrize(("options", "tag"), [({"rowsperstrip": 4}, 273), ({"tile": (16, 16)}, 324)])
@pytest.mark.parametrize("how", ["fewer", "zero offset", "zero bytes", "beyond"])
def test_missing_strips_and_tiles_are_not_zeros(
    rng: np.random.Generator, tmp_path: Path, options: dict[str, Any], tag: int, how: str
) -> None:
    stack = draw(rng, (40, 33), "uint8")
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", compression="zlib", **options)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    offsets, counts = entry(data, tag), entry(data, {273: 279, 324: 325}[tag])
    number, values = struct.unpack_from("<II", data, offsets + 4)
    kind, _, lengths = struct.unpack_from("<HII", data, counts + 2)
    if how == "fewer":
        for at in (offsets, counts):
            struct.pack_into("<I", data, at + 4, number - 1)
    elif how == "zero bytes":
        struct.pack_into("<H" if kind == 3 else "<I", data, lengths + (2 if kind == 3 else 4) * (number - 1), 0)
    else:
        struct.pack_into("<I", data, values + 4 * (number - 2), 0 if how == "zero offset" else 2**32 - 5)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.tif is truncated: page 0 (lacks pixel data|ends at byte)"):
        read_images(tmp_path / "a.tif")


def test_directories_that_lie_over_each_other(tmp_path: Path) -> None:
    """Many directories of many entries in few bytes would take hours."""
    entries = 2000
    body = bytearray(struct.pack("<2sHI", b"II", 42, 8))
    # every directory begins 2 bytes after the one before, and all share their entries
    body += struct.pack("<H", entries) * entries
    body += bytes(12 * entries)
    (tmp_path / "a.tif").write_bytes(body)
    with pytest.raises(InputError):
        read_images(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["../secret/s.tif", "{folder}/secret/s.tif", "other.ome.tif"])
def test_an_ome_file_is_read_alone(tmp_path: Path, name: str) -> None:
    """Neither the files of its set nor any other become part of it."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "in").mkdir()
    for path in (tmp_path / "secret" / "s.tif", tmp_path / "in" / "other.ome.tif"):
        tifffile.imwrite(path, np.full((8, 9), 99, np.uint8), photometric="minisblack", metadata=None)
    planes = PLANE.format(t=0, name="o.ome.tif", uuid="own") + PLANE.format(
        t=1, name=name.format(folder=tmp_path), uuid="b"
    )
    own = tmp_path / "in" / "o.ome.tif"
    description = OME.format(own="own", n=2, planes=planes)
    tifffile.imwrite(own, np.ones((8, 9), np.uint8), photometric="minisblack", metadata=None, description=description)
    with pytest.warns(Note, match="one file of an OME-TIFF set; its own 1 pages"):
        read = read_images(own)
    assert read.shape == (1, 1, 8, 9) and (read == 1).all()


def test_a_set_of_ome_files_is_one_file_one_image(tmp_path: Path) -> None:
    names = [f"t{t}.ome.tif" for t in range(4)]
    planes = "".join(PLANE.format(t=t, name=name, uuid=f"u{t}") for t, name in enumerate(names))
    for t, name in enumerate(names):
        tifffile.imwrite(tmp_path / name, np.full((8, 9), t, np.uint8), photometric="minisblack", metadata=None,
                         description=OME.format(own=f"u{t}", n=4, planes=planes))  # fmt: skip
    read = read_images(tmp_path)
    assert read.shape == (4, 1, 8, 9)
    np.testing.assert_array_equal(read[:, 0, 0, 0], range(4))


def test_a_header_of_a_longer_recording(rng: np.random.Generator, tmp_path: Path) -> None:
    stack = draw(rng, (4, 8, 9), "uint16")
    with tifffile.TiffWriter(tmp_path / "part.tif") as writer:
        for index, page in enumerate(stack):
            text = "ImageJ=1.54f\nimages=900\nslices=900\n" if index == 0 else None
            writer.write(page, description=text, metadata=None, contiguous=False)
    with pytest.warns(Note, match="announces 900 images, the file holds 4 whole pages"):
        np.testing.assert_array_equal(read_images(tmp_path / "part.tif")[:, 0], stack)


@pytest.mark.parametrize("kind", ["png", "tiff", "pages"])
def test_a_small_file_that_decodes_to_much(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is stated, and can be raised."""
    path = tmp_path / ("a.png" if kind == "png" else "a.tif")
    if kind == "png":
        rows = zlib.compress(bytes(1001 * 1000), 9)
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", 1000, 1000, 8, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
        body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    else:
        shape = (1000, 1000) if kind == "tiff" else (4, 500, 500)
        tifffile.imwrite(path, np.zeros(shape, np.uint8), compression="zlib", photometric="minisblack")
    assert read_images(path).size in (1000 * 1000, 4 * 500 * 500)
    monkeypatch.setenv("UNET_FAST_MAX_DECODED_GB", "0.0001")
    with pytest.raises(InputError, match=r"more than the limit of .* set UNET_FAST_MAX_DECODED_GB=1 and"):
        read_images(path)
    if kind == "pages":  # one of them is below the limit
        assert Pages([path])[3].shape == (1, 500, 500)
    monkeypatch.setenv("UNET_FAST_MAX_DECODED_GB", "much")
    with pytest.raises(InputError, match="UNET_FAST_MAX_DECODED_GB is 'much', expected a positive number"):
        read_images(path)


def test_a_page_that_announces_more_than_any_machine_has(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint8), compression="zlib", photometric="minisblack")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    for tag in (256, 257, 278):
        at = entry(data, tag)
        struct.pack_into("<HII", data, at + 2, 4, 1, 2**31)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(InputError, match="UNET_FAST_MAX_DECODED_GB=4294967296"):
        read_images(tmp_path / "a.tif")


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("../annex/b.png")
    with pytest.raises(FileNotFoundError, match=r"b\.png is a link to \.\./annex/b\.png, which does not exist"):
        read_images(tmp_path)


def test_two_images_of_one_name(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "a.tif"):
        Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / name)
    with pytest.raises(
        InputError, match=r"holds a\.(png|tif) and a\.(tif|png), two images with the same name; keep one"
    ):
        read_images(tmp_path)


def test_hidden_files_and_folders_are_no_images(rng: np.random.Generator, tmp_path: Path) -> None:
    pixels = rng.integers(0, 255, (4, 5), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for name in ("._a.png", ".a.tif", "._b.tif"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "c.tif").mkdir()
    np.testing.assert_array_equal(read_images(tmp_path), pixels[None, None])
