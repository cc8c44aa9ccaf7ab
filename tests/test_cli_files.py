"""The command line among real files: nothing that is read is written over, odd names, closed or simple terminals, memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests import processes
from tests.test_cli import run as told
from unet_fast import data, files
from unet_fast.errors import InputError

NOT_UTF8 = os.fsdecode(b"5\xb5m")


def tool(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """The command line in a process of its own, with bytes of any kind in its arguments."""
    return processes.run("-m", "unet_fast", *arguments, env={"COLUMNS": "200", **(env or {})})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, labels, and a run that was trained on them for two steps."""
    root = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(5)
    labels = np.zeros((4, 64, 64), np.uint8)
    labels[:, 10:40, 12:50] = 255
    tifffile.imwrite(root / "i.tif", rng.integers(0, 255, labels.shape, dtype=np.uint8), photometric="minisblack")
    tifffile.imwrite(root / "l.tif", labels, photometric="minisblack")
    train(root, root / "run")
    return root


def train(root: Path, out: Path) -> str:
    return told("train", "--images", root / "i.tif", "--labels", root / "l.tif", "--out", out, "--val", "0", "--steps", "2",
                "--base-channels", "2", "--depth", "2", "--tile", "32", "--device", "cpu")  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize("target", ["{d}/a.tif", "{d}", "{d}/../d/a.tif", "{link}", "{linked}/a.tif", "{linked}"])
def test_predict_never_writes_over_its_images(trained: Path, tmp_path: Path, target: str) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for name in ("a", "b"):
        tifffile.imwrite(folder / f"{name}.tif", np.zeros((40, 40), np.uint8), photometric="minisblack")
    (tmp_path / "link.tif").symlink_to(folder / "b.tif")
    (tmp_path / "linked").symlink_to(folder)
    before = digests(tmp_path)
    out = target.format(d=folder, link=tmp_path / "link.tif", linked=tmp_path / "linked")
    said = told("predict", trained / "run", "--images", folder, "--out", out, "--device", "cpu", fails=True)
    assert "which is read; write to another file or folder" in said
    assert digests(tmp_path) == before


@pytest.mark.parametrize("which", ["labels", "prediction", "images", "mask"])
def test_evaluate_never_draws_over_what_it_reads(tmp_path: Path, which: str) -> None:
    """The picture is a PNG beside the scores."""
    rng = np.random.default_rng(1)
    paths = {name: tmp_path / f"{name}.png" for name in ("labels", "prediction", "images", "mask")}
    for name, path in paths.items():
        pixels = rng.integers(0, 255, (20, 24)) if name == "images" else np.where(rng.random((20, 24)) < 0.5, 255, 0)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    before = digests(tmp_path)
    arguments = [item for name in ("labels", "prediction", "images", "mask") for item in (f"--{name}", paths[name])]
    said = told("evaluate", *arguments, "--out", tmp_path / f"{which}.json", fails=True)
    assert "which is read" in said and digests(tmp_path) == before


def test_preview_and_train_never_write_over_images(trained: Path, tmp_path: Path) -> None:
    """Their pictures have names that images may have."""
    for name in ("i", "l"):
        (tmp_path / name).mkdir()
        for page in range(3):
            picture = "preview" if page == 0 else f"x{page}"
            Image.fromarray(tifffile.imread(trained / f"{name}.tif", key=page)).save(tmp_path / name / f"{picture}.png")
    before = digests(tmp_path)
    said = told("preview", "--images", tmp_path / "i", "--labels", tmp_path / "l", "--tile", "32", "--out",
                tmp_path / "i" / "preview.png", fails=True)  # fmt: skip
    assert "one of the files that are read" in said and digests(tmp_path) == before
    said = told("train", "--images", tmp_path / "i", "--labels", tmp_path / "l", "--out", tmp_path / "i", "--steps", "1",
                "--base-channels", "2", "--depth", "2", "--tile", "32", "--device", "cpu", fails=True)  # fmt: skip
    after = digests(tmp_path)
    assert {key: after[key] for key in before} == before, "an image was written over"


def test_no_zarr_that_is_read_is_replaced(trained: Path, tmp_path: Path) -> None:
    """Neither the folder itself, nor one that holds it, by its own name or a link's."""
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    group.create_array("0", data=np.full((40, 48), 7, np.uint8), chunks=(16, 16))
    os.symlink(tmp_path / "a.zarr", tmp_path / "link.zarr")
    before = digests(tmp_path)
    for images, out in (("a.zarr/0", "a.zarr"), ("link.zarr/0", "a.zarr"), ("a.zarr/0", "link.zarr")):
        said = told(
            "predict",
            trained / "run",
            "--images",
            tmp_path / images,
            "--out",
            tmp_path / out,
            "--device",
            "cpu",
            fails=True,
        )
        assert "which is read" in said, said
        assert digests(tmp_path) == before
    with files.protecting_inputs():
        data.Pages([tmp_path / "a.zarr" / "0"])
        with pytest.raises(InputError, match="a.zarr holds .*0, which is read"):
            files.refuse_replacing(tmp_path / "a.zarr")
        files.refuse_replacing(tmp_path / "other.zarr")


