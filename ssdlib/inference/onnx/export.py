"""The network as an ONNX file, with or without decoding and NMS inside. Needs the extra `onnx`.

https://onnx.ai; opset 18 and IR version 8. ONNX Runtime 1.15.0 is the oldest that was seen to run the files.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssdlib.common.errors import CheckpointError, ConfigError
from ssdlib.common.files import read_limited, sha256_of, write_bytes
from ssdlib.common.runtime import need_extra
from ssdlib.config import CANDIDATES, IMAGE_SIZE, MAX_LOG_RATIO, NMS_IOU, ModelConfig
from ssdlib.detector.model_file import MAX_BYTES, load_model, parse_config
from ssdlib.detector.priors import prior_array

if TYPE_CHECKING:
    import onnx
OPSET = 18
FORMAT = "ssdlib-onnx-1"
RAW, WITH_NMS = "raw", "nms"
"""The outputs of a file: locs and logits, or boxes, scores, labels and counts."""


@dataclass(frozen=True)
class OnnxHeader:
    """The metadata of an .onnx file of ours."""

    config: ModelConfig
    weights_sha256: str
    outputs: str
    """RAW or WITH_NMS."""
    precision: str
    """fp32 or int8."""
    calibration: str | None = None
    """The images that int8 ranges were measured on."""

    def to_metadata(self) -> dict[str, str]:
        """The strings that go into the file."""
        return {
            "format": FORMAT,
            "config": json.dumps(self.config.to_dict()),
            "class_names": json.dumps(list(self.config.class_names), ensure_ascii=False),
            "weights_sha256": self.weights_sha256,
            "outputs": self.outputs,
            "precision": self.precision,
            **({"calibration": self.calibration} if self.calibration else {}),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: str | Path) -> OnnxHeader:
        """The header from such strings. Raises CheckpointError that names `path` for a file not of ours."""
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path} was not written by `ssdlib export`: export the weights again.")
        try:
            config = parse_config(metadata["config"])
            plain = {name: metadata[name] for name in ("weights_sha256", "outputs", "precision")}
            if plain["outputs"] not in (RAW, WITH_NMS) or plain["precision"] not in ("fp32", "int8"):
                raise ValueError(f"{plain['outputs']:.80}, {plain['precision']:.80}")
        except (KeyError, ValueError, ConfigError) as error:
            raise CheckpointError(
                f"{path}: its metadata cannot be read ({error!r}). Export the weights again."
            ) from error
        return cls(config, **plain, calibration=metadata.get("calibration"))


def export_weights(weights: str | Path) -> onnx.ModelProto:
    """The network in a file of `save_model`, its BatchNorm folded, as `Predictor.raw` runs it:
    images (N, 3, 300, 300) uint8 -> locs (N, P, 4), logits (N, P, C), for any N.

    Raises CheckpointError for weights that cannot be read, ConfigError without the extra.
    """
    need_extra("onnx", "onnx", "onnxscript")
    import torch  # files that are there already are read and run without it

    from ssdlib.inference.predictor import fold_batch_norm

    model = load_model(weights)
    example = torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own deprecations
        program = torch.onnx.export(
            fold_batch_norm(model).cpu().float().requires_grad_(False),
            (example,),
            input_names=["images"],
            output_names=["locs", "logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    exported = program.model_proto
    graph = exported.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        # What the exporter noted for debugging: it names files and lines of this machine.
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    write_header(exported, OnnxHeader(model.config, sha256_of(weights), RAW, "fp32"))
    return exported


def write_header(model: onnx.ModelProto, header: OnnxHeader, **more: str) -> None:
    """Put the header, and `more`, into the file's metadata in the place of any other."""
    import onnx

    model.ClearField("metadata_props")
    onnx.helper.set_model_props(model, {**header.to_metadata(), **more})


def read_header(model: onnx.ModelProto, path: str | Path = "the model") -> OnnxHeader:
    """The header of a model. Raises CheckpointError if it is not ours."""
    return OnnxHeader.from_metadata({prop.key: prop.value for prop in model.metadata_props}, path)


def save_onnx(model: onnx.ModelProto, path: str | Path) -> None:
    """Check a model against ONNX's rules and write it, atomically, for the oldest runtime that can run it.

    Raises SsdError where the disk refuses.
    """
    import onnx

    _ask_for_the_least(model)
    onnx.checker.check_model(model, full_check=True)
    write_bytes(path, model.SerializeToString())


def _ask_for_the_least(model: onnx.ModelProto) -> None:
    """State the operator sets that the nodes are from, each once, and the lowest IR version that has them.

    Exporter and quantization state their own, newest ones, which an older runtime refuses.
    """
    import onnx

    used = {node.domain for node in model.graph.node}
    sets = {entry.domain: entry.version for entry in model.opset_import if entry.domain in used}
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(*entry) for entry in sets.items())
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)


def load_onnx(path: str | Path) -> onnx.ModelProto:
    """The model in a file of `save_onnx`. Raises CheckpointError if it is missing, damaged or not ours."""
    need_extra("onnx", "onnx")
    import onnx

    try:
        # From its bytes: by its name, tensors that claim to lie in other files would be read from there.
        model = onnx.load_model_from_string(read_limited(path, MAX_BYTES))
    except Exception as error:  # protobuf's have no base of their own, and protobuf is not ours to import
        raise CheckpointError(
            f"{path} cannot be read as ONNX ({error}): export the weights again."
        ) from error
    read_header(model, path)
    return model


# --- decoding and NMS ------------------------------------------------------------------------------------


