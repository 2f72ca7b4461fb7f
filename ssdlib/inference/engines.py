"""Engines, the programs that run the network: `open_predictor` gives a predictor on any of them by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssdlib.common.errors import ConfigError
from ssdlib.config import ModelConfig
from ssdlib.detector.model_file import read_metadata
from ssdlib.inference.detections import Detector

ENGINES = ("torch", "onnx", "onnx-int8")
"""Names that `open_predictor` knows."""


def open_predictor(engine: str, weights: str | Path, **settings: Any) -> Detector:
    """A predictor with the weights in the file `weights`, run by `engine`, one of `ENGINES`.

    `settings` are those of `ssdlib.inference.predictor.Predictor`; onnx runs on the CPU, in the file's own
    precision. Raises ConfigError for an unknown engine, a missing extra or impossible settings and
    CheckpointError for weights that cannot be used.
    """
    if engine not in ENGINES:
        raise ConfigError(f"there is no engine {engine!r}: choose one of {', '.join(ENGINES)}")
    if engine == "torch":
        if _is_onnx(weights):
            raise ConfigError(
                f"{weights} is an ONNX file, which the engine torch cannot run: use --engine onnx"
            )
        try:
            from ssdlib.inference.predictor import Predictor  # PyTorch takes seconds to import
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"the engine torch needs the package {error.name}, which is not installed: pip install torch "
                "torchvision, or take --engine onnx-int8"
            ) from error
        return Predictor.from_checkpoint(weights, **settings)
    from ssdlib.inference.onnx.engine import OnnxPredictor  # an extra

    predictor = OnnxPredictor(file_for(engine, weights), **settings)
    if engine == "onnx-int8" and predictor.precision != "int8":
        raise ConfigError(f"{weights} is {predictor.precision}: use --engine onnx, or export with --int8")
    return predictor


def file_for(engine: str, weights: str | Path) -> Path:
    """The file that an engine runs: for the onnx engines an .onnx file, made from the weights on first use.

    Raises what `open_predictor` raises for them.
    """
    if engine == "torch" or _is_onnx(weights):
        return Path(weights)
    from ssdlib.inference.onnx.engine import cached_onnx

    return cached_onnx(weights, int8=engine == "onnx-int8")


def config_of(weights: str | Path) -> ModelConfig:
    """The network's settings in the header of a weights file or an .onnx file.

    Raises CheckpointError that names the file if it cannot be read.
    """
    if not _is_onnx(weights):
        return ModelConfig.from_dict(read_metadata(weights)["config"])
    from ssdlib.inference.onnx.export import load_onnx, read_header

    return read_header(load_onnx(weights), weights).config


def _is_onnx(weights: str | Path) -> bool:
    return Path(weights).suffix.lower() == ".onnx"
