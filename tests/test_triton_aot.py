"""Every Triton kernel compiled for GPUs that are not there: what the functions launch, for sm_80 and sm_90.

The functions run as they are, on CPU tensors; a stand-in for Triton's driver names the GPU, and a launch ends after its
compilation. So what is compiled is what a GPU would get: tiles, specialised arguments, alignment and all.
"""

from __future__ import annotations

import importlib
import re
import subprocess
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton kernels are not compiled: triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver, jit  # noqa: E402

from unet_fast.ops.head_cross_entropy import fits_registers  # noqa: E402

ARCHITECTURES = (80, 90)
# Bytes a thread. The assembler gives up a register or two where that lets one more program run beside the others.
PARKED = 32
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # bytes that one program may have

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FORMATS = (torch.contiguous_format, torch.channels_last)


def crop_concat(run: Callable[..., Any]) -> None:
    for form in FORMATS:
        # words of 16 bytes, of 2, and of 1
        for dtype, channels, size in ((torch.bfloat16, 8, 24), (torch.float16, 3, 13), (torch.uint8, 3, 13)):
            skip = torch.zeros(1, channels, size + 16, size + 16, dtype=dtype).to(memory_format=form)
            out = run("crop_concat", skip, skip[:, :, :size, :size].contiguous(memory_format=form))
            run("crop_concat_backward", out, channels, [size + 16, size + 16])
        empty = torch.zeros(1, 0, 40, 40).to(memory_format=form)  # a side without channels, and both
        for other in (empty, torch.zeros(1, 3, 40, 40).to(memory_format=form)):
            run("crop_concat", empty, other)
            run("crop_concat_backward", run("crop_concat", other, empty), other.shape[1], [50, 50])


def weighted_cross_entropy(run: Callable[..., Any]) -> None:
    target, weight = torch.zeros(2, 16, 16, dtype=torch.int64), torch.zeros(2, 16, 16)
    for form in FORMATS:
        for dtype in FLOATS:
            # many classes in the dtypes that need the most and the least registers
            for classes in (2, 5) if dtype in (torch.float64, torch.bfloat16) else (2,):
                logits = torch.zeros(2, classes, 16, 16, dtype=dtype).to(memory_format=form)
                wide = torch.promote_types(dtype, torch.float32)
                loss, grad = run("weighted_cross_entropy", logits, target, weight.to(wide), -100, 3, True)
                run("weighted_cross_entropy_backward", loss, grad)
                run("weighted_cross_entropy_backward_", [grad, grad[0, 0]], loss)
        loss, grad = run("weighted_cross_entropy", logits.float(), target.to(torch.uint8), None, -100, 0, True)
        run("weighted_cross_entropy_backward", loss, grad)
        for classes in (64, 300):  # the widest tile, and one that moves over the classes
            many = torch.zeros(2, classes, 16, 16).to(memory_format=form)
            run("weighted_cross_entropy", many, target.int(), None, 255, 2, True)
    run("weighted_cross_entropy", logits, target, None, -100, 2, False)


def nearest_two(run: Callable[..., Any]) -> None:
    for shape, spacing in (((2, 40, 48), [1.0, 1.0]), ((1, 8, 140, 148), [2.5, 0.5, 0.7]), ((1, 4, 200), [1.0, 1.0])):
        run("nearest_two", torch.zeros(shape, dtype=torch.int32), spacing)


def distance_transform(run: Callable[..., Any]) -> None:
    for shape, spacing in (((2, 40, 48), [1.0, 1.0]), ((1, 8, 140, 148), [2.5, 0.5, 0.7]), ((1, 4, 200), [1.0, 1.0])):
        run("distance_transform", torch.zeros(shape, dtype=torch.bool), spacing)


def weight_map(run: Callable[..., Any]) -> None:
    instances = torch.zeros(2, 40, 48, dtype=torch.int32)
    run("weight_map", instances, 10.0, 5.0, None, False, False)
    run("weight_map", instances, 10.0, 5.0, torch.ones(2), False, True)
    run("weight_map", instances, 10.0, 5.0, None, True, False)


def up_conv_into(run: Callable[..., Any]) -> None:
    for form in FORMATS:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            x = torch.zeros(2, 128, 12, 12, dtype=dtype).to(memory_format=form)
            weight, bias = torch.zeros(128, 64, 2, 2, dtype=dtype), torch.zeros(64)
            buffer = torch.zeros(2, 128, 24, 24, dtype=dtype).to(memory_format=form)
            run("up_conv_into", x, weight, bias, buffer)
            if dtype != torch.float16:
                run("up_conv_into_backward", buffer, x, weight, False, False, True)
        buffer = torch.zeros(2, 69, 25, 25, dtype=dtype).to(memory_format=form)[:, :, 1:, 1:]
        run("up_conv_into", x, weight, None, buffer)  # neither even strides nor whole vectors
        double = buffer.double()
        run("up_conv_into_backward", double, x.double(), weight.double(), False, False, True)


