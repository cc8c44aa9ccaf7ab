"""The forward pass of whole networks on a CPU against torch, OpenVINO and ONNX Runtime: one thread; two threads; held to AVX2.

Both libraries are compared with where they are installed (``pip install openvino onnxruntime onnx``).

python -m benchmarks.bench_conv3x3_networks [alone | wide | threads | avx2]
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

import unet_fast as uf
from benchmarks.common import Candidate, Options, Suite, one_thread, parse
from benchmarks.peers import optional
from unet_fast import ops
from unet_fast.ops._tolerances import NETWORK_LOW_PRECISION

NETWORKS = [(32, 380), (64, 572)]
LAST, PLANAR = torch.channels_last, torch.contiguous_format
# what holds our kernels, oneDNN's and torch's own to AVX2; read when they are loaded
HELD = {"UNET_FAST_CPU_LEVEL": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


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


def network(suite: Suite, base: int, side: int, *, engines_too: bool = True, rounds: int = 3) -> None:
    """The forward pass of a whole network, with as many threads as torch has."""
    net = uf.UNet(base_channels=base).eval().to(memory_format=LAST)
    plain = uf.UNet(base_channels=base, fused=False).eval()
    plain.load_state_dict(net.state_dict())
    x = torch.rand(1, 1, side, side)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        if engines_too and optional("onnx") is not None:
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
            if not engines_too:
                calls["torch, NCHW"] = Candidate(partial(copy.deepcopy(plain).to(memory_format=PLANAR), x))
            suite.measure(f"U-Net, base {base}, {side}x{side}, forward", calls, rounds=rounds, images=1)


def threads(options: Options) -> None:
    """Two threads, against torch's two."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        suite = Suite("conv3x3_threads", options, picture=True)
        base, side = (16, 188) if options.tiny else NETWORKS[0]
        network(suite, base, side, engines_too=False, rounds=7)
        suite.finish()
    finally:
        torch.set_num_threads(before)


def held(options: Options) -> None:
    """Held to AVX2, which a process has to be from its start."""
    if any(os.environ.get(name) != value for name, value in HELD.items()):
        command = [sys.executable, "-m", "benchmarks.bench_conv3x3_networks", "avx2", "--device", "cpu"]
        command += ["--tiny"] * options.tiny + ["--quick"] * (options.quick and not options.tiny)
        subprocess.run(command, env=os.environ | HELD, check=True)
        return
    with one_thread():
        suite = Suite("conv3x3_avx2", options, picture=True)
        base, side = (16, 188) if options.tiny else NETWORKS[0]
        network(suite, base, side, engines_too=False, rounds=7)
        suite.finish()


def alone(options: Options, name: str, case: int, rounds: int) -> None:
    """One thread, against all peers."""
    if case and options.quick:
        return
    with one_thread():
        suite = Suite(name, options, picture=True)
        network(suite, *((16, 188) if options.tiny else NETWORKS[case]), rounds=rounds)
        suite.finish()


PARTS = {
    "alone": partial(alone, name="conv3x3_networks", case=0, rounds=9),
    "wide": partial(alone, name="conv3x3_networks_64", case=1, rounds=3),
    "threads": threads,
    "avx2": held,
}


def main(options: Options, names: list[str] | None = None) -> None:
    """A result file a part."""
    if options.device == "cpu":
        for name in names or PARTS:
            PARTS[name](options)


if __name__ == "__main__":
    chosen, given = parse()
    main(given, chosen)
