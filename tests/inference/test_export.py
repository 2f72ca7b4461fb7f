"""ONNX: the same numbers as PyTorch, with and without NMS inside, in int8 nearly; and the engines on it."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from ssdlib import cli
from ssdlib.common import paths
from ssdlib.common.errors import CheckpointError, ConfigError
from ssdlib.common.files import sha256_of
from ssdlib.common.paths import project_root
from ssdlib.config import ModelConfig
from ssdlib.data.dataset import DetectionDataset
from ssdlib.data.source import open_folder
from ssdlib.detector import model_file
from ssdlib.detector.model_file import SHIPPED, SHIPPED_INT8, is_shipped_int8, load_model, save_model
from ssdlib.detector.nms import detect_objects
from ssdlib.detector.weights import build_model
from ssdlib.evaluation.evaluate import evaluate_model
from ssdlib.inference.engines import open_predictor
from ssdlib.inference.onnx import engine
from ssdlib.inference.onnx.engine import OnnxPredictor, cached_onnx
from ssdlib.inference.onnx.export import load_onnx, read_header, save_onnx, with_nms, write_header
from ssdlib.inference.onnx.quantization import METHODS, calibration_images, quantize
from ssdlib.inference.predictor import Predictor

NAMES = ("WBC", "RBC", "Platelets")
FEW = 4
"""Images to calibrate on here; what 48 give is measured in docs/export.md."""


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="session")
def weights(cache):
    """A little network without BatchNorm and with heads that find something everywhere."""
    model = build_model(ModelConfig(width=0.05, class_names=("a", "b")), seed=3)
    for conv in model.class_heads.convs:
        conv.weight.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(5))
    save_model(model, cache / "little.safetensors")
    return cache / "little.safetensors"


@pytest.fixture(scope="session")
def little(weights, cache):
    return cached_onnx(weights, folder=cache)


@pytest.fixture(scope="session")
def shipped(cache):
    return cached_onnx(SHIPPED, folder=cache)


@pytest.fixture(scope="session")
def samples():
    return open_folder(project_root() / "data/samples").dataset("trainval")


@pytest.fixture(scope="session")
def int8(shipped, samples, cache):
    """The shipped network in int8, calibrated on drawn smears."""
    model = quantize(load_onnx(shipped), samples, "a few smears", count=FEW)
    save_onnx(model, cache / "int8.onnx")
    return cache / "int8.onnx"


def noise(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, 300, 300), dtype=torch.uint8, generator=generator)


def run(path: Path, pixels: torch.Tensor) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": pixels.numpy()})


@pytest.mark.parametrize("count", [1, 2, 5])
def test_raw_outputs_are_pytorchs(weights, little, count):
    assert_raw_outputs_of_pytorch(weights, little, noise(count))


def test_raw_outputs_of_the_shipped_network_are_pytorchs(shipped, samples):
    assert_raw_outputs_of_pytorch(SHIPPED, shipped, torch.from_numpy(calibration_images(samples, 2)))


def assert_raw_outputs_of_pytorch(weights: Path, exported: Path, pixels: torch.Tensor) -> None:
    expected = Predictor.from_checkpoint(weights, device="cpu", precision="fp32").raw(pixels)
    for own, value in zip(run(exported, pixels), expected, strict=True):
        np.testing.assert_allclose(own, value.numpy(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"score_threshold": 1.0},  # nothing found
        {},
        {"score_threshold": 0.6, "iou_threshold": 0.3, "top_k": 20},
        {"score_threshold": 0.0, "iou_threshold": 1.0, "top_k": 5000},  # more than there are candidates
    ],
    ids=["none", "default", "other", "all"],
)
def test_nms_inside_finds_what_detect_objects_finds(weights, little, tmp_path, settings, count):
    model = load_model(weights)
    save_onnx(with_nms(load_onnx(little), **settings), tmp_path / "nms.onnx")
    boxes, scores, labels, counts = run(tmp_path / "nms.onnx", noise(count))
    raw = [torch.from_numpy(value) for value in run(little, noise(count))]
    expected = detect_objects(*raw, model.priors, **settings)
    assert len(counts) == count and all(array.shape[:2] == scores.shape for array in (boxes, labels))
    for index, (own_boxes, own_scores, own_labels) in enumerate(expected):
        assert counts[index] == len(own_scores)
        found = slice(0, counts[index])
        np.testing.assert_allclose(scores[index, found], own_scores, atol=1e-4)
        assert not scores[index, counts[index] :].any() and not boxes[index, counts[index] :].any()
        assert not labels[index, counts[index] :].any()
        # Ties may be swapped: compare as sets of rows.
        mine = np.c_[labels[index, found], scores[index, found], boxes[index, found]].round(3)
        theirs = np.c_[own_labels, own_scores, own_boxes].round(3)
        assert similar(mine, theirs)


def similar(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether each row of one is near a row of the other, but for ties at the cut (1 %)."""
    if not len(a):
        return not len(b)
    near = (np.abs(a[:, None] - b).max(axis=2) < 2e-3) if len(a) < 1000 else None
    if near is None:  # too many for a table
        a, b = (rows[np.lexsort(rows.T[::-1])] for rows in (a, b))
        return bool((np.abs(a - b).max(axis=1) < 2e-3).mean() > 0.99)
    return min(near.any(axis=0).mean(), near.any(axis=1).mean()) > 0.99


