"""What a user installs: a source distribution that builds, and a wheel that trains in an environment of its own.

The wheel is built from the unpacked source distribution, as pip does it, in a folder below build/ that is kept: the next
time only what has changed is compiled.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile

import unet_fast

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "build" / "packaging"
COMPILER = ROOT / "build" / "quick-c++"  # whether it compiles and works is asked here, not how fast it is
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
    "UNET_FAST_CUDA": "0",
    "CXX": str(COMPILER),
}


def run(*command: object, folder: Path) -> str:
    """The output of a command, which is part of the failure if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    """Build ``--sdist`` or ``--wheel`` of a source folder with what is installed; the file."""
    run(sys.executable, "-m", "build", kind, "--no-isolation", "--outdir", out, source, folder=source)
    (built,) = out.iterdir()
    return built


def unpack(archive: Path, target: Path) -> None:
    """Make ``target`` what the archive holds, without touching files that are the same already."""
    fresh = archive.parent / "unpacked"
    with tarfile.open(archive) as files:
        files.extractall(fresh, filter="data")
    (fresh,) = fresh.iterdir()
    for path in [
        path for path in target.rglob("*") if path.is_file() and "build" not in path.relative_to(target).parts
    ]:
        if not (fresh / path.relative_to(target)).exists():
            path.unlink()
    for path in (path for path in fresh.rglob("*") if path.is_file()):
        kept = target / path.relative_to(fresh)
        if not kept.exists() or kept.read_bytes() != path.read_bytes():
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, kept)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    return build("--sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    unpack(sdist, KEPT)
    COMPILER.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -O1\n')
    COMPILER.chmod(0o755)
    shutil.rmtree(KEPT / "build" / "lib", ignore_errors=True)
    for library in (KEPT / "build").glob("lib.*"):
        shutil.rmtree(library)  # setuptools would pack what is left of a module that is gone
    return build("--wheel", KEPT, tmp_path_factory.mktemp("wheel"))


def test_the_source_distribution_holds_what_a_build_needs(sdist):
    with tarfile.open(sdist) as archive:
        inside = {str(Path(*Path(member.name).parts[1:])) for member in archive.getmembers() if member.isfile()}
    needed = {
        str(path.relative_to(ROOT))
        for folder in ("csrc", "unet_fast")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".h", ".cuh", ".cpp", ".cu", ".py", ".pyi", ".typed", ".json")
    } - {"unet_fast/_build_info.json"}
    assert len([name for name in needed if name.endswith(".h")]) > 50
    assert needed <= inside
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= inside
    # nor what a build has left in the working tree, nor megabytes of pictures
    assert not [name for name in inside if name.endswith((".so", ".o", ".pyc", "_build_info.json", ".png"))]


def test_the_wheel_holds_the_package_alone(wheel):
    inside = zipfile.ZipFile(wheel).namelist()
    package = [name for name in inside if ".dist-info/" not in name]
    assert {Path(name).parts[0] for name in package} == {"unet_fast"}
    libraries = {Path(name).name.split(".")[0] for name in package if name.endswith(".so")}
    assert libraries == {"_numpy", "_torch_cpu"}
    assert {"unet_fast/py.typed", "unet_fast/__init__.pyi", "unet_fast/_build_info.json"} <= set(package)


def test_the_wheel_trains_in_an_environment_of_its_own(wheel, tmp_path):
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    (own,) = environment.glob("lib/python*/site-packages")
    # its requirements are those of this environment, which come after its own packages
    others = [path for path in sys.path if Path(path).name == "site-packages"]
    (own / "requirements.pth").write_text("\n".join(others) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "--no-index", "--no-deps", "--ignore-installed", wheel, folder=tmp_path)
    shown = run(python, "-c", "import unet_fast; print(unet_fast.__version__, unet_fast.__file__)", folder=tmp_path)
    assert shown.split() == [unet_fast.__version__, str(own / "unet_fast" / "__init__.py")]

    random = np.random.default_rng(5)
    tifffile.imwrite(tmp_path / "images.tif", random.integers(0, 255, (5, 96, 96), np.uint8))
    tifffile.imwrite(tmp_path / "labels.tif", 255 * random.integers(0, 2, (5, 96, 96), np.uint8))
    data = ["--images", "images.tif", "--labels", "labels.tif"]
    train = ["train", *data, "--out", "run", "--steps", "3", "--device", "cpu"]
    predict = ["predict", "run", "--images", "images.tif", "--out", "predicted.tif"]
    # the installed script, twice in one process, which loads torch once
    twice = (
        "import runpy, sys\n"
        f"for sys.argv[1:] in {(train, predict)!r}:\n"
        "    try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
    )
    script = environment / "bin" / "unet-fast"
    run(python, "-c", f"import sys; sys.argv = [{str(script)!r}]\n" + twice, folder=tmp_path)
    assert tifffile.imread(tmp_path / "predicted.tif").shape == (5, 96, 96)
    without_torch = "import sys, numpy, unet_fast.numpy as n; n.nearest_two(numpy.eye(9, dtype=int)); assert 'torch' not in sys.modules"
    run(python, "-c", without_torch, folder=tmp_path)