def up_conv_crop_concat(run: Callable[..., Any]) -> None:
    x, weight = torch.zeros(2, 128, 12, 12, dtype=torch.bfloat16), torch.zeros(128, 64, 2, 2, dtype=torch.bfloat16)
    run("up_conv_crop_concat", x, weight, None, torch.zeros(2, 64, 26, 28, dtype=torch.bfloat16))


def elastic_warp(run: Callable[..., Any]) -> None:
    image, labels = torch.zeros(2, 3, 40, 90), torch.zeros(2, 1, 40, 90, dtype=torch.uint8)
    matrix = torch.zeros(2, 2, 3)
    for dtype, field, padding, kinds in (
        (torch.float32, 0, 0, [1, 0, 1]),
        (torch.bfloat16, 1, 1, [2, 0, 2]),
        (torch.float64, 2, 2, [2, 0, 1]),
    ):
        images = [image.to(dtype), labels, image.half().to(memory_format=torch.channels_last)]
        wide = torch.promote_types(dtype, torch.float32)
        points, affine = torch.zeros(2, 2, 4, 4, dtype=wide), None if padding == 2 else matrix
        run("elastic_warp", images, points, affine, [40, 90, 20, 30, 50, 95], kinds, [0.0] * 3, field, padding)
        grads = [image.to(wide), image[:, :, :20, :30].to(wide)]
        deterministic = dtype != torch.bfloat16
        run("elastic_warp_backward", grads, points, affine, [40, 90], kinds[:2], field, padding, deterministic)


def bias_relu(run: Callable[..., Any]) -> None:
    for form in FORMATS:
        for dtype in FLOATS:
            wide = torch.promote_types(dtype, torch.float32)
            # whole vectors; and what is divided by none
            for channels, size in ((64, 24), (3, 13))[: 2 if dtype == torch.bfloat16 else 1]:
                x, bias = (
                    torch.zeros(2, channels, size, size, dtype=dtype).to(memory_format=form),
                    torch.zeros(channels),
                )
                out = run("bias_relu", x, bias.to(wide))
                run("bias_relu_backward", x, out, True)
        run("bias_relu_", x, None)
        run("bias_relu_backward", x, out, False)


def relu_pool_skip(run: Callable[..., Any]) -> None:
    for form in FORMATS:
        for dtype in FLOATS:
            wide = torch.promote_types(dtype, torch.float32)
            for channels, size, crop in ((64, 80, 64), (3, 13, 7))[: 2 if dtype == torch.bfloat16 else 1]:
                x, bias = (
                    torch.zeros(2, channels, size, size, dtype=dtype).to(memory_format=form),
                    torch.zeros(channels),
                )
                pooled, buffer, code = run("relu_pool_skip", x, bias.to(wide), [crop, crop], channels, True)
                run("relu_pool_skip_backward", code, pooled, buffer, [size, size], True)
        run("relu_pool_skip", x, None, [crop, crop], 0, False)
        run("relu_pool_skip_backward", code, pooled, None, [size, size], False)
        run("relu_pool_skip_backward", code, None, buffer, [size, size], False)


def head_cross_entropy(run: Callable[..., Any]) -> None:
    for form in FORMATS:
        # a usual head, the most that the operator hands to the kernel, and what no vector divides
        bf16, fp32, fp16, fp64 = torch.bfloat16, torch.float32, torch.float16, torch.float64
        cases = ((bf16, 64, 2), (bf16, 256, 8), (fp32, 256, 8), (fp64, 256, 4), (fp16, 5, 3), (fp32, 64, 2))
        for dtype, channels, classes in cases:
            assert fits_registers(classes, channels, dtype)
            wide = torch.promote_types(dtype, torch.float32)
            features = torch.zeros(2, channels, 24, 24, dtype=dtype).to(memory_format=form)
            weight, bias = torch.zeros(classes, channels, dtype=wide), torch.zeros(classes, dtype=wide)
            target, pixels = torch.zeros(2, 24, 24, dtype=torch.int64), torch.zeros(2, 24, 24, dtype=wide)
            extra = torch.zeros(channels, dtype=wide)
            run("head_cross_entropy", features, extra, True, weight, bias, target, pixels, -100, 2, True)
        run("head_cross_entropy", features, None, False, weight, None, target.int(), None, -100, 1, False)