def test_the_file_says_what_it_is_and_nothing_of_this_machine(weights, little):
    header = read_header(load_onnx(little))
    assert header.config == load_model(weights).config and header.config.class_names == ("a", "b")
    assert header.weights_sha256 == sha256_of(weights)
    assert (header.outputs, header.precision, header.calibration) == ("raw", "fp32", None)
    text = little.read_bytes()
    assert str(project_root()).encode() not in text and b".py" not in text
    nodes = load_onnx(little).graph.node
    assert not any(node.op_type == "BatchNormalization" for node in nodes)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("outputs", ["raw", "nms"])
def test_the_file_asks_for_no_newer_runtime_than_it_needs(little, int8, tmp_path, precision, outputs):
    model = load_onnx(little if precision == "fp32" else int8)
    save_onnx(with_nms(model) if outputs == "nms" else model, tmp_path / "a.onnx")
    written = load_onnx(tmp_path / "a.onnx")
    assert [(entry.domain, entry.version) for entry in written.opset_import] == [("", 18)]
    assert written.ir_version == 8, "tried in ONNX Runtime 1.15, which refuses newer ones"


def test_int8_finds_the_cells_that_fp32_finds(shipped, int8, samples):
    predictors = [OnnxPredictor(path, batch_size=2) for path in (shipped, int8)]
    results = [evaluate_model(predictor, samples)[0].map_50 for predictor in predictors]
    assert results[0] > 0.95 and results[1] > results[0] - 0.02
    assert (
        predictors[1].precision == "int8"
        and predictors[1].header.calibration == "4 images of a few smears, minmax"
    )
    kinds = [node.op_type for node in load_onnx(int8).graph.node]
    assert "QuantizeLinear" in kinds and int8.stat().st_size < 0.4 * shipped.stat().st_size


def test_the_onnx_engine_detects_as_the_torch_engine(weights, little):
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    settings = {"score_threshold": 0.2, "iou_threshold": 0.4, "top_k": 30}
    torchs = open_predictor("torch", weights, device="cpu", precision="fp32", **settings)
    own = open_predictor("onnx", little, batch_size=3, **settings)
    assert (own.class_names, own.batch_size, own.score_threshold) == (("a", "b"), 3, 0.2)
    assert own.detect([]) == []
    for found, expected in zip(own.detect([image] * 4), torchs.detect([image] * 4), strict=True):
        assert found.image_size == (120, 90) and len(found) == len(expected) > 0
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


def test_cached_files_are_made_once_and_named_after_the_weights(weights, little, cache, capsys):
    before = little.stat().st_mtime_ns
    assert cached_onnx(weights, folder=cache) == little and little.stat().st_mtime_ns == before
    assert little.name.startswith(sha256_of(weights)[:16]) and capsys.readouterr().err == ""


def test_int8_of_first_use_says_what_it_was_calibrated_on(shipped, cache, no_data, monkeypatch, capsys, int8):
    asked = []

    def quick(model, dataset, name):
        asked.append(len(dataset))
        made = load_onnx(int8)
        write_header(made, replace(read_header(made), calibration=name))
        return made

    monkeypatch.setattr("ssdlib.inference.onnx.engine.is_shipped_int8", lambda path: False)
    monkeypatch.setattr("ssdlib.inference.onnx.quantization.quantize", quick)
    monkeypatch.setattr("ssdlib.inference.onnx.quantization.IMAGES", 2)
    path = cached_onnx(SHIPPED, int8=True, folder=cache)
    assert asked == [2] and path.name.endswith("int8-smears.onnx")
    assert "calibrated on smears train" in capsys.readouterr().err
    assert cached_onnx(SHIPPED, int8=True, folder=cache) == path and len(asked) == 1


