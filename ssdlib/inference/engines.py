"""What runs the network, chosen by name: one function gives a predictor whatever the engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from ssdlib.common.errors import ConfigError
from ssdlib.detector.model_file import read_metadata
from ssdlib.inference.detections import Detections
from ssdlib.inference.predictor import ImageLike, Predictor

ENGINES = ("torch", "onnx", "onnx-int8")
"""Names that `open_predictor` knows."""


class Engine(Protocol):
    """What every predictor offers; `ssdlib.inference.predictor.Predictor` is one."""

    class_names: tuple[str, ...]
    """Without background."""
    batch_size: int
    score_threshold: float

    def stream(self, images: Iterable[ImageLike]) -> Iterator[Detections]:
        """Detections of each image in order, in pixels of that image; `images` may be endless."""
        ...


def open_predictor(engine: str, weights: str | Path, **settings: Any) -> Engine:
    """The weights in the file `weights`, run by `engine`, one of `ENGINES`.

    The onnx engines export the weights on first use (`ssdlib.inference.onnx.engine.cached_onnx`), or take a
    ready .onnx file. `settings` are those of `ssdlib.inference.predictor.Predictor` (device, precision,
    score_threshold, iou_threshold, top_k, batch_size); onnx runs on the CPU, in the file's own precision.
    Raises ConfigError for an unknown engine, a missing extra or impossible settings and CheckpointError for
    weights that cannot be used.
    """
    if engine not in ENGINES:
        raise ConfigError(f"there is no engine {engine!r}: choose one of {', '.join(ENGINES)}")
    ready = Path(weights).suffix.lower() == ".onnx"
    if engine == "torch" and ready:
        raise ConfigError(f"{weights} is an ONNX file, which the engine torch cannot run: use --engine onnx")
    if engine == "torch":
        return Predictor.from_checkpoint(weights, **settings)
    from ssdlib.inference.onnx.engine import open_onnx  # an extra, and slow to import

    return open_onnx(file_for(engine, weights), int8=engine == "onnx-int8", **settings)


def file_for(engine: str, weights: str | Path) -> Path:
    """The file that an engine runs, for handing it on: .onnx files for the onnx engines, made on first use.

    Raises what `open_predictor` raises for them.
    """
    if engine == "torch" or Path(weights).suffix.lower() == ".onnx":
        return Path(weights)
    from ssdlib.inference.onnx.engine import cached_onnx

    return cached_onnx(weights, int8=engine == "onnx-int8")


def class_names_of(weights: str | Path) -> tuple[str, ...]:
    """The classes that weights or an .onnx file find, without making a network of them.

    Raises CheckpointError that names the file if it cannot be read.
    """
    if Path(weights).suffix.lower() != ".onnx":
        return tuple(read_metadata(weights)["config"]["class_names"])
    from ssdlib.inference.onnx.export import load_onnx, read_header

    return read_header(load_onnx(weights), weights).config.class_names