def with_nms(
    model: onnx.ModelProto,
    *,
    score_threshold: float = 0.01,
    iou_threshold: float | None = None,
    top_k: int | None = None,
) -> onnx.ModelProto:
    """A raw model, fp32 or int8, followed by what `detect_objects` (ssdlib.detector.nms) does.

    One IoU threshold serves all classes: by default the weights' own for the class that tells the scale.
    Outputs, T = top_k rows an image or all candidates, best first: boxes (N, T, 4) fractional xyxy, scores
    (N, T), labels (N, T) int64 from 1, counts (N,) int64. Rows from an image's count on are zeros.
    """
    import onnx

    header = read_header(model)
    use = header.config.use
    if iou_threshold is None:
        iou_threshold = (use.nms_iou or {}).get(use.reference, NMS_IOU)
    settings = {"score_threshold": score_threshold, "iou_threshold": iou_threshold, "top_k": top_k}
    tail = _detection_graph(header.config, model.ir_version, settings)
    tail = onnx.compose.add_prefix(tail, "detect/", rename_inputs=False, rename_outputs=False)
    merged = onnx.compose.merge_models(model, tail, io_map=[(name, name) for name in ("locs", "logits")])
    write_header(merged, replace(header, outputs=WITH_NMS), nms=json.dumps(settings))
    return merged


_DETECTION = """
<ir_version: {ir_version}, opset_import: ["" : {opset}]>
detect (float[batch, {priors}, 4] locs, float[batch, {priors}, {values}] logits)
    => (float[batch, {rows}, 4] boxes, float[batch, {rows}] scores,
        int64[batch, {rows}] labels, int64[batch] counts)
{{
    # The boxes of all priors, as boxes.decode: (N, P, 4).
    moves = Slice(locs, zero_i, two_i, axis_2)
    growths = Slice(locs, two_i, four_i, axis_2)
    shifts = Mul(moves, center_steps)
    middles = Add(shifts, centers)
    exponents = Mul(growths, size_step)
    limited = Min(exponents, growth_limit)
    factors = Exp(limited)
    halves = Mul(factors, half_sizes)
    low = Sub(middles, halves)
    high = Add(middles, halves)
    corners = Concat <axis = 2> (low, high)
    decoded = Clip(corners, zero, one)
    # The best candidates of each class: scores and priors (N, C-1, K), boxes (N, (C-1)*K, 4).
    probabilities = Softmax <axis = 2> (logits)
    cells = Slice(probabilities, one_i, values_i, axis_2)
    of_class = Transpose <perm = [0, 2, 1]> (cells)
    best_of_class, priors = TopK <axis = 2> (of_class, candidates)
    prior_rows = Reshape(priors, rows_shape)
    candidate_boxes = GatherND <batch_dims = 1> (decoded, prior_rows)
    # NMS within each list of one image and class.
    list_boxes = Reshape(candidate_boxes, list_boxes_shape)
    list_scores = Reshape(best_of_class, list_scores_shape)
    kept = NonMaxSuppression(list_boxes, list_scores, candidates, iou_threshold, score_threshold)
    kept_scores = GatherND(list_scores, kept)
    zeros = Mul(list_scores, zero)
    nothing = Sub(zeros, one)
    survivors = ScatterND(nothing, kept, kept_scores)
    # The best of each image; what was not kept has a score of -1.
    of_image = Reshape(survivors, scores_shape)
    best, places = TopK <axis = 1> (of_image, rows)
    real = GreaterOrEqual(best, zero)
    scores = Where(real, best, zero)
    place_rows = Unsqueeze(places, axis_2)
    best_boxes = GatherND <batch_dims = 1> (candidate_boxes, place_rows)
    real_rows = Unsqueeze(real, axis_2)
    boxes = Where(real_rows, best_boxes, zero)
    classes = Div(places, candidates)
    from_one = Add(classes, one_i)
    labels = Where(real, from_one, zero_i)
    ones = Cast <to = 7> (real)
    counts = ReduceSum <keepdims = 0> (ones, one_i)
}}
"""
"""In ONNX's own text form; `_detection_graph` fills in the sizes and adds the constants.
https://github.com/onnx/onnx/blob/main/docs/Syntax.md"""


def _detection_graph(config: ModelConfig, ir_version: int, settings: Mapping[str, Any]) -> onnx.ModelProto:
    """locs (N, P, 4), logits (N, P, C) -> boxes, scores, labels, counts, by the settings of `with_nms`."""
    import onnx

    centers, sizes = np.split(prior_array(config.priors), 2, axis=1)
    classes = config.num_classes - 1
    candidates = min(CANDIDATES, len(centers))
    rows = min(settings["top_k"] or math.inf, classes * candidates)
    floats = {
        "centers": centers,
        "center_steps": sizes * np.float32(config.variances[0]),
        "half_sizes": sizes / 2,
        "size_step": config.variances[1],
        "growth_limit": MAX_LOG_RATIO,
        "zero": 0.0,
        "one": 1.0,
        "score_threshold": [settings["score_threshold"]],
        "iou_threshold": [settings["iou_threshold"]],
    }
    integers = {
        "zero_i": [0],
        "one_i": [1],
        "two_i": [2],
        "four_i": [4],
        "axis_2": [2],
        "values_i": [classes + 1],
        "candidates": [candidates],
        "rows": [rows],
        "rows_shape": [-1, classes * candidates, 1],
        "scores_shape": [-1, classes * candidates],
        "list_boxes_shape": [-1, candidates, 4],
        "list_scores_shape": [-1, 1, candidates],
    }
    text = _DETECTION.format(
        ir_version=ir_version, opset=OPSET, priors=len(centers), values=classes + 1, rows=rows
    )
    model = onnx.parser.parse_model("\n".join(line.partition("#")[0] for line in text.splitlines()))
    for constants, dtype in ((floats, np.float32), (integers, np.int64)):
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(np.asarray(value, dtype), name) for name, value in constants.items()
        )
    return model