def test_int8_of_other_classes_asks_for_images(weights, little, cache, no_data):
    with pytest.raises(ConfigError, match="export --int8 --data FOLDER"):
        cached_onnx(weights, int8=True, folder=cache)


@pytest.mark.parametrize(
    ("engine", "settings", "error", "message"),
    [
        ("torch", {}, ConfigError, "--engine onnx"),
        ("onnx-int8", {}, ConfigError, "--int8"),
        ("onnx", {"device": "cuda"}, ConfigError, "--engine torch"),
        ("onnx", {"precision": "bf16"}, ConfigError, "fp32"),
        ("onnx", {"batch_size": 0}, ConfigError, "batch_size"),
    ],
)
def test_what_an_engine_cannot_do_is_said(little, engine, settings, error, message):
    with pytest.raises(error, match=message):
        open_predictor(engine, little, **settings)


@pytest.mark.parametrize("content", [None, b"", b"no model at all", "nms", "foreign"])
def test_files_that_cannot_be_used_are_named(little, weights, tmp_path, content):
    path = tmp_path / "odd.onnx"
    if content == "nms":
        save_onnx(with_nms(load_onnx(little)), path)
    elif content == "foreign":
        model = load_onnx(little)
        model.ClearField("metadata_props")
        save_onnx(model, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"odd\.onnx"):
        open_predictor("onnx", path)


def with_node(*arguments, **attributes):
    """Appends a node whose output is one that nobody needs, and constants that it may take."""

    def change(model):
        for name, value in (
            ("far", np.array([10**6, 10**6])),
            ("one", np.float32(1)),
            ("yes", np.array(True)),
        ):
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        model.graph.node.append(onnx.helper.make_node(*arguments, ["more"], **attributes))

    return change


FOREVER = onnx.parser.parse_graph("g (int64 i, bool on, float x) => (bool go, float y) {go, y = Own (on, x)}")


def put_elsewhere(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/dev/zero")


def name_outputs(model):
    model.graph.output[0].name = "\x1b[2J"


def claim_more(model):
    model.graph.initializer[0].dims[:] = [2**40]


def call_functions(model):
    model.functions.append(onnx.FunctionProto(name="f", domain="own"))


def with_config(**changes):
    def change(model):
        header = read_header(model)
        write_header(model, replace(header, config=header.config.replace(**changes)))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_node("Loop", ["", "yes", "one"], body=FOREVER), "no export has: Loop"),
        (with_node("RandomNormal", [], shape=[10**6, 10**6]), "no export has: RandomNormal"),
        (with_node("Relu", ["one"], domain="own"), "no export has: Relu"),
        (with_node("MaxPool", ["locs"], kernel_shape=[300, 300]), "no export has: MaxPool with kernel_shape"),
        (with_node("ConstantOfShape", ["far"]), "more than a detector does"),
        (with_node("Expand", ["one", "far"]), "more than a detector does"),
        (with_node("Expand", ["one", "images"]), "cannot be run"),
        (call_functions, "no export has"),
        (put_elsewhere, "lies in another file"),
        (claim_more, "cannot be run"),
        (name_outputs, "other inputs and outputs"),
        (lambda model: model.graph.output.pop(), "other inputs and outputs"),
        (with_config(class_names=("a", "b", "c")), "outputs are not those of its own config"),
        (lambda model: setattr(model, "ir_version", 99), "cannot be run"),
    ],
)
def test_files_that_would_do_more_than_detect_are_refused(little, tmp_path, change, message, capfd):
    model = load_onnx(little)
    change(model)
    (tmp_path / "odd.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=rf"odd\.onnx.*{message}"):
        OnnxPredictor(tmp_path / "odd.onnx")
    assert capfd.readouterr() == ("", ""), "ONNX Runtime writes to the terminal by itself"


def test_weights_that_are_not_there_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        open_predictor("onnx", tmp_path / "none.safetensors")


def test_the_core_imports_nothing_of_the_extra_until_asked():
    for path in (project_root() / "ssdlib").rglob("*.py"):
        assert not re.search(r"^(import|from) onnx", path.read_text(encoding="utf-8"), re.MULTILINE), path


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (100, 3)])
def test_calibration_images_are_spread_over_the_data(smears_source, count, expected):
    images = calibration_images(smears_source.dataset("val"), count)
    assert images.shape == (expected, 3, 300, 300) and images.dtype == np.uint8


