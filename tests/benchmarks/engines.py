"""Speed and cost of the engines beside torchvision's SSD300: `python -m tests.benchmarks --only engines`.

In one process they take turns from image file to boxes. The start, the first result and the memory are those
of a new process for each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from ssdlib.common.tables import Table, number
from ssdlib.config import RECIPES, SHIPPED_MODEL
from ssdlib.detector.model_file import SHIPPED, save_model
from ssdlib.detector.weights import build_model
from ssdlib.inference.detections import Detector
from ssdlib.inference.engines import open_predictor
from ssdlib.inference.onnx.engine import cached_onnx
from ssdlib.inference.onnx.export import load_onnx, save_onnx
from ssdlib.inference.onnx.quantization import quantize
from tests.benchmarks.common import Measurement, run, targets
from tests.benchmarks.suites import TORCHVISION, prefer_background, torchvision_detection
from tests.benchmarks.timing import BUSY, Bench

WIDTHS = (1.0, 0.5)
"""The paper's network, whose work is torchvision's, and the shipped one's."""
CALIBRATED_ON = 8
"""Images: ranges of a network that nobody trained need no more."""
REPEATS = 3
"""Starts of each program, of which the median counts."""


def measure(bench: Bench) -> Measurement:
    """Seconds an image in this process; of a new one, seconds to the first result, memory and file size."""
    paths, batch = bench.files("test"), str(bench.batch)
    functions: dict[str, Callable[[], object]] = {TORCHVISION: torchvision_detection(bench, paths)}
    commands: dict[str, list[str]] = {TORCHVISION: [sys.executable, "-c", _THEIRS, batch]}
    files: dict[str, Path] = {}
    detect = [sys.executable, "-m", "ssdlib", "detect", "--quiet", "--batch", batch]
    for width in WIDTHS:
        for engine, file in _files(bench, width).items():
            name = f"{engine}, width {width:g}"
            predictor = open_predictor(engine, file, batch_size=bench.batch)
            functions[name] = partial(_look_once, predictor, paths)
            commands[name] = [*detect, "--engine", engine, "--weights", str(file)]
            files[name] = file
    timings = bench.take_turns("engines, file to boxes, per image", functions, units=len(paths))
    rows = [
        {
            "name": name,
            "seconds_an_image": timings.median(name),
            "times_torchvision": timings.ratio(TORCHVISION, name) if timings.quiet else None,
            "first_result_seconds": median(run([*command, str(paths[0])]).seconds for _ in range(REPEATS)),
            "peak_mb": run([*command, *map(str, paths)]).first_mb,
            "file_mb": files[name].stat().st_size / 1e6 if name in files else None,
        }
        for name, command in commands.items()
    ]
    reached = {
        f"engines: {name}, times as fast as {TORCHVISION}": timings.ratio(TORCHVISION, name)
        if timings.quiet
        else None
        for name in ("torch, width 0.5", "onnx-int8, width 0.5")
    }
    values = {"rows": rows, "timings": timings.to_dict()}
    return Measurement(values, [table(rows)], targets(reached), timings.conditions())


def _look_once(predictor: Detector, paths: list[Path]) -> None:
    """Detect in one view of each image; `detect` looks at more where it finds nothing."""
    for _ in predictor.stream(paths):
        pass


def table(measured: Iterable[Mapping[str, Any]]) -> Table:
    """A table of each engine's speed, time to the first result of a new process, memory and file size."""
    header = ("engine", "ms/image", f"x {TORCHVISION}", "first result s", "peak MB", "file MB")
    rows = [
        (
            row["name"],
            f"{1e3 * row['seconds_an_image']:.1f}",
            number(row["times_torchvision"] or BUSY, ".2f"),
            f"{row['first_result_seconds']:.2f}",
            f"{row['peak_mb']:.0f}",
            number(row["file_mb"], ".0f"),
        )
        for row in measured
    ]
    return Table(header, rows)


def _files(bench: Bench, width: float) -> dict[str, Path]:
    """A file for each engine: the shipped weights at their width, else random ones that see background."""
    weights = SHIPPED
    if width != SHIPPED_MODEL.width or not SHIPPED.is_file():
        model = build_model(RECIPES["scratch"].model.replace(width=width))
        prefer_background(model.class_heads.convs)
        weights = bench.folder / f"width-{width:g}.safetensors"
        save_model(model, weights)
    plain = cached_onnx(weights, folder=bench.folder)
    int8 = bench.folder / f"width-{width:g}-int8.onnx"
    train = bench.source.dataset("train")
    save_onnx(quantize(load_onnx(plain), train, "smears", count=CALIBRATED_ON), int8)
    return {"torch": weights, "onnx": plain, "onnx-int8": int8}


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