def test_names_of_any_bytes(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / NOT_UTF8
    folder.mkdir()
    for name in ("i.tif", "l.tif"):
        (folder / name).write_bytes((trained / name).read_bytes())
    assert "wrote" in train(folder, folder / "run")
    images = folder / "images"
    images.mkdir()
    names = [f"a{NOT_UTF8}", "b {x}$ %d [0]", "c d", "c_d"]
    for name in names:
        tifffile.imwrite(images / f"{name}.tif", np.zeros((40, 40), np.uint8), photometric="minisblack")
    done = tool(
        "predict", folder / "run", "--images", images, "--out", folder / "p.d", "--output", "labels", "--device", "cpu"
    )
    assert done.returncode == 0, done.stderr
    assert len(os.listdir(folder / "p.d")) == 4 and "c d.tif" in os.listdir(folder / "p.d")
    for file in images.iterdir():
        tifffile.imwrite(file, np.eye(40, dtype=np.uint8) * 255, photometric="minisblack")
    for env in ({}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"}):
        done = tool("evaluate", "--prediction", images, "--labels", images, "--out", folder / "m.json", env=env)
        assert done.returncode == 0, (env, done.stderr)
    assert (folder / "m.json").exists() and (folder / "m.png").exists()


@contextlib.contextmanager
def reader_that_leaves(after: int) -> Iterator[int]:
    """What writes into a pipe whose reader closes it after so many bytes, as in ``| head -c 1``."""
    reads, writes = os.pipe()

    def read() -> None:
        if after:
            os.read(reads, after)
        os.close(reads)

    thread = threading.Thread(target=read)
    thread.start()
    if not after:
        thread.join()
    try:
        yield writes
    finally:
        os.close(writes)
        thread.join()


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "| head -c 1"])
def test_closed_streams_end_nothing(trained: Path, tmp_path: Path, closed: str) -> None:
    command = ("-m", "unet_fast", "predict", trained / "run", "--images", trained / "i.tif", "--out", tmp_path / "p.tif",
               "--device", "cpu")  # fmt: skip
    with open(tmp_path / "log", "wb") as log, reader_that_leaves(1) as pipe:
        streams = {
            "2>&-": (log.fileno(), processes.CLOSED),
            ">&- 2>&-": (processes.CLOSED, processes.CLOSED),
            "| head -c 1": (pipe, log.fileno()),
        }
        processes.start(*command, streams=streams[closed]).wait()
    assert data.read_images(tmp_path / "p.tif").shape == (4, 1, 64, 64)


@pytest.mark.parametrize("gone", ["2> >(true) | true", "> /dev/full 2>&1"])
def test_streams_that_fail_on_the_way_do_not_end_a_training(trained: Path, tmp_path: Path, gone: str) -> None:
    """Readers that went away, and a full disk behind ``> log``: the run is trained to its end, and the exit code is 0."""
    command = ("-m", "unet_fast", "train", "--images", trained / "i.tif", "--labels", trained / "l.tif", "--out",
               tmp_path / "run", "--steps", "2", "--base-channels", "2", "--depth", "1", "--tile", "32", "--device", "cpu")  # fmt: skip
    with open("/dev/full", "wb") as full, reader_that_leaves(0) as out, reader_that_leaves(0) as errors:
        streams = (full.fileno(), full.fileno()) if "full" in gone else (out, errors)
        assert processes.start(*command, streams=streams).wait() == 0
    assert (tmp_path / "run" / "metrics.csv").read_text().splitlines()[-1].startswith("2,")


def test_a_pipe_is_no_image_and_no_network(trained: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f.tif")
    said = told("predict", trained / "run", "--images", tmp_path / "f.tif", "--out", tmp_path / "p.tif", fails=True)
    assert "is a pipe, expected a regular file" in said
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_bytes((trained / "run" / "config.json").read_bytes())
    os.mkfifo(tmp_path / "run" / "model.safetensors")
    said = told("predict", tmp_path / "run", "--images", trained / "i.tif", "--out", tmp_path / "p.tif", fails=True)
    assert "model.safetensors is a pipe" in said


@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_a_folder_may_have_a_dot_but_no_other_format(trained: Path, tmp_path: Path, suffix: str) -> None:
    said = told("predict", trained / "run", "--images", trained / "i.tif", "--out", tmp_path / f"p{suffix}", fails=True)
    assert "predictions are written as TIFF" in said
    told(
        "predict",
        trained / "run",
        "--images",
        trained / "i.tif",
        "--slices",
        "1",
        "--out",
        tmp_path / "run.v2",
        "--device",
        "cpu",
    )
    assert os.listdir(tmp_path / "run.v2") == ["i_1.tif"]


PEAK = """
import resource, sys
from unet_fast.cli import app
try:
    app()
except SystemExit as end:
    assert not end.code, end.code
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


def test_memory_does_not_grow_with_the_stack(trained: Path, tmp_path: Path) -> None:
    """One page of many: what the others would take is not taken."""
    peaks = []
    for pages in (4, 800):
        path = tmp_path / "s.tif"
        with tifffile.TiffWriter(path) as writer:
            for _ in range(pages):
                writer.write(np.zeros((512, 512), np.uint8), contiguous=True, photometric="minisblack")
        command = [
            "predict",
            trained / "run",
            "--images",
            path,
            "--slices",
            "3",
            "--tta",
            "1",
            "--device",
            "cpu",
            "--out",
            tmp_path / "p.tif",
        ]
        done = processes.run("-c", PEAK, *command)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.rsplit(b"PEAK", 1)[1]))
    # as bytes the pages take 199 MB, as float32 796
    assert peaks[1] < peaks[0] + 60
