"""A bioimage.io package (model description 0.5): a zip that Fiji's deepImageJ, ilastik and others read, and that we read back."""

from __future__ import annotations

import contextlib
import io
import lzma
import os
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unet_fast.data.limits import check_decoded
from unet_fast.deploy.description import KEY, Description
from unet_fast.deploy.extras import load
from unet_fast.deploy.onnx_file import INPUT, OPSET, OUTPUT, write_onnx
from unet_fast.deploy.program import difference, first_size, sample_sizes
from unet_fast.errors import BackendError, InputError
from unet_fast.files import atomic_path, take_as_input
from unet_fast.models import SegmentationModel
from unet_fast.models.geometry import Geometry
from unet_fast.train.checkpoint import save_tensors, tensors_of

WEIGHTS, STATE_DICT, ONNX = "model.safetensors", "model.pt", "model.onnx"
PAPER = {
    "text": "Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015",
    "doi": "10.1007/978-3-319-24574-4_28",
}
_EPS = 1e-6  # of the standard deviation, in the description's normalisation
_COVER = 512


def write_package(
    model: SegmentationModel,
    path: Path,
    description: Description,
    *,
    name: str | None = None,
    license: str | None = None,
    authors: Sequence[str] = (),
    cite: Sequence[Mapping[str, str]] = (PAPER,),
    documentation: str = "",
    image: np.ndarray | None = None,
) -> float | None:
    """Write ``model`` (see :func:`unet_fast.deploy.program.plain_copy`) as a package, after bioimageio.core has tested it.

    It holds the network as ONNX, as PyTorch weights (with this package as the architecture) and as safetensors, a test input
    and output, a cover, and the axes with the sizes that the network takes, exactly.

    Args:
        name: of the model, at least 5 letters, digits, spaces or any of ``_+- ()``.
        license: an identifier of the SPDX list, such as CC-BY-4.0 or MIT. Nobody but you can choose it, so it must be given.
        authors: names.
        cite: ``{"text": ..., "doi": ...}`` (or "url") of what to cite.
        documentation: Markdown, shown to whoever opens the model.
        image: (C, H, W), grey values as stored, for the test and the cover; None: noise.

    Returns:
        The largest difference of the ONNX inside to torch.

    Raises:
        InputError: name, license or authors are missing or not of the form that the description wants.
        BackendError: bioimageio.core is missing (the message has the pip command), or its test fails.
    """
    for label, value, example in (
        ("name", name, "'Nuclei in fluorescence'"),
        ("license", license, "CC-BY-4.0 or MIT"),
        ("authors", tuple(authors), "the names of those who trained it"),
    ):
        if not value:
            raise InputError(f"a bioimage.io package needs {label}, such as {example}; give {label}")
    spec = load("bioimageio.spec.model.v0_5", "the format bioimageio")
    writer = load("bioimageio.spec", "the format bioimageio")
    core = load("bioimageio.core", "the format bioimageio")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        work = Path(folder)
        write_onnx(model, work / ONNX, description)
        torch.save(model.state_dict(), work / STATE_DICT)
        save_tensors(work / WEIGHTS, dict(model.state_dict()), {"description": description.metadata()})
        raw, result = _test_tensors(model, description, image)
        np.save(work / "test_input.npy", raw)
        np.save(work / "test_output.npy", result)
        _write_cover(raw, result, work / "cover.png")
        said = documentation or f"# {name}\n\nA {model.name} of unet_fast. {_about(description)}\n"
        (work / "README.md").write_text(said)
        try:
            described = _described(spec, model, description, work, name, license, authors, cite)
        except ValueError as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"the description of the package is not accepted: {reason}") from error
        with atomic_path(path) as temporary:
            writer.save_bioimageio_package(described, output_path=temporary)
            for weights in ("onnx", "pytorch_state_dict"):
                summary = core.test_model(temporary, weight_format=weights)
                if summary.status not in ("passed", "valid-format"):
                    failed = [str(error.msg) for detail in summary.details for error in detail.errors]
                    raise BackendError(
                        f"{path} was not written: the test of bioimageio.core with {weights} says {summary.status}: "
                        f"{'; '.join(failed)[:300]}"
                    )
        from unet_fast.deploy.extras import is_installed

        if not is_installed("onnxruntime"):
            return None
        from unet_fast.deploy.engines.onnxruntime import OnnxRuntimeEngine

        return difference(model, OnnxRuntimeEngine.of_file(work / ONNX))


