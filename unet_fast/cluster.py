"""Parts of a prediction made by the workers of a Dask cluster, which share a file system; dask is an extra.

A part is a file that appears whole or not at all, and is the same whoever makes it. So a worker that dies loses nothing
but its part, which another one makes, and a part that was made twice is there once.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unet_fast.data.pages import Pages
from unet_fast.deploy.extras import load
from unet_fast.errors import BackendError, InputError
from unet_fast.predict.stream import Stream, identity_of
from unet_fast.run import Run

_RETRIES = 3
_PATIENCE = "30s"  # for the scheduler to answer


def make_on(
    address: str, run: Path, device: str, options: dict[str, Any]
) -> Callable[[Stream, list[int], Callable[[int], None]], None]:
    """A ``make`` for :func:`unet_fast.predict.targets.run`: the parts are made by the cluster at ``address``.

    Args:
        address: of the scheduler, such as ``tcp://10.0.0.5:8786``.
        run: the run folder, at the same path for every worker.
        device, options: as given to :meth:`unet_fast.run.Run.load` and :meth:`unet_fast.run.Run.predictor`.

    Raises:
        BackendError: dask.distributed is missing, no scheduler answers, or it has no workers.
        InputError, OSError: what a worker could not do.
    """
    distributed = load("dask.distributed", "--dask")

    def make(stream: Stream, numbers: list[int], done: Callable[[int], None]) -> None:
        if not numbers:
            return
        order = json.dumps(
            {
                "run": str(run.resolve()),
                "device": device,
                "options": options,
                "files": [str(path.resolve()) for path in stream.pages.files],
                "pages": [list(map(str, stream.pages.place(index))) for index in range(len(stream.pages))],
                "out": str(stream.out.resolve()),
                "part_pixels": stream.part_pixels,
            }
        )
        try:
            client = distributed.Client(address, timeout=_PATIENCE, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            raise BackendError(f"no Dask scheduler answers at {address} ({error}); check --dask") from error
        with client:
            if not client.scheduler_info()["workers"]:
                raise BackendError(
                    f"the Dask cluster at {address} has no workers; start some with: dask worker {address}"
                )
            futures = {client.submit(_part, order, number, pure=False, retries=_RETRIES): number for number in numbers}
            for future in distributed.as_completed(futures, loop=client.loop):
                future.result()
                done(stream.tiles_of(futures[future]))
        lost = stream.missing()
        if lost:
            raise InputError(
                f"{len(lost)} parts that the workers have made are not in {stream.out.parent}: the cluster must share that "
                "folder with this machine"
            )

    return make


def _part(order: str, number: int) -> int:
    """Make one part in a worker, unless it is there."""
    stream = _stream(order)
    if not stream.store.has(number):
        stream.make([number])
    return number


@functools.lru_cache(maxsize=1)
def _stream(order: str) -> Stream:
    """The prediction that an order describes; a worker keeps the last one, so that the network is loaded once."""
    wanted = json.loads(order)
    run = Run.load(wanted["run"], wanted["device"])
    everything = Pages([Path(path) for path in wanted["files"]])
    places = [list(map(str, everything.place(index))) for index in range(len(everything))]
    index = {tuple(place): number for number, place in enumerate(places)}
    pages = everything.select([index[str(Path(path).resolve()), page] for path, page in wanted["pages"]])
    predictor = run.predictor(**wanted["options"])
    identity, out = identity_of(predictor.tiles.model), Path(wanted["out"])
    return Stream(predictor, pages, out, identity=identity, joins=True, part_pixels=wanted["part_pixels"])
