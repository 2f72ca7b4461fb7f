"""From file to boxes by engine, beside torchvision's SSD300: `python -m tests.benchmarks --only engines`.

Time is taken in turns in one process. What a process costs as a whole, start, first image and memory, is
measured in a new process for each.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from ssdlib.config import SHIPPED_MODEL, ModelConfig
from ssdlib.detector.model_file import SHIPPED, save_model
from ssdlib.detector.weights import build_model
from ssdlib.inference.engines import open_predictor
from ssdlib.inference.onnx.engine import cached_onnx
from ssdlib.inference.onnx.export import load_onnx, save_onnx
from ssdlib.inference.onnx.quantization import quantize
from tests.benchmarks.suites import TORCHVISION, WHOLE, Bench, prefer_background, torchvision_detection
from tests.benchmarks.timing import Timings

WIDTHS = (1.0, 0.5)
"""The paper's network, whose work is torchvision's, and the shipped one's."""
BARS = (("torch", 2.0), ("onnx-int8", 4.3))
"""At least so many times torchvision's throughput."""
BAR_WIDTH = 0.5
"""Of the shipped network."""
CALIBRATED_ON = 8
"""Images: ranges of a network that nobody trained need no more."""
REPEATS = 3
"""Starts of each program, of which the median counts."""


def measure(bench: Bench) -> dict[str, Any]:
    """Seconds an image in this process; of a new one, seconds to the first result, memory and file size."""
    paths, files = bench.test_files(), {}
    contestants: dict[str, Callable[[], object]] = {TORCHVISION: torchvision_detection(bench, paths)}
    for width in WIDTHS:
        for engine, file in _files(bench, width).items():
            predictor = open_predictor(engine, file, batch_size=bench.batch)
            files[_name(engine, width)] = engine, file
            contestants[_name(engine, width)] = partial(predictor.detect, paths)
    timings = bench.take_turns("engines, file to boxes, per image", contestants, units=len(paths))
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
    return {"rows": rows, "timings": timings.to_dict(), "bars": judge(timings)}


def judge(timings: Timings) -> list[dict[str, Any]]:
    """Each bar with what was measured, at the shipped network's width."""
    bars = []
    for engine, wanted in BARS:
        measured = timings.ratio(TORCHVISION, _name(engine, BAR_WIDTH))
        name = f"engines: {_name(engine, BAR_WIDTH)} against {TORCHVISION}"
        bars.append({"name": name, "wanted": wanted, "measured": measured, "passed": measured >= wanted})
    return bars


def report(measured: dict[str, Any]) -> str:
    """The table and the bars, for people."""
    lines = [
        "engine                  ms/image  x torchvision  first result s  peak MB  file MB",
    ]
    for row in measured["rows"]:
        peak, size = ("n/a" if row[key] is None else f"{row[key]:.0f}" for key in ("peak_mb", "file_mb"))
        lines.append(
            f"{row['name']:22} {1e3 * row['seconds_an_image']:9.1f} {row['times_torchvision']:13.2f}x "
            f"{row['first_result_seconds']:15.2f} {peak:>8} {size:>8}"
        )
    lines += ["", "bars"]
    lines += [
        f"  {'PASS' if bar['passed'] else 'miss'}  {bar['name']:50} {bar['measured']:5.2f}x  "
        f"(bar {bar['wanted']}x)"
        for bar in measured["bars"]
    ]
    return "\n".join(lines)


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
    first = [_run([*command, str(paths[0])])[0] for _ in range(REPEATS)]
    peak = _run([*command, *map(str, paths)])[1]
    return {
        "first_result_seconds": median(first),
        "peak_mb": peak,
        "file_mb": file.stat().st_size / 1e6 if file else None,
    }


def _run(command: list[str]) -> tuple[float, float | None]:
    """Seconds that a process takes and the most memory (MB) it had; None where /proc does not tell."""
    began, peak = time.perf_counter(), None
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            # Not the rusage of children: that counts what the parent held when it started them.
            peak = peak_memory(process.pid) or peak
            time.sleep(0.01)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"ended with {process.returncode}: {' '.join(command[:4])} ...")
    return seconds, peak


def peak_memory(pid: int | str = "self") -> float | None:
    """The most memory (MB) that a process has held so far; None where the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), None)
