"""The choice of a backend: wishes, reasons, fallbacks, and Triton kernels that take an op's place and give it back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests import processes
from tests.places import only
from tests.tolerances import EXACT
from unet_fast.errors import BackendError, InputError
from unet_fast.ops import _backends, _library, crop_concat, use_backend

pytestmark = pytest.mark.core

OP = "crop_concat"


def run_python(code: str, **environment: str) -> SimpleNamespace:
    done = processes.run("-c", code, env=environment, warm="torch")
    return SimpleNamespace(returncode=done.returncode, stdout=done.stdout.decode(), stderr=done.stderr.decode())


def pair(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(1, 2, 7, 6, generator=generator), torch.rand(1, 3, 4, 4, generator=generator)


@pytest.fixture
def calls(monkeypatch):
    """The names of the Triton functions that run, in order."""
    from unet_fast.triton import crop_concat as module

    names: list[str] = []

    def counted(name, function):
        def run(*arguments):
            names.append(name)
            return function(*arguments)

        return run

    wrapped = {name: counted(name, function) for name, function in module.KERNELS.items()}
    monkeypatch.setattr(module, "KERNELS", wrapped)
    with use_backend("cpp"):  # what was installed before keeps the functions it found
        yield names


@pytest.mark.kernels
@only("interpreted")
def test_triton_takes_the_place_of_the_compiled_kernel_and_gives_it_back(calls, generator):
    skip, up = pair(generator)
    skip.requires_grad_()
    truth = crop_concat(skip, up)
    assert calls == []
    with use_backend("triton"):
        out = crop_concat(skip, up)
        direct = torch.ops.unet_fast.crop_concat(skip, up)
        assert calls == ["crop_concat"] * 2
        with use_backend("cpp"):
            crop_concat(skip, up)
        assert calls == ["crop_concat"] * 2
        with use_backend("reference"):
            crop_concat(skip, up)
        out.sum().backward()
        assert calls == ["crop_concat"] * 2 + ["crop_concat_backward"]
    with use_backend("auto"):
        crop_concat(skip, up)
    assert len(calls) == 3
    for result in (out, direct):
        torch.testing.assert_close(result, truth, **EXACT)


@pytest.mark.kernels
@only("interpreted")
def test_registration_of_a_triton_kernel(calls, generator):
    skip, up = pair(generator)
    with use_backend("triton"):
        torch.library.opcheck(torch.ops.unet_fast.crop_concat.default, (skip.requires_grad_(), up))
        grad = torch.rand(1, 5, 4, 4, generator=generator)
        torch.library.opcheck(torch.ops.unet_fast.crop_concat_backward.default, (grad, 2, [7, 6]))
        compiled = torch.compile(lambda s, u: crop_concat(s, u) * 2, fullgraph=True, backend="aot_eager")
        calls.clear()
        torch.testing.assert_close(compiled(skip, up), crop_concat(skip, up) * 2, **EXACT)
    assert calls == ["crop_concat"] * 2


@pytest.mark.kernels
@only("interpreted")
def test_what_was_measured_goes_first_but_not_on_the_cpu(monkeypatch):
    monkeypatch.setattr(_backends, "KERNELS", dict(_backends.KERNELS))
    monkeypatch.setattr(_library, "has_kernel", lambda op, key: True)
    monkeypatch.setattr(_library, "CUDA", SimpleNamespace(error=None))
    monkeypatch.setattr(_backends, "_install", lambda op: None)
    with use_backend("auto"):
        _backends.register(OP, _backends._OPERATORS[OP])
        assert _backends.choose(OP, "cuda") == "cuda"
        monkeypatch.setitem(_backends.MEASURED, OP, "triton")
        _backends.register(OP, _backends._OPERATORS[OP])
        assert _backends.choose(OP, "cuda") == "triton" and _backends.choose(OP, "cpu") == "cpp"


@only("cpu")
def test_triton_on_the_cpu_is_refused(generator):
    with (
        use_backend("triton"),
        pytest.raises(BackendError, match="'triton' was asked for, but Triton kernels run on "),
    ):
        crop_concat(*pair(generator))
    with use_backend("triton"):
        assert _backends.explain(OP, "cpu").backend == "none"


@only("cpu")
def test_nothing_is_loaded_before_it_is_used():
    code = "import sys, unet_fast.ops; print('triton' in sys.modules, torch.cuda.is_initialized())"
    done = run_python("import torch; " + code)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_triton_serves_gpus_without_the_cuda_library():
    code = (
        "import torch; from unet_fast.ops import use_backend; "
        "has = lambda: torch._C._dispatch_has_kernel_for_dispatch_key('unet_fast::crop_concat_backward', 'CUDA'); "
        "from unet_fast.ops import _library; print(_library.CUDA.error is None or has())"
    )
    done = run_python(code, UNET_FAST_BACKEND="auto", TRITON_INTERPRET="0")
    assert done.stdout.strip() == "True", done.stderr


def test_reasons(monkeypatch):
    assert _backends.why_not("cpp", OP, "cpu") is None
    assert _backends.why_not("reference", OP, "cpu") is None
    assert "cuda" in _backends.why_not("cuda", OP, "cpu").lower()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "triton", "reference"):
        assert _backends.why_not(name, OP, "cuda").startswith("there is no CUDA device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "run on the CPU, the tensors are on cuda" in _backends.why_not("cpp", OP, "cuda")
    assert _backends.why_not("triton", OP, "cuda") is None
    assert "on GPUs, the tensors are on xpu" in _backends.why_not("triton", OP, "xpu")
    monkeypatch.setattr(_library, "CUDA", SimpleNamespace(error=None))
    monkeypatch.setitem(_backends.KERNELS, OP, ("cpp", "reference"))
    assert _backends.why_not("cuda", OP, "cuda") == "there is no cuda kernel for crop_concat in this version"
    monkeypatch.setitem(_backends.KERNELS, OP, ("cpp", "cuda", "triton", "reference"))
    assert _backends.why_not("cuda", OP, "cuda") is None
    assert "run on NVIDIA GPUs, the tensors are on cpu" in _backends.why_not("cuda", OP, "cpu")
    monkeypatch.setattr(_backends, "_HAS_TRITON", False)
    assert _backends.why_not("triton", OP, "cuda") == "triton is not installed (pip install triton)"
    assert "triton is not installed (pip install triton)" in _backends.explain(OP, "cpu").reasons


def test_auto_takes_the_first_that_can_and_warns_of_the_reference(monkeypatch):
    monkeypatch.setattr(_backends, "_warned", set())
    with use_backend("auto"):
        assert _backends.choose(OP, "cpu") == "cpp"
        assert _backends.explain(OP, "cpu").backend == "cpp"
        with pytest.warns(UserWarning, match="crop_concat on xpu runs the slow reference: cpp kernels run on the CPU"):
            assert _backends.choose(OP, "xpu") == "reference"
        monkeypatch.setattr(_library, "CPU", SimpleNamespace(error="_torch_cpu.so was not built"))
        with pytest.warns(UserWarning, match="crop_concat on cpu runs the slow reference: _torch_cpu.so was not built"):
            assert _backends.choose(OP, "cpu") == "reference"
    with use_backend("cpp"), pytest.raises(BackendError, match="'cpp' was asked for, but _torch_cpu.so was not built"):
        _backends.choose(OP, "cpu")


def test_a_wish_in_the_environment():
    code = "import torch; from unet_fast.ops import crop_concat; crop_concat(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 2, 2))"
    done = run_python(code, UNET_FAST_BACKEND="fastest", TRITON_INTERPRET="0")
    assert done.stderr.strip().splitlines()[-1] == (
        "unet_fast.errors.InputError: UNET_FAST_BACKEND is 'fastest', expected one of auto, cpp, cuda, triton, reference"
    )
    assert run_python(code, UNET_FAST_BACKEND="reference").returncode == 0
    done = run_python(code, UNET_FAST_BACKEND="triton", TRITON_INTERPRET="0")
    assert "BackendError: the backend 'triton' was asked for, but Triton kernels run on GPUs" in done.stderr


def test_a_wish_ends_with_its_block(generator):
    before = _backends.wish()
    with pytest.raises(ZeroDivisionError), use_backend("reference"):
        assert _backends.wish() == "reference"
        raise ZeroDivisionError
    assert _backends.wish() == before
    with pytest.raises(InputError, match="'gpu', expected one of auto, cpp"), use_backend("gpu"):
        pass
    assert _backends.wish() == before


def test_why_there_is_no_cuda_library(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(_library, "_FOLDER", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is a CPU build (torch.version.cuda is None)" in _library._load_cuda().error
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert _library._load_cuda().error.startswith("_torch_cuda.so was not built; build it with: pip install")
    (tmp_path / "_build_info.json").write_text(
        '{"torch": "2.11.0", "cuda_reason": "nvcc was not found (set CUDA_HOME)"}'
    )
    assert "was not built (nvcc was not found (set CUDA_HOME)); build it with" in _library._load_cuda().error
    (tmp_path / "_torch_cuda.so").write_bytes(b"no library")
    error = _library._load_cuda().error
    assert (
        "could not be loaded under torch" in error and "it was built with torch 2.11.0" in error and "\n" not in error
    )
