"""The network run by ONNX Runtime on the CPU, in fp32 or int8. Needs the extra `onnx`."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssdlib.common import paths
from ssdlib.common.errors import CheckpointError, ConfigError, DataError, shell
from ssdlib.common.files import read_limited, sha256_of, write_bytes, write_text
from ssdlib.common.runtime import keep_freed_memory, need_extra
from ssdlib.common.terminal import say
from ssdlib.common.threads import threads
from ssdlib.config import BCCD_CLASSES, IMAGE_SIZE, ModelConfig
from ssdlib.detector.model_file import SHIPPED, SHIPPED_INT8, int8_sums, is_shipped_int8
from ssdlib.detector.priors import prior_array
from ssdlib.inference.image_detector import Found, ImageDetector
from ssdlib.inference.onnx.export import (
    RAW,
    OnnxHeader,
    export_weights,
    load_onnx,
    read_header,
    save_onnx,
    with_nms,
)
from ssdlib.inference.outputs import detect_objects

if TYPE_CHECKING:
    import onnx
    import torch

EXPORT_VERSION = 2
"""To be raised when export or quantization changes, so that files cached before are not used."""


class OnnxPredictor(ImageDetector):
    """A network in a file of `ssdlib export` (without NMS inside) that detects objects in images of any size.

    It has as many threads as `ssdlib.common.threads` says; `settings` are those of `ImageDetector`. Raises
    CheckpointError that names the file if it cannot be used, ConfigError for impossible settings or without
    the extra.
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
        if not Path(path).is_file():
            raise CheckpointError(
                f"no file {path}: make it with `{shell('ssdlib', 'export', '--out', path)}`"
            )
        ort = need_extra("onnx", "onnxruntime")
        # The package onnx, to look into a stranger's file, takes as long to import as all the rest.
        if is_shipped_int8(path):
            self._session = _open_session(ort, read_limited(path), path)
            header = OnnxHeader.from_metadata(self._session.get_modelmeta().custom_metadata_map, path)
            model = None
        else:
            model = load_onnx(path)
            header = read_header(model, path)
        if header.outputs != RAW:
            raise CheckpointError(
                f"{path} has NMS inside, with settings of its own: export it without --with-nms for this"
            )
        if precision not in ("auto", header.precision):
            raise ConfigError(f"{path} computes in {header.precision}, not in {precision}: leave that out")
        if model is not None:
            try:
                _check_graph(model, header.config)
            except Exception as error:  # those of ONNX have no common base but this
                raise _unusable(path, error) from error
            self._session = _open_session(ort, model.SerializeToString(), path)
        self._path = path
        self._priors = prior_array(header.config.priors)
        self.header, self.precision = header, header.precision
        super().__init__(header.config, **settings)

    def raw(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Network outputs for resized images (N, 3, 300, 300) uint8: locs (N, P, 4), logits (N, P, C)."""
        try:
            locs, logits = self._session.run(None, {"images": np.ascontiguousarray(pixels)})
        except Exception as error:  # ONNX Runtime's errors have no common base but this
            raise CheckpointError(
                f"{self._path} cannot be run ({str(error)[:1000]}). Export the weights again, or free some "
                "memory."
            ) from error
        shape = (len(pixels), len(self._priors))
        expected = ((*shape, 4), (*shape, self.header.config.num_classes))
        if (locs.shape, logits.shape) != expected or {locs.dtype.kind, logits.dtype.kind} != {"f"}:
            raise CheckpointError(f"{self._path} is no detector of ours: export the weights again.")
        return locs, logits

    def find(self, pixels: np.ndarray) -> list[Found]:
        """What is found in each of the resized images (N, 3, 300, 300) uint8: see `ImageDetector.find`."""
        locs, logits = self.raw(pixels)
        if not (np.isfinite(locs).all() and np.isfinite(logits).all()):
            raise FloatingPointError("the network's outputs")
        return detect_objects(locs, logits, self._priors, **self._limits)


_OPERATORS = {
    *("Add", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv", "DequantizeLinear", "Div"),
    *("Expand", "Flatten", "Gather", "Identity", "Max", "MaxPool", "Min", "Mul", "Pad", "Pow"),
    *("QuantizeLinear", "ReduceL2", "ReduceSum", "Relu", "Reshape", "Shape", "Slice", "Sqrt", "Squeeze"),
    *("Sub", "Transpose", "Unsqueeze"),
}
"""Of the exporter, in any version, and of the quantizer. None loops."""
_MOST_NODES, _MOST_STEP, _MOST_VALUES, _MOST_PRODUCTS = 2000, 16, 150_000_000, 120_000_000_000
"""Nodes; sides, strides and borders of their windows; for one image the values of all outputs, and the
multiplications. In int8 at the paper's width there are 200 nodes, 100 million values and, with 600 classes,
60 billion multiplications."""


def _check_graph(model: onnx.ModelProto, config: ModelConfig) -> None:
    """Raise ValueError, or an error of ONNX's, unless the model computes the outputs of a network of the
    config in time and memory that are known beforehand, and reads no other file."""
    import onnx

    graph, kinds = model.graph, onnx.AttributeProto
    tensors, foreign = list(graph.initializer), set()
    for node in graph.node:
        if node.domain or node.op_type not in _OPERATORS:
            foreign.add(node.op_type)
        for part in node.attribute:
            tensors += [part.t] if part.type == kinds.TENSOR else []
            plain = part.type in (kinds.INT, kinds.INTS, kinds.FLOAT, kinds.FLOATS, kinds.TENSOR)
            near = max(map(abs, (part.i, *part.ints))) <= _MOST_STEP
            if not (plain or part.name == "auto_pad") or not (near or node.op_type == "Constant"):
                foreign.add(f"{node.op_type} with {part.name}")
    if foreign or model.functions or graph.sparse_initializer or len(graph.node) > _MOST_NODES:
        raise ValueError(f"it has parts that no export has: {', '.join(sorted(foreign))[:200]}")
    for tensor in tensors:
        if tensor.data_location or tensor.external_data:
            raise ValueError(f"its tensor {tensor.name:.80} lies in another file")
        onnx.numpy_helper.to_array(tensor)  # an error where it claims more values than it has
    names = [[one.name for one in side] for side in (graph.input, graph.output)]
    if names != [["images"], ["locs", "logits"]]:
        raise ValueError("it has other inputs and outputs than a detector")
    for batch in (1, 8):
        shapes = _shapes(model, batch)
        expected = [(batch, config.priors.count, values) for values in (4, config.num_classes)]
        if [shapes[name] for name in names[1]] != expected:
            raise ValueError("its outputs are not those of its own config")
        values = sum(math.prod(shapes[name]) for node in graph.node for name in node.output if name)
        products = sum(
            math.prod(shapes[node.input[1]]) * math.prod(shapes[node.output[0]][2:])
            for node in graph.node
            if node.op_type == "Conv"
        )
        if values > _MOST_VALUES * batch or products > _MOST_PRODUCTS:
            raise ValueError("it computes more than a detector does")


def _shapes(model: onnx.ModelProto, batch: int) -> dict[str, tuple[int, ...]]:
    """The shape of each value, for so many images. Raises ValueError where one is not known beforehand."""
    import onnx

    declare, kinds = onnx.helper.make_tensor_value_info, onnx.TensorProto
    given = {"images": (batch, 3, IMAGE_SIZE, IMAGE_SIZE)}
    given |= {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    bare.graph.name = "shapes"
    bare.graph.node.extend(model.graph.node)
    bare.graph.input.append(declare("images", kinds.UINT8, given["images"]))
    bare.graph.output.extend(declare(name, kinds.FLOAT, None) for name in ("locs", "logits"))
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= 16:  # it may be a shape
            bare.graph.initializer.append(tensor)
        else:
            bare.graph.input.append(declare(tensor.name, tensor.data_type, tensor.dims))
    inferred = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        sides = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(side.HasField("dim_value") for side in sides):
            given[value.name] = tuple(side.dim_value for side in sides)
    unknown = {name for node in model.graph.node for name in node.output if name} - given.keys()
    if unknown or min(map(min, filter(None, given.values()))) < 0:
        raise ValueError(f"the size of {min(unknown, default='a part'):.80} is not known beforehand")
    return given


def _unusable(path: str | Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} cannot be run ({str(error)[:1000]}). Export the weights again.")


def _open_session(ort: Any, content: bytes, path: str | Path) -> Any:
    """A session of the model in these bytes of `path`. Raises CheckpointError if there can be none."""
    # Its own pool of memory asks for new pages where glibc has some: a third of the first batch's time.
    keep_freed_memory()
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.intra_op_num_threads = threads()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # what is the matter, its errors say as well
    # Threads that wait for the next layer by spinning would take the cores from those that decode images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base but this
        raise _unusable(path, error) from error


def cached_onnx(weights: str | Path, *, int8: bool = False, folder: str | Path | None = None) -> Path:
    """The path of the weights as a raw ONNX file in `folder` (data/cache/onnx), made now if it is not there.

    In int8 the shipped weights have one beside them.
    The name holds the hash of the weights, so changed weights are exported anew. int8 is calibrated on BCCD's
    train images where BCCD is at hand (nothing is downloaded), else on synthetic smears; the name says which.
    Raises ConfigError for int8 of a network for other classes than BCCD's, which neither would suit.
    """
    folder = Path(folder) if folder is not None else paths.data_folder() / "cache" / "onnx"
    if not Path(weights).is_file():
        raise CheckpointError(f"no weights at {weights}. Check the path.")
    if int8 and Path(weights).resolve() == SHIPPED and is_shipped_int8(SHIPPED_INT8):
        return SHIPPED_INT8
    from ssdlib.data.source import extra_smears, resolve

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
        from ssdlib.inference.onnx.quantization import IMAGES, quantize

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


def renew_shipped_int8() -> Path:
    """The shipped int8 file, made anew from the shipped weights, with its sums beside it."""
    made = cached_onnx(SHIPPED, int8=True)
    if made != SHIPPED_INT8:
        is_shipped_int8.cache_clear()
        write_bytes(SHIPPED_INT8, made.read_bytes())
        write_text(SHIPPED_INT8.with_suffix(".sha256"), int8_sums(SHIPPED_INT8))
    return SHIPPED_INT8


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
    from ssdlib.data.source import resolve
    from ssdlib.inference.onnx.quantization import quantize

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
