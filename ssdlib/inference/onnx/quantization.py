"""An int8 network from a float one: static quantization by ONNX Runtime. Needs the extra `onnx`.

Each convolution computes with 8-bit weights (a scale for each output channel) and 8-bit inputs, whose range
was measured on images beforehand. https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssdlib.common.errors import ConfigError
from ssdlib.common.runtime import need_extra
from ssdlib.data.resize import resize_to
from ssdlib.inference.onnx.export import read_header, write_header

if TYPE_CHECKING:
    import onnx

    from ssdlib.data.dataset import DetectionDataset

METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
"""Ways to choose a range, with ONNX Runtime's names: `minmax` takes all of the range seen, `percentile` all
but the outermost 0.001 %, `entropy` the range that loses least information."""
IMAGES = 48
"""The number of images for calibration, unless another is given."""
AT_ONCE = 4
"""Images whose activations are held together: 0.2 GB each at the paper's width."""
QUANTIZED = ("Conv", "Relu", "MaxPool")
KEPT_FLOAT = ("loc_heads.", "class_heads.")
"""Weights whose convolutions stay in float, by the beginnings of their names."""


def calibration_images(dataset: DetectionDataset, count: int = IMAGES) -> np.ndarray:
    """(N, 3, 300, 300) uint8, N at most `count`, evenly spread over the data set. Labels play no part."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
    return np.stack([resize_to(dataset.image(index)) for index in chosen.tolist()])


def quantize(
    model: onnx.ModelProto, data: DetectionDataset, name: str, *, count: int = IMAGES, method: str = "minmax"
) -> onnx.ModelProto:
    """A raw fp32 model of `ssdlib.inference.onnx.export` in int8 (QDQ).

    Ranges are measured by `method`, one of `METHODS`, on `count` images of the data, which go by `name` in
    the file. Raises ConfigError for another method, no images, or without the extra.
    """
    need_extra("onnx", "onnx", "onnxruntime.quantization")
    import onnx
    from onnxruntime import quantization as ort

    if method not in METHODS:
        raise ConfigError(f"calibration must be one of {', '.join(METHODS)}, not {method!r}")
    if not len(data):
        raise ConfigError("int8 needs at least one image to measure ranges on")
    images = calibration_images(data, count)
    calibration = f"{len(images)} images of {name}, {method}"
    images = images[: len(images) // AT_ONCE * AT_ONCE] if len(images) > AT_ONCE else images
    with tempfile.TemporaryDirectory(prefix="ssdlib-int8-") as folder, _quiet():
        plain, prepared, quantized = (Path(folder) / f"{stem}.onnx" for stem in ("fp32", "prepared", "int8"))
        plain.write_bytes(model.SerializeToString())
        # ONNX's own shape inference is enough here; the symbolic one stumbles over L2Norm's Expand.
        ort.quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        heads = [
            node.name
            for node in onnx.load_model(prepared).graph.node
            if node.op_type == "Conv" and node.input[1].startswith(KEPT_FLOAT)
        ]
        ort.quantize_static(
            prepared,
            quantized,
            _reader(images),
            quant_format=ort.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_exclude=heads,
            per_channel=True,
            activation_type=ort.QuantType.QUInt8,  # with QInt8 weights: what VNNI multiplies
            weight_type=ort.QuantType.QInt8,
            calibrate_method=ort.CalibrationMethod[METHODS[method]],
            extra_options={
                "CalibStridedMinMax": min(AT_ONCE, len(images)),
                "CalibTensorRangeSymmetric": False,
            },
        )
        result = onnx.load_model(quantized)
    write_header(result, replace(read_header(model), precision="int8", calibration=calibration))
    return result


def _reader(images: np.ndarray) -> object:
    """A reader of the images one by one, within a range that ONNX Runtime sets."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.set_range(0, len(images))

        def __len__(self) -> int:
            return len(images)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.left = iter(images[start_index:end_index])

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {"images": image[None]}

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's remarks on the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