def _test_tensors(
    model: SegmentationModel, description: Description, image: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """(raw grey values, logits) of the test: (1, C, H, W) and (1, K, h, w), of the second of the sample sizes."""
    side = max(sample_sizes(model.geometry)[1], _least_size(model.geometry))
    raw = np.random.default_rng(0).normal(100, 20, (1, model.in_channels, side, side)).astype(np.float32)
    if image is not None:
        part = np.asarray(image, dtype=np.float32)
        part = np.pad(part, [(0, 0), *[(0, max(0, side - length)) for length in part.shape[1:]]], mode="reflect")
        raw = np.ascontiguousarray(part[None, :, :side, :side])
    given = raw
    if description.normalized:
        axes = (2, 3)
        given = (raw - raw.mean(axes, keepdims=True)) / (raw.std(axes, keepdims=True) + _EPS)
    with torch.no_grad():
        return raw, model(torch.from_numpy(given)).numpy()


def _least_size(geometry: Geometry) -> int:
    """The smallest legal input that has a pixel which the halo leaves."""
    return first_size(geometry, max(geometry.smallest_input, 2 * geometry.spoilt + 1))


def _described(
    spec: Any,
    model: SegmentationModel,
    description: Description,
    work: Path,
    name: str | None,
    license: str | None,
    authors: Sequence[str],
    cite: Sequence[Mapping[str, str]],
) -> Any:
    """The model description; paths are those in ``work``."""
    geometry = description.geometry
    least = _least_size(geometry)
    size = spec.ParameterizedSize(min=least, step=geometry.step)
    axes = [spec.SpaceInputAxis(id=spec.AxisId(axis), size=size) for axis in "yx"]
    source, result = spec.TensorId(INPUT), spec.TensorId(OUTPUT)
    outputs = []
    for axis in "yx":
        same = spec.SizeReference(tensor_id=source, axis_id=spec.AxisId(axis), offset=-2 * geometry.margin)
        if geometry.spoilt:
            outputs.append(spec.SpaceOutputAxisWithHalo(id=spec.AxisId(axis), size=same, halo=geometry.spoilt))
        else:
            outputs.append(spec.SpaceOutputAxis(id=spec.AxisId(axis), size=same))

    def channels(prefix: str, count: int) -> Any:
        return spec.ChannelAxis(channel_names=[spec.Identifier(f"{prefix}{index}") for index in range(count)])

    preprocessing = []
    if description.normalized:
        kwargs = spec.ZeroMeanUnitVarianceKwargs(axes=[spec.AxisId("y"), spec.AxisId("x")], eps=_EPS)
        preprocessing.append(spec.ZeroMeanUnitVarianceDescr(id="zero_mean_unit_variance", kwargs=kwargs))
    architecture = spec.ArchitectureFromLibraryDescr(
        callable=spec.Identifier("create"), kwargs=model.config, import_from="unet_fast.models"
    )
    state = spec.PytorchStateDictWeightsDescr(
        source=work / STATE_DICT,
        architecture=architecture,
        pytorch_version=spec.Version(torch.__version__.split("+")[0]),
    )

    def tested_by(file: str) -> dict[str, Any]:
        return {
            "test_tensor": spec.FileDescr(source=work / file),
            "data": spec.IntervalOrRatioDataDescr(type="float32"),
        }

    return spec.ModelDescr(
        name=name,
        description=f"{model.name} for segmentation, trained with unet_fast. {_about(description)}"[:1024],
        authors=[spec.Author(name=author) for author in authors],
        cite=[spec.CiteEntry(**entry) for entry in cite],
        license=license,
        documentation=spec.FileDescr(source=work / "README.md"),
        covers=[spec.FileDescr(source=work / "cover.png")],
        tags=["unet", "segmentation", "2d", "pytorch", "unet_fast"],
        attachments=[spec.FileDescr(source=work / WEIGHTS)],
        inputs=[
            spec.InputTensorDescr(
                id=source,
                axes=[spec.BatchAxis(), channels("channel", model.in_channels), *axes],
                **tested_by("test_input.npy"),
                preprocessing=preprocessing,
            )
        ],
        outputs=[
            spec.OutputTensorDescr(
                id=result,
                axes=[spec.BatchAxis(), channels("class", model.num_classes), *outputs],
                **tested_by("test_output.npy"),
            )
        ],
        weights=spec.WeightsDescr(
            pytorch_state_dict=state,
            onnx=spec.OnnxWeightsDescr(source=work / ONNX, opset_version=OPSET, parent="pytorch_state_dict"),
        ),
        config={KEY: {"attachment": WEIGHTS}},
    )


def _about(description: Description) -> str:
    metadata = description.metadata()
    return (
        f"Input sizes: {metadata['sizes']}. Normalisation: {metadata['normalization']}. Output: {metadata['output']}."
    )


def _write_cover(raw: np.ndarray, result: np.ndarray, path: Path) -> None:
    """Image and foreground side by side, as the cover that collections show."""
    from PIL import Image

    margin = (raw.shape[2] - result.shape[2]) // 2
    grey = raw[0, 0, margin : margin + result.shape[2], margin : margin + result.shape[3]]
    logits = torch.from_numpy(result)
    foreground = logits.sigmoid()[0, 0] if result.shape[1] == 1 else 1 - logits.softmax(1)[0, 0]
    low, high = np.percentile(grey, (1, 99))
    left = np.clip((grey - low) / max(high - low, 1e-9), 0, 1)
    both = np.concatenate([left, foreground.numpy()], axis=1)
    picture = Image.fromarray((255 * both).astype(np.uint8))
    scale = _COVER / max(picture.size)
    picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))).save(path)


# zipfile's own, those of its decompressors, and what it raises for passwords and unknown methods
_UNREADABLE = (
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,
    NotImplementedError,
    struct.error,
)


def read_package(path: Path) -> tuple[dict[str, torch.Tensor], Description]:
    """Weights and description of a package that :func:`write_package` wrote; nothing is unpickled.

    Raises ``InputError`` for another zip, or a damaged one; ``FileNotFoundError`` where there is none.
    """
    take_as_input(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if os.path.basename(name) == WEIGHTS]
            if not names:
                raise InputError(
                    f"{path} is not a package of this program: it holds no {WEIGHTS}; a package of another program can be "
                    "used through the .onnx inside it only if unet-fast export wrote that"
                )
            check_decoded(path, archive.getinfo(names[0]).file_size, path.stat().st_size)
            data = archive.read(names[0])
    except _UNREADABLE as error:
        raise InputError(f"{path} is not a zip file that can be read ({error}); copy or export it again") from error
    tensors, state = tensors_of(data, f"{names[0]} in {path}")
    return tensors, Description.read(state.get("description", {}), path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The libraries' running commentary is left out; what fails is raised."""
    try:
        from loguru import logger

        logger.disable("bioimageio")
    except ImportError:
        pass
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
