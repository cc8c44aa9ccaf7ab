"""Prediction on a Dask cluster of two local workers, one of which dies on the way: nothing lost, nothing twice."""

from __future__ import annotations

import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import tifffile

import unet_fast as uf
from tests.networks import lively
from unet_fast import train
from unet_fast.data.pages import Pages
from unet_fast.errors import BackendError, InputError
from unet_fast.predict import targets
from unet_fast.predict.stream import Stream, identity_of
from unet_fast.train.run_folder import save_model


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    config = train.default_config("cpu", steps=1, base_channels=4, depth=1, tile=32, tta=1)
    (tmp_path / "run").mkdir()
    config.save(tmp_path / "run" / "config.json")
    save_model(tmp_path / "run", lively(uf.models.create(**config.model), rng), {})
    image = rng.integers(0, 255, (900, 300), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(64, 64), photometric="minisblack")
    return tmp_path


def forked_workers() -> AbstractContextManager[object]:
    """Workers, and those that take the place of the killed, come from one process that has imported everything."""
    import dask
    from distributed.utils import get_mp_context

    forked = dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    get_mp_context().set_forkserver_preload(["distributed", "unet_fast.cluster", "unet_fast.run", "unet_fast.predict"])
    return forked


def test_two_workers_one_of_them_killed(folder):
    from unet_fast.cluster import make_on

    run = uf.Run.load(folder / "run", "cpu")
    options = {"output": "labels", "tile": 60}
    predictor = run.predictor(**options)
    pages = Pages([folder / "a.tif"])
    distributed = pytest.importorskip("dask.distributed", reason="the extra unet_fast[dask] is not installed")
    with (
        forked_workers(),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
        ) as cluster,
    ):
        stream = Stream(
            predictor, pages, folder / "o.tif", identity=identity_of(run.model), shared=True, part_pixels=15_000
        )
        victims = [worker.pid for worker in cluster.workers.values()]
        done: list[int] = []

        def kill_one(tiles: int) -> None:
            done.append(tiles)
            if len(done) == 2:
                os.kill(victims[0], signal.SIGKILL)

        make = make_on(cluster.scheduler_address, folder / "run", "cpu", options)
        make(stream, stream.missing(), kill_one)
        assert stream.missing() == [] and sum(done) == stream.tiles
        assert len(stream.groups) > 10
        parts = sorted(path.name for path in stream.store.folder.glob("*"))
        assert len(parts) == len(stream.groups) + 1, parts  # and the plan: no part twice, nothing half
        targets.run(stream, progress=False, make=make)
    alone = Stream(predictor, pages, folder / "alone.tif", identity=identity_of(run.model))
    targets.run(alone, progress=False)
    np.testing.assert_array_equal(tifffile.imread(folder / "o.tif"), tifffile.imread(folder / "alone.tif"))


def test_what_a_cluster_refuses(folder):
    from unet_fast import cluster

    with pytest.raises(BackendError, match="no Dask scheduler answers"):
        run = uf.Run.load(folder / "run", "cpu")
        stream = Stream(run.predictor(tile=60), Pages([folder / "a.tif"]), folder / "o.tif", shared=True)
        cluster._PATIENCE = "1s"
        cluster.make_on("tcp://127.0.0.1:9", folder / "run", "cpu", {})(stream, [0], print)
    # a worker with another image or other weights touches nothing
    with pytest.raises(InputError, match="was not begun with the same image"):
        Stream(run.predictor(tile=40), Pages([folder / "a.tif"]), folder / "o.tif", joins=True)
    assert (folder / ".o.tif.parts" / "plan.json").exists()
