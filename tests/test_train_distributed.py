"""Several processes train as one: torchrun with gloo on the CPU, against one process with as many tiles a step."""

from __future__ import annotations

import gc
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

import unet_fast as uf
from tests import processes
from unet_fast import data
from unet_fast.errors import InputError
from unet_fast.train import default_config, read_config, share_batch
from unet_fast.train.checkpoint import load_tensors

STEPS = 20


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    rng = np.random.default_rng(4)
    labels = np.kron(rng.integers(0, 2, (4, 5, 5)), np.ones((1, 8, 8), dtype=np.uint8)).astype(np.uint8)
    folder = tmp_path_factory.mktemp("data")
    data.write_stack(folder / "i.tif", (labels * 90 + rng.integers(0, 60, labels.shape)).astype(np.uint8))
    data.write_stack(folder / "l.tif", labels * 255)
    void = labels.copy()
    void[:, :, 20:23] = 2
    data.write_stack(folder / "void.tif", void)
    return folder


def command(files: Path, out: Path, *more: str, labels: str = "l.tif") -> list[str]:
    return [
        "-m", "unet_fast", "train", "--images", str(files / "i.tif"), "--labels", str(files / labels), "--out", str(out),
        "--steps", str(STEPS), "--base-channels", "4", "--depth", "2", "--tile", "16", "--device", "cpu", "--no-amp",
        "--val", "3", "--norm", "none", "--w0", "4", *more,
    ]  # fmt: skip


def torchrun(arguments: list[str]) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]


def run(arguments: list[str]) -> str:
    done = processes.run(*arguments)
    if done.returncode:  # an assert would show the beginning of it alone
        pytest.fail(f"exit code {done.returncode}\n{(done.stdout + done.stderr).decode()}")
    return done.stdout.decode()


def run_two(arguments: list[str]) -> str:
    """Two processes, told what torchrun tells them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "tests"}
    pair = [processes.start(*arguments, env={**told, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    for process in pair:
        assert process.wait() == 0, process.stdout + process.stderr
    return b"".join(process.stdout for process in pair).decode()


def weights(out: Path) -> dict[str, torch.Tensor]:
    return {
        name: value for name, value in load_tensors(out / "checkpoint.safetensors")[0].items() if "random" not in name
    }


def assert_alike(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if name.startswith(("model", "average")):
            torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-5, msg=name)
    losses = [np.genfromtxt(each / "metrics.csv", delimiter=",", names=True)["loss"] for each in (one, other)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.parametrize("labels", ["l.tif", "void.tif"])
def test_two_processes_train_as_one_with_twice_the_batch(files, tmp_path, labels):
    void = ("--ignore-index", "2", "--num-classes", "2") if labels == "void.tif" else ()
    run(command(files, tmp_path / "one", "--batch-size", "2", *void, labels=labels))
    two = command(files, tmp_path / "two", "--batch-size", "1", *void, labels=labels)
    said = run_two(two) if void else run(torchrun(two))
    assert said.count("training unet") == 1, "one of the two talks"
    assert_alike(tmp_path / "two", tmp_path / "one")
    assert (read_config(tmp_path / "two").processes, read_config(tmp_path / "two").batch_size) == (2, 1)


def test_a_run_goes_on_with_another_number_of_processes(files, tmp_path):
    run(command(files, tmp_path / "whole", "--batch-size", "2"))
    process = processes.start(*command(files, tmp_path / "run", "--batch-size", "2", "--checkpoint-steps", "3"))
    deadline = time.monotonic() + 200
    while not (tmp_path / "run" / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    said = run_two(command(files, tmp_path / "run", "--resume"))
    assert "batch_size is 1, was 2" in said and "going on after step" in said
    assert_alike(tmp_path / "run", tmp_path / "whole")
    with pytest.raises(InputError, match="takes 2 tiles a step, which 3 processes cannot share evenly"):
        share_batch(read_config(tmp_path / "run"), 3, "run")


def test_a_lost_process_ends_all_with_one_line(files, tmp_path):
    with open(tmp_path / "log", "wb") as log:
        command_line = torchrun(command(files, tmp_path / "run", "--steps", "100000"))
        process = processes.start(*command_line, streams=(log.fileno(), log.fileno()))
    try:
        deadline = time.monotonic() + 200
        while not (tmp_path / "run" / "config.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        second = next(child for child in children if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes())
        os.kill(int(second), signal.SIGKILL)
        code = process.wait(120)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # which ends the two
    said = (tmp_path / "log").read_text()
    assert code != 0
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "a process of this training was lost" in lines[0] and "--resume" in lines[0]
    assert 'File "' not in said.split("error: ")[0], "no traceback of ours"


def test_the_configuration_says_how_many(files, tmp_path):
    config = default_config("cpu", steps=1, base_channels=2, depth=1, tile=16, processes=2)
    pair = data.read_pair(files / "i.tif", files / "l.tif")
    with pytest.raises(InputError, match="processes is 2, but 1 train"):
        uf.train.train(config, pair, None, tmp_path, progress=False)


def loss_of_halves(rank: int, port: int, out: str, engine: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    net, images, target, weight = example()
    part = slice(rank, rank + 1)
    wrapped = torch.nn.parallel.DistributedDataParallel(net) if engine == "ddp" else dist.fsdp.fully_shard(net)
    wrapped(images[part], target[part], weight[part]).backward()
    grads = [parameter.grad for parameter in net.parameters()]
    if engine == "fsdp2":
        grads = [grad.full_tensor() for grad in grads]
    if rank == 0:
        torch.save(grads, out)
    # what holds the group goes first: freed after it, its threads are waited for while they wait for Python
    del wrapped, grads
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def example() -> tuple[uf.UNet, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    net = uf.UNet(base_channels=4, depth=2, padding="same", fused=True)
    return net, torch.randn(2, 1, 16, 16), torch.randint(0, 2, (2, 16, 16)), torch.rand(2, 16, 16)


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_a_call_with_a_target_is_what_is_synchronised(tmp_path, engine):
    net, images, target, weight = example()
    loss = net(images, target, weight)
    assert torch.equal(loss, net.loss(images, target, weight))
    loss.backward()
    port = 20000 + (os.getpid() + len(engine)) % 20000
    code = "import sys; from tests.test_train_distributed import loss_of_halves as f; f(*map(eval, sys.argv[1:3]), *sys.argv[3:])"
    pair = [processes.start("-c", code, rank, port, tmp_path / "g.pt", engine) for rank in (0, 1)]
    for process in pair:
        assert process.wait() == 0, process.stderr
    for got, parameter in zip(torch.load(tmp_path / "g.pt"), net.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-4, atol=1e-6)
