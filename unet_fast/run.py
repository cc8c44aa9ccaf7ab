"""A trained run as an object: its network, its settings, and predictions that need no further decisions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unet_fast.errors import InputError
from unet_fast.models import SegmentationModel
from unet_fast.predict import Predictor
from unet_fast.train.config import TrainConfig, resolve_device
from unet_fast.train.prediction import device_of, predictor_of
from unet_fast.train.run_folder import load_model

if TYPE_CHECKING:
    from unet_fast.deploy.description import Description
    from unet_fast.deploy.engines import Engine


class Run:
    """What ``unet-fast train`` left in a folder, ready for use.

    Attributes:
        folder: the run folder.
        model: the best network of the run, in eval mode, on :attr:`device`.
        settings: the run's :class:`unet_fast.train.TrainConfig`; a threshold that the run was to find out is in it.

    Example::

        run = uf.Run.load("RUN")
        masks = run.predict(image, output="labels")
        run.predictor(output="instances", tta=1).write(pages, "objects.tif")
    """

    def __init__(self, folder: Path, model: SegmentationModel | Engine, settings: TrainConfig | Description) -> None:
        self.folder, self.model, self.settings = folder, model, settings

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "auto") -> Run:
        """Read a run folder, or a file that :meth:`export` wrote; ``device`` is auto, cpu, cuda or cuda:N.

        Of an exported .zip the network comes back as it was. An exported .onnx has no network any more: :attr:`model` is
        then an engine (ONNX Runtime, on the CPU), and :attr:`settings` what the file says of prediction.

        Raises:
            InputError: no run folder, no trained weights in it yet, a file of another origin, or no such device.
            BackendError: an .onnx without onnxruntime.
        """
        path, target = Path(folder), resolve_device(str(device))
        if path.suffix.lower() == ".onnx" and not path.is_dir():
            from unet_fast.deploy.choose import engine

            network = engine(path)
            return cls(path, network, network.description)
        if path.suffix.lower() == ".zip" and not path.is_dir():
            model, description = _of_package(path)
            return cls(path, model.to(target), description)
        trained, settings = load_model(path, target)
        assert isinstance(trained, SegmentationModel)
        return cls(path, trained, settings)

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return device_of(self.model)

    def predictor(
        self,
        *,
        engine: str | None = None,
        precision: str = "auto",
        output: str = "probabilities",
        announce: Callable[[str], None] = lambda text: None,
        **options: Any,
    ) -> Predictor:
        """A :class:`unet_fast.predict.Predictor` with the run's normalisation, padding, threshold, averaging, precision.

        Args:
            engine: what runs the network, see :func:`unet_fast.deploy.engine`: "auto", "onnxruntime", ...; None: torch.
            precision: of the engine.
            announce: called with one line on which engine "auto" chose, and why.
            output: "probabilities", "labels" or "instances".
            options: override what the run says: ``tile``, ``tta``, ``threshold``, ``padding``, ``amp``, and the other
                arguments of :class:`unet_fast.predict.Predictor` and :class:`unet_fast.predict.OverlapTile`. None
                counts as not given.

        Raises:
            InputError: an option out of range.
            BackendError: an engine that is not installed, with the command that installs it.
        """
        network: Any = self.model
        if engine is not None:
            network = self._engine(engine, precision, options, announce)
        return predictor_of(network, self.settings, output=output, **options)

    def _engine(self, backend: str, precision: str, options: dict[str, Any], announce: Callable[[str], None]) -> Engine:
        from unet_fast.deploy.choose import engine

        if not isinstance(self.model, SegmentationModel):
            return engine(self.folder, backend=backend, precision=precision)
        sizes = {name: options[name] for name in ("tile", "batch_size") if options.get(name) is not None}
        return engine(self, backend=backend, precision=precision, announce=announce, **sizes)

    def export(self, path: str | Path, *, format: str | None = None, **about: Any) -> dict[str, Any]:
        """Write the network, with its way of predicting, for other programs; see :func:`unet_fast.deploy.export`."""
        from unet_fast.deploy.export import export

        return export(self, path, format=format, **about)

    def predict(self, image: np.ndarray | Tensor, **options: Any) -> np.ndarray:
        """Segment one image (H, W) or (C, H, W), or a stack (N, C, H, W), with the grey values as they are stored.

        The result is that of :class:`unet_fast.predict.Predictor`; ``options`` are those of :meth:`predictor`.

        Equivalent to::

            run.predictor(**options)(image)
        """
        return self.predictor(**options)(image)

    def __repr__(self) -> str:
        if not isinstance(self.model, SegmentationModel):
            return f"Run({str(self.folder)!r}, {self.model!r})"
        size = sum(parameter.numel() for parameter in self.model.parameters())
        return f"Run({str(self.folder)!r}, {self.model.name}, {size:,} parameters, on {self.device})"


def _of_package(path: Path) -> tuple[SegmentationModel, Description]:
    """The network of a bioimage.io package, in eval mode."""
    from unet_fast import models
    from unet_fast.deploy.bioimageio import read_package

    tensors, description = read_package(path)
    model = models.create(**description.model)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"the weights in {path} do not fit the network that it describes ({first})") from error
    return model.eval(), description
