"""The network run by ONNX Runtime on the CPU, in fp32 or int8. Needs the extra `onnx`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssdlib.config import BCCD_CLASSES
from ssdlib.data import bccd
from ssdlib.data.dataset import DetectionDataset
from ssdlib.errors import CheckpointError, ConfigError, DataError
from ssdlib.export import (
    RAW,
    OnnxHeader,
    export_weights,
    file_fingerprint,
    load_onnx,
    need_onnx,
    read_header,
    save_onnx,
)
from ssdlib.model import IMAGE_SIZE
from ssdlib.predict import ImageDetector
from ssdlib.priors import make_priors
from ssdlib.quantization import IMAGES, calibration_images, quantise
from ssdlib.runtime import available_cores

EXPORT_VERSION = 1
"""Raise it when export or quantisation changes: cached files of before are then not used."""


class OnnxPredictor(ImageDetector):
    """A file of `ssdlib export` (without NMS inside) ready to look at images of any size.

    `threads` of the network, as many as there are cores unless given; `settings` are those of
    `ssdlib.predict.ImageDetector`. Raises CheckpointError that names the file if it cannot be used,
    ConfigError for impossible settings or without the extra.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        threads: int | None = None,
        **settings: Any,
    ) -> None:
        if str(device) not in ("auto", "cpu"):
            raise ConfigError(f"ONNX Runtime runs on the CPU here, not on {device}: use --engine torch there")
        self._session = _open_session(Path(path), threads or available_cores())
        header = OnnxHeader.from_metadata(self._session.get_modelmeta().custom_metadata_map, path)
        if header.outputs != RAW:
            raise CheckpointError(
                f"{path} has NMS inside, with settings of its own: export it without --with-nms for this"
            )
        if precision not in ("auto", header.precision):
            raise ConfigError(f"{path} computes in {header.precision}, not in {precision}: leave that out")
        self.header, self.precision = header, header.precision
        super().__init__(header.config, make_priors(header.config.priors, IMAGE_SIZE), **settings)

    def raw(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Network outputs for resized images (N, 3, 300, 300) uint8: locs (N, P, 4), logits (N, P, C)."""
        outputs = self._session.run(None, {"images": pixels.cpu().contiguous().numpy()})
        locs, logits = map(torch.from_numpy, outputs)
        return locs, logits


def _open_session(path: Path, threads: int) -> Any:
    need_onnx("onnxruntime")
    import onnxruntime as ort

    if not path.is_file():
        raise CheckpointError(f"there is no {path}: make it with `ssdlib export --out {path}`")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # Threads that wait for the next layer by spinning would take the cores from those that decode images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base but this
        raise CheckpointError(f"{path} cannot be run: {error}. Export the weights again.") from error


def open_onnx(weights: str | Path, *, int8: bool = False, **settings: Any) -> OnnxPredictor:
    """A predictor from an .onnx file, or from weights, which are exported on first use and kept.

    Raises CheckpointError for files that cannot be used, ConfigError if int8 is asked of an fp32 file.
    """
    path = Path(weights)
    if path.suffix.lower() != ".onnx":
        return OnnxPredictor(cached_onnx(path, int8=int8), **settings)
    predictor = OnnxPredictor(path, **settings)
    if int8 and predictor.precision != "int8":
        raise ConfigError(f"{path} is {predictor.precision}: use --engine onnx, or export with --int8")
    return predictor


def cached_onnx(weights: str | Path, *, int8: bool = False, folder: str | Path | None = None) -> Path:
    """The weights as a raw ONNX file in `folder` (data/cache/onnx), made now if it is not there.

    The name holds the hash of the weights, so changed weights are exported anew. int8 is calibrated on BCCD's
    train images where BCCD is at hand, else on synthetic smears, which is said and part of the name.
    """
    folder = Path(folder) if folder is not None else bccd.data_folder() / "cache" / "onnx"
    if not Path(weights).is_file():
        raise CheckpointError(f"no weights at {weights}. Check the path.")
    stem = f"{file_fingerprint(weights)[:16]}-{EXPORT_VERSION}"
    plain = folder / f"{stem}-fp32.onnx"
    if not int8:
        return plain if plain.exists() else _make(plain, lambda: export_weights(weights))
    kind = calibration_kind()
    path = folder / f"{stem}-int8-{kind}.onnx"
    if path.exists():
        return path
    model = load_onnx(cached_onnx(weights, folder=folder))
    names = read_header(model).config.class_names
    if names != BCCD_CLASSES:
        raise ConfigError(
            f"int8 is calibrated on images like those to come, and this network finds {', '.join(names)}. "
            "Say on which: ssdlib export --int8 --data FOLDER --weights ... --out model.onnx, then give "
            "--weights model.onnx"
        )
    images = calibration_images(calibration_data(kind))
    words = {"bccd": "BCCD train", "smears": "synthetic smears"}[kind]
    return _make(path, lambda: quantise(model, images, f"{len(images)} images of {words}"))


def calibration_kind() -> str:
    """`bccd` where it is at hand (nothing is downloaded), else `smears`."""
    try:
        bccd.resolve("bccd", progress=False, download=False)
    except DataError:
        return "smears"
    return "bccd"


def calibration_data(kind: str) -> DetectionDataset:
    """Training images: BCCD's, or smears drawn for this once."""
    if kind == "bccd":
        return bccd.resolve("bccd", progress=False, download=False).dataset("train")
    return bccd.extra_smears(IMAGES, progress=False)


def _make(path: Path, build: Any) -> Path:
    print(f"making {path} (once)", file=sys.stderr)
    save_onnx(build(), path)
    return path
