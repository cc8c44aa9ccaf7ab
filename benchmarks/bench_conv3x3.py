"""The 3x3 convolution of a CPU against torch's, layer by layer, and whole networks against OpenVINO and ONNX Runtime too.

One thread, which is where the algorithm shows; layers are those of a valid U-Net of 380 pixels and 32 channels. Both libraries
are compared with where they are installed (``pip install openvino onnxruntime onnx``).

python -m benchmarks.bench_conv3x3
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import unet_fast as uf
from benchmarks.common import Candidate, Options, Suite, one_thread, run
from benchmarks.peers import optional
from unet_fast import ops
from unet_fast.ops._tolerances import NETWORK_LOW_PRECISION

LAYERS = [(32, 32, 378), (64, 64, 186), (128, 128, 90), (256, 256, 42), (512, 512, 18), (128, 64, 88)]
NETWORKS = [(32, 380), (64, 572)]
LAST, PLANAR = torch.channels_last, torch.contiguous_format


def layer(suite: Suite, inputs: int, outputs: int, side: int) -> None:
    """Convolution and ReLU of one layer in both layouts of torch, forward and with all gradients."""

    def draw(form: torch.memory_format) -> list[Tensor]:
        torch.manual_seed(0)
        x, weight = torch.randn(1, inputs, side, side), torch.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5)
        tensors = [x.contiguous(memory_format=form), weight.contiguous(memory_format=form), torch.randn(outputs)]
        return [tensor.requires_grad_() for tensor in tensors]

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, weight, bias), inplace=True)

    def both(function: Callable[..., Tensor], operands: list[Tensor]) -> tuple[Tensor, ...]:
        out = function(*operands)
        return torch.autograd.grad(out, operands, out.detach())

    ours = partial(ops.conv3x3, activation="relu")
    last, planar = draw(LAST), draw(PLANAR)
    torch.testing.assert_close(ours(*last), plain(*last), rtol=1e-3, atol=1e-4)
    case = f"{inputs} -> {outputs} channels, {side}x{side}"
    calls = {"conv3x3": (ours, last), "torch, channels-last": (plain, last), "torch, NCHW": (plain, planar)}
    for name, call in (("forward", lambda f, operands: f(*operands)), ("forward + backward", both)):
        timed: dict[str, Any] = {}
        for candidate, (function, operands) in calls.items():
            bound = partial(call, function, operands)
            timed.update(suite.options.ours("conv3x3", bound) if function is ours else {candidate: bound})
        with torch.set_grad_enabled(call is both):
            suite.measure(f"{case}, {name}", timed, rounds=5)


def engines(path: Path, image: np.ndarray) -> dict[str, Candidate]:
    """The exported network in the libraries that are here, each with one thread."""
    found: dict[str, Candidate] = {}
    openvino, onnxruntime = optional("openvino"), optional("onnxruntime")
    if openvino is not None:
        for precision in ("f32", "bf16"):
            settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
            model = openvino.Core().compile_model(str(path), "CPU", settings)
            found[f"OpenVINO, {precision}"] = Candidate(partial(model, [image]))
    if onnxruntime is not None:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        found["ONNX Runtime"] = Candidate(partial(session.run, None, {"x": image}))
    return found


def network(suite: Suite, base: int, side: int) -> None:
    """The forward pass of a whole network."""
    net = uf.UNet(base_channels=base).eval().to(memory_format=LAST)
    plain = uf.UNet(base_channels=base, fused=False).eval()
    plain.load_state_dict(net.state_dict())
    x = torch.rand(1, 1, side, side)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        if optional("onnx") is not None:
            with ops.use_backend("reference"):  # operators that ONNX has, sizes that its runtimes can plan for
                torch.onnx.export(plain, (x,), str(path), dynamo=False, input_names=["x"], output_names=["y"])
        peers = engines(path, x.numpy()) if path.exists() else {}
        last, rows = plain.to(memory_format=LAST), x.contiguous(memory_format=LAST)
        with torch.inference_mode():
            with ops.use_convolution("direct"):
                expected = last(rows)
            error = (net(rows) - expected).square().mean().sqrt()
            assert error <= NETWORK_LOW_PRECISION * expected.square().mean().sqrt(), "the networks differ"
            calls = {
                **suite.options.ours("conv3x3", partial(net, rows), "whole network"),
                "torch, channels-last": Candidate(partial(last, rows)),
                **peers,
            }
            suite.measure(f"U-Net, base {base}, {side}x{side}, forward", calls, rounds=3, images=1)


def layers(options: Options) -> None:
    """The first result file."""
    suite = Suite("conv3x3", options, picture=True)
    for inputs, outputs, side in [(16, 16, 20)] if options.tiny else LAYERS[: 2 if options.quick else None]:
        layer(suite, inputs, outputs, side)
    suite.finish()


def networks(options: Options) -> None:
    """The second."""
    suite = Suite("conv3x3_networks", options, picture=True)
    for base, side in [(16, 188)] if options.tiny else NETWORKS[: 1 if options.quick else None]:
        network(suite, base, side)
    suite.finish()


def main(options: Options) -> None:
    if options.device != "cpu":
        return
    with one_thread():
        layers(options)
        networks(options)


if __name__ == "__main__":
    run(main)
