"""Shared fixtures: fresh seeded draws, the real images where they are at hand, and fresh memory filled with NaN, so that nothing passes because it happened to be zero."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import places
from tests.devices import DEVICES, PLACES

# unet_fast is imported by functions only: before that, pytest_configure gets the place ready

# One thread a process, child processes included: test processes run side by side, and OpenMP threads that outnumber the
# cores wait for each other at every barrier. The tests of the ops' parallel loops ask for more threads themselves.
torch.set_num_threads(1)
torch.backends.cudnn.allow_tf32 = False  # convolutions on a GPU are compared in float32, not in 10 bits of it
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["UNET_FAST_KEPT_MEMORY"] = "0"  # what our operators keep would not be filled with NaN, see poisoned_memory
# what torch.compile's code generator has compiled once, the next run of the tests finds again
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(__file__).parent.parent / "build" / "inductor"))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A NumPy generator whose seed is the test's own name, so that a failure repeats."""
    return np.random.default_rng(list(request.node.nodeid.encode()))


@pytest.fixture
def generator(rng: np.random.Generator) -> torch.Generator:
    """A torch generator, seeded likewise."""
    return torch.Generator().manual_seed(int(rng.integers(2**31)))


@pytest.fixture(autouse=True)
def poisoned_memory() -> object:
    """torch.empty hands out NaN (or the largest integer): a kernel that leaves an element unwritten is found."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture(params=PLACES, ids=lambda place: place[1] or place[0])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every device that exists, a GPU once for each of its backends, which the test then runs on."""
    from unet_fast.ops import _library, use_backend

    device, backend = request.param
    if backend == "cuda" and _library.CUDA.error is not None:
        pytest.skip(f"the CUDA operators are not tested: {_library.CUDA.error}")
    with use_backend(backend or places.wish(device)):
        yield device


@pytest.fixture
def kernels() -> Iterator[Any]:
    """The kernels of the place, while the C++ ones stand behind torch.ops.unet_fast and the public functions."""
    with places.cpp_kernels():
        yield places.kernels()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--place", choices=places.LACKS, default="cpu", help="where the kernels' tests run")


def heed_signals() -> None:
    """Signals are not ignored, by these processes or those that they start, whoever started the tests (nohup, a job in the background)."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_configure(config: pytest.Config) -> None:
    heed_signals()
    places.start(config.getoption("place"))


_left_out: dict[str, int] = {}

# files with tests of ten seconds and more: they go first, so that no process works on one while the others have nothing left
LONG = (
    "test_gpu_check",
    "test_packaging",
    "test_cuda_compile",
    "test_torture",
    "test_train_distributed",
    "test_cluster",
)
# then files that import other people's networks, which takes seconds, so that one process does
PEERS = ("test_accelerate_libraries", "test_predict_probe", "test_docs")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Files without kernels are not even imported where kernels alone are asked: what they import takes longer than many tests."""
    if collection_path.suffix != ".py" or places.PLACE in ("cpu", "cuda") or collection_path.name == "conftest.py":
        return None
    if "mark.kernels" in collection_path.read_text():
        return None
    _left_out["files without kernels"] = _left_out.get("files without kernels", 0) + 1
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what runs on the device that matters here, and leave out what the place cannot do."""
    mark_device(items)
    items.sort(key=lambda item: (item.path.stem not in LONG, item.path.stem not in PEERS))
    kept: list[pytest.Item] = []
    for item in items:
        reason = places.left_out(item)
        if reason is None:
            kept.append(item)
        else:
            _left_out[reason] = _left_out.get(reason, 0) + 1
    if len(kept) < len(items):
        staying = set(kept)
        config.hook.pytest_deselected(items=[item for item in items if item not in staying])
        items[:] = kept


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector, which compilers call often, need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Nor at what the tests of a file have imported and cached."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries say what they think has leaked


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for reason, count in sorted(_left_out.items()):
        what = reason if reason.startswith("files") else f"tests, {reason}"
        terminalreporter.write_line(f"left out of the place {places.PLACE!r}: {count} {what}")


def mark_device(items: list[pytest.Item]) -> None:
    """Mark what runs on the device that matters here: the GPU where there is one, else the CPU in its place."""
    device = DEVICES[-1]
    for item in items:
        callspec = getattr(item, "callspec", None)
        values = callspec.params.values() if callspec else ()
        heads = [value[0] if isinstance(value, tuple) and value else value for value in values]
        if any(isinstance(head, str) and head == device for head in heads):
            item.add_marker("device")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Function) -> Iterator[None]:
    """An op that a backend of the GPU has no kernel for is skipped there, aloud."""
    from unet_fast.errors import BackendError

    try:
        return (yield)
    except BackendError as error:
        if "place" in item.fixturenames and "there is no" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture
def real_pictures() -> None:
    """For tests that look at what is drawn."""


@pytest.fixture(autouse=True)
def little_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody else's figures are saved as one pixel."""
    if places.PLACE == "cpu" and "real_pictures" not in request.fixturenames:
        from matplotlib.figure import Figure

        from tests.pictures import save_little

        monkeypatch.setattr(Figure, "savefig", save_little)


@pytest.fixture
def plain_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs write pictures of one pixel. For tests of all else about a run: to draw takes longer than to train a small one."""
    from tests.pictures import one_pixel
    from unet_fast import plots

    def draw(*arguments: Any, **_: Any) -> Path:
        path = next(argument for argument in arguments if isinstance(argument, Path))
        one_pixel(path)
        return path

    for name in ("preview", "loss_curve", "overlay"):
        monkeypatch.setattr(plots, name, draw)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; tests that need it skip, and say so, where it is absent."""
    folder = os.environ.get("UNET_FAST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real images are not at hand: set UNET_FAST_DATA to their folder to run this test")
    return Path(folder)