def norm_activation(run: Callable[..., Any]) -> None:
    for form, dtype, activation in zip(FORMATS * 2, FLOATS, (2, 3, 3, 2), strict=True):
        x, numbers = (
            torch.zeros(2, 32, 40, 48, dtype=dtype).to(memory_format=form),
            torch.zeros(32, dtype=torch.promote_types(dtype, torch.float32)),
        )
        channels, options = (numbers, numbers, numbers), (0, 1e-5, activation, 0.1)
        _, mean, var = run("norm_activation", x, *channels, None, None, *options)
        run("norm_activation_backward", x, x, *channels, mean, var, *options, False)


def dice_cross_entropy(run: Callable[..., Any]) -> None:
    # a tile of all classes, one that moves over them with the widest numbers, and a sigmoid
    for dtype, form, classes in ((torch.float32, 0, 4), (torch.float64, 1, 70), (torch.bfloat16, 1, 1)):
        wide, soft = torch.promote_types(dtype, torch.float32), classes == 70
        logits = torch.zeros(2, classes, 48, 48, dtype=dtype).to(memory_format=FORMATS[form])
        target = logits.to(wide) if soft else torch.zeros(2, 48, 48, dtype=torch.int64)
        tensors = (logits, target, torch.zeros(2, 48, 48, dtype=wide), torch.zeros(classes, dtype=wide))
        options = (-100, 0.0 if classes == 1 else 0.1, classes == 1)
        _, slopes = run("dice_cross_entropy", *tensors, *options, 0.7, 1.0, 1e-5, 1e-5, soft, soft, True)
        run("dice_cross_entropy_backward", slopes, *tensors, *options, True)


def upsample_concat(run: Callable[..., Any]) -> None:
    for form in FORMATS:
        for dtype, mode, border in zip(FLOATS, (2, 3, 1, 3), (0, 2, 1, 2), strict=True):
            skip, x = (torch.zeros(2, 32, *size, dtype=dtype).to(memory_format=form) for size in ((41, 50), (20, 24)))
            out = run("upsample_concat", skip, x, mode, mode == 3, border)
            run("upsample_concat_backward", out[:, :32], [20, 24], mode, border)
        run("upsample_concat", skip, torch.zeros(2, 3, 41, 50, dtype=dtype), 0, True, 1)


CASES = (
    dice_cross_entropy,
    norm_activation,
    upsample_concat,
    crop_concat,
    weighted_cross_entropy,
    nearest_two,
    distance_transform,
    weight_map,
    up_conv_into,
    up_conv_crop_concat,
    elastic_warp,
    bias_relu,
    relu_pool_skip,
    head_cross_entropy,
)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[dict[str, list[Any]]]:
    """The kernels that were compiled for this architecture, by name, instead of launched."""
    architecture = request.param
    kernels: dict[str, list[Any]] = {}
    run = jit.JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        assert min(grid) > 0, f"{self.fn.__name__} would be launched with the grid {grid}"
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        kernels.setdefault(self.fn.__name__, []).append(kernel)
        return kernel

    target = GPUTarget("cuda", architecture, 32)
    stand_in = SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: -architecture,  # compiled kernels are kept by device: one that no machine has
        get_current_stream=lambda device: 0,
    )
    before = driver._active
    driver.set_active(stand_in)
    monkeypatch.setattr(jit.JITFunction, "run", compile_only)
    yield kernels
    driver._active = before


@pytest.mark.parametrize("compiled", ARCHITECTURES, indirect=True, ids=lambda arch: f"sm_{arch}")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_compiles_without_spills(case, compiled, request, tmp_path):
    architecture = request.node.callspec.params["compiled"]
    functions = importlib.import_module(f"unet_fast.triton.{case.__name__}").KERNELS
    case(lambda name, *arguments: functions[name](*arguments))
    assert compiled
    for name, kernels in compiled.items():
        for kernel in set(kernels):
            assert kernel.metadata.shared <= SHARED_MEMORY[architecture], name
            used = resources(kernel, tmp_path)
            assert used["LOCAL"] == 0 and used["STACK"] <= PARKED, f"{name} spills: {used}"


def resources(kernel: Any, folder: Any) -> dict[str, int]:
    """Registers, and bytes of local memory and stack, that is of spilled registers."""
    import triton

    file = folder / "kernel.cubin"
    file.write_bytes(kernel.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    listing = subprocess.run([tool, "--dump-resource-usage", str(file)], capture_output=True, text=True, check=True)
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing.stdout)}


@pytest.mark.parametrize("compiled", [90], indirect=True, ids=["sm_90"])
def test_whole_words_are_16_byte_accesses(compiled):
    crop_concat(
        lambda name, *arguments: importlib.import_module("unet_fast.triton.crop_concat").KERNELS[name](*arguments)
    )
    for name, kernels in compiled.items():
        accesses = [set(re.findall(r"(ld|st)\.global\S*v2\.b64", kernel.asm["ptx"])) for kernel in kernels]
        assert {"ld", "st"} in accesses, name
