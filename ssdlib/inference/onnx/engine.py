"""The network run by ONNX Runtime on the CPU, in fp32 or int8. Needs the extra `onnx`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssdlib.common import paths
from ssdlib.common.errors import CheckpointError, ConfigError, DataError, shell
from ssdlib.common.files import sha256_of
from ssdlib.common.runtime import need_extra
from ssdlib.common.terminal import say
from ssdlib.config import BCCD_CLASSES
from ssdlib.data.source import extra_smears, resolve
from ssdlib.detector.model import IMAGE_SIZE
from ssdlib.detector.priors import make_priors
from ssdlib.inference.onnx.export import (
    RAW,
    OnnxHeader,
    export_weights,
    load_onnx,
    read_header,
    save_onnx,
    with_nms,
)
from ssdlib.inference.onnx.quantization import IMAGES, quantize
from ssdlib.inference.predictor import ImageDetector

EXPORT_VERSION = 2
"""To be raised when export or quantization changes, so that files cached before are not used."""


class OnnxPredictor(ImageDetector):
    """A network in a file of `ssdlib export` (without NMS inside) that detects objects in images of any size.

    It has as many threads as PyTorch; `settings` are those of `ImageDetector`. Raises CheckpointError that
    names the file if it cannot be used, ConfigError for impossible settings or without the extra.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        **settings: Any,
    ) -> None:
        if str(device) not in ("auto", "cpu"):
            raise ConfigError(f"ONNX Runtime runs on the CPU here, not on {device}: use --engine torch there")
        self._session = _open_session(Path(path))
        header = OnnxHeader.from_metadata(self._session.get_modelmeta().custom_metadata_map, path)
        if header.outputs != RAW:
            raise CheckpointError(
                f"{path} has NMS inside, with settings of its own: export it without --with-nms for this"
            )
        if precision not in ("auto", header.precision):
            raise ConfigError(f"{path} computes in {header.precision}, not in {precision}: leave that out")
        names = (
            [one.name for one in self._session.get_inputs()],
            [one.name for one in self._session.get_outputs()],
        )
        if names != (["images"], ["locs", "logits"]):
            raise CheckpointError(f"{path} has other outputs than a detector: export the weights again.")
        self._path = path
        self.header, self.precision = header, header.precision
        super().__init__(header.config, make_priors(header.config.priors, IMAGE_SIZE), **settings)

    def raw(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Network outputs for resized images (N, 3, 300, 300) uint8: locs (N, P, 4), logits (N, P, C)."""
        try:
            locs, logits = self._session.run(None, {"images": pixels.cpu().contiguous().numpy()})
        except Exception as error:  # ONNX Runtime's errors have no common base but this
            raise CheckpointError(
                f"{self._path} cannot be run: {error}. Export the weights again, or free some memory."
            ) from error
        shape = (len(pixels), len(self.priors))
        expected = ((*shape, 4), (*shape, self.header.config.num_classes))
        if (locs.shape, logits.shape) != expected or {locs.dtype.kind, logits.dtype.kind} != {"f"}:
            raise CheckpointError(f"{self._path} is no detector of ours: export the weights again.")
        return torch.from_numpy(locs), torch.from_numpy(logits)


def _open_session(path: Path) -> Any:
    need_extra("onnx", "onnxruntime")
    import onnxruntime as ort

    if not path.is_file():
        raise CheckpointError(f"no file {path}: make it with `{shell('ssdlib', 'export', '--out', path)}`")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # Threads that wait for the next layer by spinning would take the cores from those that decode images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base but this
        raise CheckpointError(f"{path} cannot be run: {error}. Export the weights again.") from error


def cached_onnx(weights: str | Path, *, int8: bool = False, folder: str | Path | None = None) -> Path:
    """The path of the weights as a raw ONNX file in `folder` (data/cache/onnx), made now if it is not there.

    The name holds the hash of the weights, so changed weights are exported anew. int8 is calibrated on BCCD's
    train images where BCCD is at hand (nothing is downloaded), else on synthetic smears; the name says which.
    Raises ConfigError for int8 of a network for other classes than BCCD's, which neither would suit.
    """
    folder = Path(folder) if folder is not None else paths.data_folder() / "cache" / "onnx"
    if not Path(weights).is_file():
        raise CheckpointError(f"no weights at {weights}. Check the path.")
    bccd = None
    if int8:
        with suppress(DataError):
            bccd = resolve("bccd", progress=False, download=False)
    on = "bccd" if bccd else "smears"
    made = f"int8-{on}" if int8 else "fp32"
    path = folder / f"{sha256_of(weights)[:16]}-{EXPORT_VERSION}-{made}.onnx"
    if path.exists():
        return path
    if int8:
        model = load_onnx(cached_onnx(weights, folder=folder))
        names = read_header(model).config.class_names
        if names != BCCD_CLASSES:
            raise ConfigError(
                "int8 is calibrated on images like those to come, and this network finds "
                f"{', '.join(names)}. Say on which: ssdlib export --int8 --data FOLDER --weights ... --out "
                "model.onnx, then give --weights model.onnx"
            )
        images = bccd.dataset("train") if bccd else extra_smears(IMAGES, progress=False)
        model = quantize(model, images, f"{on} train")
    else:
        model = export_weights(weights)
    save_onnx(model, path)
    calibration = read_header(model).calibration
    say(f"made {path}, once{f', calibrated on {calibration}' if calibration else ''}", file=sys.stderr)
    return path


def export_file(
    weights: str | Path,
    out: str | Path,
    *,
    calibrate_on: tuple[str, str] | None = None,
    nms: Mapping[str, Any] | None = None,
    progress: bool = False,
    **calibration: Any,
) -> None:
    """Write weights as ONNX: in int8 where `calibrate_on`, data and split, is given; with NMS inside where
    `nms`, the settings of `ssdlib.inference.onnx.export.with_nms`, is given.

    `calibration` are settings of `ssdlib.inference.onnx.quantization.quantize`. Raises SsdError for what
    cannot be read or written.
    """
    need_extra("onnx", "onnx", "onnxscript", "onnxruntime")
    out = Path(out)
    if out.suffix.lower() != ".onnx":
        raise ConfigError(f"{out} is to be an ONNX file: let its name end in .onnx")
    source = resolve(calibrate_on[0], progress=progress) if calibrate_on else None
    model = load_onnx(cached_onnx(weights))
    if source:
        split = calibrate_on[1]
        model = quantize(model, source.dataset(split), f"{source.kind} {split}", **calibration)
    if nms is not None:
        model = with_nms(model, **nms)
    save_onnx(model, out)
