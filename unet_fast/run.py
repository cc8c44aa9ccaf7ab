"""A trained run as an object: its network, its settings, and predictions that need no further decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unet_fast.models import SegmentationModel
from unet_fast.predict import Predictor
from unet_fast.train.config import TrainConfig, resolve_device
from unet_fast.train.prediction import predictor_of
from unet_fast.train.run_folder import load_model


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

    def __init__(self, folder: Path, model: SegmentationModel, settings: TrainConfig) -> None:
        self.folder, self.model, self.settings = folder, model, settings

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "auto") -> Run:
        """Read a run folder; ``device`` is auto (a GPU where there is one), cpu, cuda or cuda:N.

        Raises:
            InputError: the folder is not a run folder, holds no trained weights yet, or the device is not there.
        """
        model, settings = load_model(folder, resolve_device(str(device)))
        assert isinstance(model, SegmentationModel)
        return cls(Path(folder), model, settings)

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.model.parameters()).device

    def predictor(self, *, output: str = "probabilities", **options: Any) -> Predictor:
        """A :class:`unet_fast.predict.Predictor` with the run's normalisation, border, threshold, averaging, precision.

        Args:
            output: "probabilities", "labels" or "instances".
            options: override what the run says: ``tile``, ``tta``, ``threshold``, ``padding``, ``amp``, and the other
                arguments of :class:`unet_fast.predict.Predictor` and :class:`unet_fast.predict.OverlapTile`. None
                counts as not given.

        Raises:
            InputError: an option out of range.
        """
        return predictor_of(self.model, self.settings, output=output, **options)

    def predict(self, image: np.ndarray | Tensor, **options: Any) -> np.ndarray:
        """Segment one image (H, W) or (C, H, W), or a stack (N, C, H, W), with the grey values as they are stored.

        The result is that of :class:`unet_fast.predict.Predictor`; ``options`` are those of :meth:`predictor`.

        Equivalent to::

            run.predictor(**options)(image)
        """
        return self.predictor(**options)(image)

    def __repr__(self) -> str:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        return f"Run({str(self.folder)!r}, {self.model.name}, {size:,} parameters, on {self.device})"