@pytest.mark.parametrize(("images", "method"), [(0, "minmax"), (1, "guess")])
def test_calibration_that_cannot_be(little, samples, images, method):
    with pytest.raises(ConfigError):
        quantize(load_onnx(little), DetectionDataset(samples.samples[:images], NAMES), "none", method=method)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_file_that_runs(little, samples, tmp_path, method):
    save_onnx(quantize(load_onnx(little), samples, "samples", count=2, method=method), tmp_path / "int8.onnx")
    plain, own = run(little, noise(3)), run(tmp_path / "int8.onnx", noise(3))
    for a, b in zip(plain, own, strict=True):
        assert a.shape == b.shape and 0 < np.abs(a - b).max() < np.abs(a).max()


def test_the_command(weights, little, cache, smears_root, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "data_folder", lambda: cache.parent)
    monkeypatch.setattr("ssdlib.inference.onnx.engine.cached_onnx", lambda path: little)
    out = tmp_path / "model.onnx"
    arguments = ["export", "--weights", str(weights), "--out", str(out), "--int8", "--with-nms", "--score"]
    arguments += ["0.25", "--data", str(smears_root), "--calibrate-on", "val", "--images", "2", "-q"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    header = read_header(load_onnx(out))
    assert (header.outputs, header.precision) == ("nms", "int8")
    assert header.calibration == "2 images of smears val, minmax"
    properties = {prop.key: prop.value for prop in load_onnx(out).metadata_props}
    assert json.loads(properties["nms"])["score_threshold"] == 0.25

    result = CliRunner().invoke(cli.app, ["export", "--weights", str(weights), "--out", "model.pt"])
    assert isinstance(result.exception, ConfigError) and ".onnx" in str(result.exception)


def test_evaluate_takes_an_engine(shipped, tmp_path):
    out = tmp_path / "results.json"
    data = str(project_root() / "data/samples")
    arguments = ["evaluate", "--engine", "onnx", "--weights", str(shipped), "--data", data, "--limit", "1"]
    result = CliRunner().invoke(cli.app, [*arguments, "--json", str(out), "-q"])
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert (written["engine"], written["weights"]) == ("onnx", str(shipped)) and written["map_50"] > 0.5


WITHOUT_TORCH = """
import sys

sys.modules["torch"] = sys.modules["torchvision"] = sys.modules["onnx"] = None  # as if not installed
from ssdlib.__main__ import main

sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not SHIPPED.is_file(), reason="no shipped weights")
def test_the_shipped_int8_file_detects_without_pytorch_and_counts_as_ever(tmp_path):
    samples = str(project_root() / "data/samples/JPEGImages")
    command = ["detect", "--engine", "onnx-int8", samples, "--json", str(tmp_path / "found.json"), "--quiet"]
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *command], capture_output=True, text=True, cwd=project_root()
    )
    assert result.returncode == 0, result.stderr
    assert "made" not in result.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    counts = [tuple(one["counts"].values()) for one in found]
    assert counts == [(1, 13, 0), (1, 11, 0), (2, 15, 1), (1, 10, 1), (1, 20, 1), (1, 0, 2)]
    command = [sys.executable, "-c", WITHOUT_TORCH, "detect", samples, "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=project_root())
    assert result.returncode == 1 and "pip install torch" in result.stderr


def test_the_shipped_int8_file_is_of_the_shipped_weights():
    assert is_shipped_int8(SHIPPED_INT8)
    header = read_header(load_onnx(SHIPPED_INT8))
    assert (header.weights_sha256, header.precision) == (sha256_of(SHIPPED), "int8")
    assert header.calibration == "48 images of bccd train, minmax"
    assert cached_onnx(SHIPPED, int8=True) == SHIPPED_INT8


def test_weights_that_are_shipped_anew_get_an_int8_file_of_their_own(tmp_path, monkeypatch, int8, shipped):
    weights, beside = tmp_path / SHIPPED.name, tmp_path / SHIPPED_INT8.name
    shutil.copy(SHIPPED, weights)
    for module in (model_file, engine):
        monkeypatch.setattr(module, "SHIPPED", weights)
        monkeypatch.setattr(module, "SHIPPED_INT8", beside)
    save_onnx(load_onnx(int8), made := tmp_path / "made.onnx")
    monkeypatch.setattr(engine, "cached_onnx", lambda *_, **__: made)
    is_shipped_int8.cache_clear()
    assert not is_shipped_int8(beside)
    assert engine.renew_shipped_int8() == beside and is_shipped_int8(beside)
    with weights.open("ab") as stream:
        stream.write(b" ")
    is_shipped_int8.cache_clear()
    assert not is_shipped_int8(beside), "of other weights"
    is_shipped_int8.cache_clear()
