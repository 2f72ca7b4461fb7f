"""Speed and cost of the engines beside torchvision's SSD300: `python -m tests.benchmarks --only engines`.

In one process they take turns from image file to boxes. The start, the first result and the memory are those
of a new process for each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from ssdlib.common.tables import Table, number
from ssdlib.config import SHIPPED_MODEL, ModelConfig
from ssdlib.detector.model_file import SHIPPED, save_model
from ssdlib.detector.weights import build_model
from ssdlib.inference.engines import open_predictor
from ssdlib.inference.onnx.engine import cached_onnx
from ssdlib.inference.onnx.export import load_onnx, save_onnx
from ssdlib.inference.onnx.quantization import quantize
from tests.benchmarks.common import run, target
from tests.benchmarks.suites import TORCHVISION, WHOLE, Bench, prefer_background, torchvision_detection
from tests.benchmarks.timing import Timings

WIDTHS = (1.0, 0.5)
"""The paper's network, whose work is torchvision's, and the shipped one's."""
TARGETS = (("torch", 2.0), ("onnx-int8", 4.3))
"""At least so many times torchvision's throughput, at the width of the shipped network."""
SHIPPED_WIDTH = 0.5
CALIBRATED_ON = 8
"""Images: ranges of a network that nobody trained need no more."""
REPEATS = 3
"""Starts of each program, of which the median counts."""


def measure(bench: Bench) -> dict[str, Any]:
    """Seconds an image in this process; of a new one, seconds to the first result, memory and file size."""
    paths, files = bench.test_files(), {}
    functions: dict[str, Callable[[], object]] = {TORCHVISION: torchvision_detection(bench, paths)}
    for width in WIDTHS:
        for engine, file in _files(bench, width).items():
            predictor = open_predictor(engine, file, batch_size=bench.batch)
            files[_name(engine, width)] = engine, file
            functions[_name(engine, width)] = partial(predictor.detect, paths)
    timings = bench.take_turns("engines, file to boxes, per image", functions, units=len(paths))
    batch = str(bench.batch)
    wholes = {TORCHVISION: _whole([sys.executable, "-c", _THEIRS, batch], paths)}
    for name, (engine, file) in files.items():
        command = [sys.executable, "-m", "ssdlib", "detect", "--quiet", "--batch", batch]
        wholes[name] = _whole([*command, "--engine", engine, "--weights", str(file)], paths, file)
    rows = [
        {
            "name": name,
            "seconds_an_image": timings.median(name),
            "times_torchvision": timings.ratio(TORCHVISION, name),
            **whole,
        }
        for name, whole in wholes.items()
    ]
    return {"rows": rows, "timings": timings.to_dict(), "targets": targets(timings)}


def targets(timings: Timings) -> list[dict[str, Any]]:
    """The targets with what was measured, at the shipped network's width."""
    names = {_name(engine, SHIPPED_WIDTH): wanted for engine, wanted in TARGETS}
    return [
        target(f"engines: {name}, times as fast as {TORCHVISION}", timings.ratio(TORCHVISION, name), wanted)
        for name, wanted in names.items()
    ]


def tables(measured: Mapping[str, Any]) -> list[Table]:
    """One table: speed of each engine, time to the first result of a new process, memory and file size."""
    header = ("engine", "ms/image", f"x {TORCHVISION}", "first result s", "peak MB", "file MB")
    rows = [
        (
            row["name"],
            f"{1e3 * row['seconds_an_image']:.1f}",
            f"{row['times_torchvision']:.2f}",
            f"{row['first_result_seconds']:.2f}",
            f"{row['peak_mb']:.0f}",
            number(row["file_mb"], ".0f"),
        )
        for row in measured["rows"]
    ]
    return [Table(header, rows)]


def _name(engine: str, width: float) -> str:
    return f"{engine}, width {width:g}"


def _files(bench: Bench, width: float) -> dict[str, Path]:
    """A file for each engine: the shipped weights at their width, else random ones that see background."""
    weights = SHIPPED
    if width != SHIPPED_MODEL.width or not SHIPPED.is_file():
        model = build_model(_model(width))
        prefer_background(model.class_heads.convs)
        weights = bench.folder / f"width-{width:g}.safetensors"
        save_model(model, weights)
    plain = cached_onnx(weights, folder=bench.folder)
    int8 = bench.folder / f"width-{width:g}-int8.onnx"
    train = bench.source.dataset("train")
    save_onnx(quantize(load_onnx(plain), train, "smears", count=CALIBRATED_ON), int8)
    return {"torch": weights, "onnx": plain, "onnx-int8": int8}


def _model(width: float) -> ModelConfig:
    return WHOLE.model.replace(width=width)


# --- whole processes -------------------------------------------------------------------------------------

_THEIRS = """
import sys
import torch
from torchvision.io import decode_image
from torchvision.models.detection import ssd300_vgg16

model = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=4).eval()
batch, files = int(sys.argv[1]), sys.argv[2:]
with torch.inference_mode():
    for start in range(0, len(files), batch):
        model([decode_image(file).float() / 255 for file in files[start : start + batch]])
"""
"""torchvision's detector as a program of its own."""


def _whole(command: list[str], paths: list[Path], file: Path | None = None) -> dict[str, float | None]:
    """Median seconds from the command to its end with one image, peak memory with all, size of the file."""
    return {
        "first_result_seconds": median(run([*command, str(paths[0])]).seconds for _ in range(REPEATS)),
        "peak_mb": run([*command, *map(str, paths)]).first_mb,
        "file_mb": file.stat().st_size / 1e6 if file else None,
    }
