"""Weights, training states, ONNX files and settings: whatever they hold, they run or are refused."""

import contextlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssdlib.common.errors import SsdError
from ssdlib.config import PROFILES, ModelConfig, PriorConfig, Profile, Recipe, Use
from ssdlib.detector.model_file import load_model, read_metadata, save_model
from ssdlib.detector.weights import build_model
from ssdlib.inference.onnx.engine import OnnxPredictor
from ssdlib.inference.onnx.export import RAW, OnnxHeader, load_onnx, write_header
from ssdlib.inference.predictor import Predictor
from ssdlib.runs.overrides import apply_overrides, parse_override
from ssdlib.training import checkpoints
from ssdlib.training.trainer import Trainer
from tests.fuzz.cases import (
    NAMES,
    Raw,
    attempt,
    command,
    damaged,
    fuzzed,
    json_bytes,
    nothing_changed,
    odd_values,
    reshaped,
)

CONFIG = ModelConfig(width=0.05)
IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds an image, and the file that an example writes."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "in").mkdir()
    cv2.imwrite(str(folder / "in/a.png"), IMAGE)
    return folder


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# --- weights -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(folder) -> bytes:
    model = build_model(CONFIG, seed=1)
    for conv in model.class_heads.convs:
        conv.bias.data[:: CONFIG.num_classes] = 8  # background: it finds little, which is quick
    save_model(model, folder / "sound.safetensors", epoch=1, metrics={"map_50": 0.5})
    return (folder / "sound.safetensors").read_bytes()


CONFIG_VALUES = st.sampled_from(
    [
        ["x"] * 100_000,
        [str(number) for number in range(100_000)],
        list("abcd"),
        ["\x1b[2J", "\ud800", ""],
        [[2.0] * 50_000] * 6,
        [[1e308, 1e-308]] * 6,
        [10**9] * 6,
        [1e30] * 6,
        [5000, 3000],
        [10**18, 10**18],
        {"WBC": 0.5, "no class": 1},
        {"brightness": [0, 1]},
        1e-30,
        1e30,
    ]
)


SOUND = (
    {"variances": [1e-30, 1e30]},
    {"variances": [1e38, 1e38]},
    {"mean": [1e30] * 3},
    {"std": [1e-30] * 3},
    {"l2norm_scale": -1e300},
    {"priors": {"scales": [1e300] * 6, "clip": False}},
    {"priors": {"scales": [1e-300] * 6}},
    {"priors": {"strides": [10**18] * 6}},
    {"priors": {"final_scale": 1e300}},
    {"use": {"view": [1, 1]}},
    {"use": {"view": [1, 100_000]}},
    {"use": {"view": [100_000, 100_000], "um_per_pixel": 1e300}},
    {"use": {"reference_side": 1e-300, "um_per_pixel": 1e-300}},
    {"use": {"reference_side": 1e300}},
    {"use": {"nms_iou": {"RBC": 0.0}, "thresholds": {"no class": 0.0}}},
)
"""Settings of the right types that no network has: such files are read."""


@st.composite
def odd_headers(draw, content: bytes) -> bytes:
    """The weights with another header: config, metadata, names, shapes, offsets, types."""
    size = int.from_bytes(content[:8], "little")
    parts = json.loads(content[8 : 8 + size])
    about = parts["__metadata__"]
    which = draw(st.sampled_from(["config", "config", "sound", "sound", "metadata", "parts"]))
    if which == "sound":
        about["config"] = json.dumps(json.loads(about["config"]) | draw(st.sampled_from(SOUND)))
    elif which == "parts":
        kinds = st.sampled_from(
            ["F64", "BOOL", "F8_E4M3", "I64", "BF16", "U8", "F4", [0, 2**40], [2**31, 2**31]]
        )
        parts = draw(reshaped(parts, kinds | odd_values()))
    else:
        about[which] = draw(reshaped(json.loads(about[which]), CONFIG_VALUES | odd_values()))
        about[which] = json_bytes(about[which]).decode("utf-8", "surrogateescape")
    header = json_bytes(parts)
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def use_weights(path: Path) -> None:
    read_metadata(path)
    model = load_model(path)
    build_model(CONFIG.replace(class_names=("RBC", "new")), path)
    predictor = Predictor(model, device="cpu", precision="fp32")
    predictor.detect([IMAGE])


@fuzzed(25)
@given(data=st.data())
def test_weights_run_or_are_refused(folder, weights, data):
    content = data.draw(odd_headers(weights) | damaged(weights))
    with nothing_changed(folder, but="out"):
        out = folder / "out"
        out.mkdir(exist_ok=True)
        attempt(use_weights, written(out / "a.safetensors", content))


@fuzzed(4)
@given(data=st.data())
def test_commands_take_or_refuse_weights(folder, weights, smears_root, data):
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    path = written(out / "a.safetensors", data.draw(odd_headers(weights) | damaged(weights)))
    words = data.draw(
        st.sampled_from(
            [
                ("detect", folder / "in", "--out", out / "found", "--restart", "--weights", path),
                ("export", "--weights", path, "--out", out / "no.pt"),
                ("evaluate", "--data", smears_root, "--limit", 1, "--weights", path),
                ("train", "--profile", "smoke", "--data", smears_root, "--run", out / "run", "--init", path,
                 "--set", "recipe.epochs=0"),
            ]
        )
    )  # fmt: skip
    with nothing_changed(folder):
        command(*words)


# --- training states ---------------------------------------------------------------------------------------

RECIPE = Recipe(model=CONFIG, epochs=2, batch_size=6, smears=0, evaluate_every=9)


def trainer(source, run: Path) -> Trainer:
    model = build_model(RECIPE.model, seed=1)
    train = source.dataset("train")
    return Trainer(
        model, RECIPE, train, None, run_dir=run, device="cpu", precision="fp32", workers=0, progress=False
    )


@pytest.fixture(scope="module")
def trained(folder, smears_source) -> tuple[bytes, bytes]:
    """The states after one epoch of two, and after both."""
    trainer(smears_source, folder / "run").fit()
    return tuple((folder / f"run/checkpoints/{name}").read_bytes() for name in ("previous.pt", "last.pt"))


def tensors():
    return st.sampled_from(
        [
            torch.zeros(3),
            torch.full((8, 3, 3, 3), float("nan")),
            torch.zeros(1).expand(10**12),
            torch.zeros(8).as_strided((8, 3, 3, 3), (1, 0, 0, 0)),
            torch.eye(3).to_sparse(),
            torch.quantize_per_tensor(torch.zeros(8), 0.1, 0, torch.quint8),
            torch.empty(10**9, device="meta"),
            torch.zeros(8, dtype=torch.complex64).conj(),
            torch.zeros(8, dtype=torch.bool),
            torch.zeros(8, dtype=torch.float8_e4m3fn),
            torch.nn.Parameter(torch.zeros(8)),
            torch.tensor(-1e38),
        ]
    )


@st.composite
def odd_states(draw, content: bytes) -> bytes:
    """A state with other values and tensors in it, and mostly with the right sum."""
    loaded = torch.load(io.BytesIO(content), weights_only=True)
    values = odd_values().filter(lambda value: not isinstance(value, Raw))
    part = draw(st.sampled_from([None, *loaded["state"]]))
    if part is None:
        loaded["state"] = draw(reshaped(loaded["state"], values | tensors()))
    else:
        loaded["state"][part] = draw(reshaped({"": loaded["state"][part]}, values | tensors())).get("")
    with contextlib.suppress(Exception):
        if sum(checkpoints._bytes(loaded["state"])) < 1e8:
            loaded["sha256"] = checkpoints.digest(loaded["state"])
    if draw(st.integers(0, 9)) == 0:
        loaded = draw(reshaped(loaded, values))
    stream = io.BytesIO()
    torch.save(loaded, stream)
    return stream.getvalue()


@st.composite
def odd_archives(draw, content: bytes) -> bytes:
    """A state whose archive is written anew: compressed, with more in it, or with another pickle."""
    pickles = {
        "claim": lambda old: old.replace(struct.pack("<I", 864 // 4)[:2], b"\xff\xff"),
        "bytearray": lambda _: b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\xe4\x0bT\x02\x85R.",
        "code": lambda _: pickle.dumps(Evil(), protocol=2),
        "laughs": lambda _: b"\x80\x02]q\x00(K\x01K\x01e" + b"".join(
            b"]q%c(" % (i + 1) + b"h%c" % i * 10 + b"e" for i in range(40)) + b".",
        "deep": lambda _: b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        "same": lambda old: old,
    }  # fmt: skip
    change = pickles[draw(st.sampled_from(sorted(pickles)))]
    method = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    stream = io.BytesIO(draw(st.sampled_from([b"", b"", pickle.dumps({"a": 1})])))
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "a", method) as new:
        for name in old.namelist():
            part = old.read(name)
            new.writestr(name, change(part) if name.endswith("data.pkl") else part)
        if method == zipfile.ZIP_DEFLATED:
            new.writestr("archive/data/9999", bytes(10**8))
    return stream.getvalue()


RAN = Path("this-pickle-ran")


class Evil:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (str(RAN),)


@fuzzed(25)
@given(data=st.data())
def test_states_are_read_or_refused(folder, trained, data):
    run = folder / "out/states"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    content = data.draw(odd_states(trained[1]) | odd_archives(trained[1]) | damaged(trained[1]))
    name = data.draw(st.sampled_from([checkpoints.LAST, checkpoints.NEXT]))
    path = written(run / name, content)
    alone = attempt(checkpoints.read_state, path)
    attempt(checkpoints.network_config, run)
    assert "--resume" in attempt(checkpoints.describe, run)
    # One that is damaged hides no other.
    written(run / checkpoints.PREVIOUS, trained[0])
    state, complaints = attempt(checkpoints.load_state, run)
    assert len(complaints) == isinstance(alone, SsdError) and state["step"] in (
        1,
        alone["step"] if not complaints else 1,
    )
    if complaints:
        written(run / checkpoints.PREVIOUS, content)
        assert "Start again" in str(attempt(checkpoints.load_state, run))
    assert not RAN.exists()


@fuzzed(8)
@given(data=st.data())
def test_a_training_goes_on_or_says_why_not(folder, trained, smears_source, data):
    run = folder / "out/training"
    shutil.rmtree(run, ignore_errors=True)
    (run / "checkpoints").mkdir(parents=True)
    content = data.draw(odd_states(data.draw(st.sampled_from(trained))))
    written(run / "checkpoints/last.pt", content)
    result = attempt(trainer(smears_source, run).fit, resume=True)
    assert isinstance(result, SsdError) or result.epochs


# --- ONNX --------------------------------------------------------------------------------------------------

# 18 * 18 * 2 priors, two classes and background.
GRAPH = """
<ir_version: 8, opset_import: ["" : 18]>
net (uint8[batch, 3, 300, 300] images) => (float[batch, 648, 4] locs, float[batch, 648, 3] logits)
{
    pixels = Cast <to = 1> (images)
    pooled = MaxPool <kernel_shape = [16, 16], strides = [16, 16]> (pixels)
    norm = ReduceL2 <keepdims = 1> (pooled, axis)
    whole = Shape (pooled)
    wide = Expand (norm, whole)
    scaled = Div (pooled, wide)
    values = Conv <kernel_shape = [1, 1]> (scaled, filters)
    of_cell = Transpose <perm = [0, 2, 3, 1]> (values)
    locs = Reshape (of_cell, loc_shape)
    scores = Conv <kernel_shape = [1, 1]> (scaled, score_filters)
    of_class = Transpose <perm = [0, 2, 3, 1]> (scores)
    logits = Reshape (of_class, score_shape)
}
"""


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    """A detector in an ONNX file of ours, of as few layers as will do."""
    model = onnx.parser.parse_model(GRAPH)
    random = np.random.default_rng(0)
    values = {
        "axis": np.array([1]),
        "filters": random.normal(size=(8, 3, 1, 1)).astype(np.float32),
        "score_filters": random.normal(size=(6, 3, 1, 1)).astype(np.float32),
        "loc_shape": np.array([-1, 648, 4]),
        "score_shape": np.array([-1, 648, 3]),
    }
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in values.items()
    )
    priors = PriorConfig(feature_maps=(18,), scales=(0.1,), aspect_ratios=((),))
    use = Use(reference="")  # whose scale is not looked for
    config = ModelConfig(class_names=("RBC", "WBC"), priors=priors, use=use)
    write_header(model, OnnxHeader(config, "0" * 64, RAW, "fp32"))
    return model


def node(kind: str, *inputs: str, output: str = "more", **settings) -> onnx.NodeProto:
    return onnx.helper.make_node(kind, list(inputs), [output], **settings)


def loop() -> onnx.NodeProto:
    """A loop that does not end: its condition is always true."""
    parse = onnx.parser.parse_graph
    body = parse(
        "body (int64 i, bool on, float x) => (bool go, float y) { go = Identity(on)  y = Add(x, x) }"
    )
    return onnx.helper.make_node("Loop", ["", "true", "scalar"], ["more"], body=body)


CHANGES = [
    "remove", "rename", "shape", "type", "operator", "attribute", "attribute", "wire", "dims", "external",
    "graft", "graft", "graft", "double", "domain", "function", "version", "metadata", "metadata",
]  # fmt: skip


@st.composite
def odd_networks(draw, model: onnx.ModelProto, folder: Path) -> bytes:
    """The network with parts removed, renamed or replaced, and with layers that ask for much."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    sizes = st.sampled_from([0, 1, -1, 2, 300, 10**6, 2**31, 2**40, 2**63 - 1, -(2**63)])
    pick = lambda parts: parts[draw(st.integers(0, len(parts) - 1))]  # noqa: E731
    for _ in range(draw(st.integers(1, 3))):
        one = pick(graph.node)
        match draw(st.sampled_from(CHANGES)):
            case "remove":
                parts = draw(st.sampled_from([graph.node, graph.output, graph.input, graph.initializer]))
                if len(parts) > 1:
                    del parts[draw(st.integers(0, len(parts) - 1))]
            case "rename":
                pick(
                    draw(st.sampled_from([graph.output, graph.input, graph.initializer])) or [one]
                ).name = draw(
                    st.sampled_from(
                        [name for name in NAMES if name.isprintable() or "\x1b" in name] + ["locs"]
                    )
                )
            case "shape":
                declared = pick([*graph.output, *graph.input]).type.tensor_type.shape
                if declared.dim:
                    pick(declared.dim).dim_value = draw(sizes)
            case "type":
                pick([*graph.output, *graph.input]).type.tensor_type.elem_type = draw(st.integers(0, 25))
            case "operator":
                kinds = ["MaxPool", "Conv", "Mul", "Pad", "Tile", "Range", "If", "Identity", "Pow", "Resize"]
                one.op_type = draw(st.sampled_from(kinds))
            case "attribute":
                for part in one.attribute:
                    part.i = draw(sizes)
                    part.ints[:] = [draw(sizes) for _ in part.ints]
            case "wire":
                one.input[0] = draw(st.sampled_from(["images", "pixels", "filters", "locs", "whole", ""]))
            case "dims":
                pick([*graph.initializer, onnx.TensorProto()]).dims[:] = draw(st.lists(sizes, max_size=4))
            case "external":
                tensor = pick(graph.initializer)
                tensor.data_location = onnx.TensorProto.EXTERNAL
                place = draw(
                    st.sampled_from(
                        ["../sound.safetensors", "pipe", "/dev/zero", "/etc/passwd", "a.onnx", "\x1b[2J"]
                    )
                )
                tensor.external_data.add(key="location", value=place)
                tensor.external_data.add(key="length", value=str(draw(sizes)))
            case "graft":
                graph.initializer.extend(
                    [
                        onnx.numpy_helper.from_array(np.array([10**6, 10**6]), "far"),
                        onnx.numpy_helper.from_array(np.array([30_000, 30_000]), "big"),
                        onnx.numpy_helper.from_array(np.array(True), "true"),
                        onnx.numpy_helper.from_array(np.float32(1), "scalar"),
                        onnx.numpy_helper.from_array(np.array([1, 1, 50, 50]), "times"),
                    ]
                )
                new = draw(
                    st.sampled_from(
                        [
                            node("ConstantOfShape", "far"),
                            node("ConstantOfShape", "big"),
                            node("Expand", "scalar", "far"),
                            node("Expand", "scalar", "big"),
                            node("Tile", "pixels", "times"),
                            node("Resize", "pixels", "", "", "times"),
                            node("Mul", "whole", "whole"),
                            node("Identity", "more"),
                            node("Constant", value_ints=[10**6] * 2),
                            node("RandomNormal", shape=[10**5, 10**5]),
                            loop(),
                        ]
                    )
                )
                graph.node.insert(draw(st.integers(0, len(graph.node))), new)
                graph.node.append(node("Add", "more", "scalar", output="last"))
                if draw(st.booleans()):
                    graph.node.append(node("Expand", "scalar", "more", output="huge"))
            case "double":
                graph.node.insert(0, one)
            case "domain":
                one.domain = draw(st.sampled_from(["com.microsoft", "ai.onnx.ml", "own"]))
            case "function":
                own = onnx.helper.make_opsetid("", 18)
                calls = [node("Own", "x", output="y")]
                calls[0].domain = "own"
                model.functions.append(onnx.helper.make_function("own", "Own", ["x"], ["y"], calls, [own]))
                model.opset_import.append(onnx.helper.make_opsetid("own", 1))
            case "version":
                model.ir_version = draw(st.sampled_from([0, 3, 99, 2**40]))
                model.opset_import[0].version = draw(st.sampled_from([-1, 0, 1, 7, 13, 21, 999]))
            case "metadata":
                entry = pick(model.metadata_props)
                if entry.key == "config":
                    value = draw(reshaped(json.loads(entry.value), CONFIG_VALUES | odd_values()))
                    entry.value = json_bytes(value).decode("utf-8", "replace")
                else:
                    entry.value = draw(st.sampled_from(["", "nms", "int8", "\x1b[2J", "x" * 10**5]))
    return model.SerializeToString()


@fuzzed(40)
@given(data=st.data())
def test_onnx_files_run_or_are_refused(folder, network, data, capfd):
    out = folder / "out/onnx"
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "pipe").exists():
        os.mkfifo(out / "pipe")
    content = data.draw(odd_networks(network, folder) | damaged(network.SerializeToString()))
    path = written(out / "a.onnx", content)
    attempt(load_onnx, path)
    predictor = attempt(OnnxPredictor, path)
    if isinstance(predictor, OnnxPredictor):
        attempt(predictor.detect, [IMAGE])
    if data.draw(st.integers(0, 9)) == 0:
        command(
            "detect",
            folder / "in",
            "--out",
            out / "found",
            "--restart",
            "--weights",
            path,
            "--engine",
            "onnx",
        )
    assert "\x1b" not in "".join(capfd.readouterr())


def test_the_small_network_runs(tmp_path, network):
    predictor = OnnxPredictor(written(tmp_path / "a.onnx", network.SerializeToString()))
    assert len(predictor.detect([IMAGE])[0])


# --- settings ----------------------------------------------------------------------------------------------


@fuzzed(40)
@given(data=st.data())
def test_odd_settings_are_refused(data):
    profile = PROFILES["smoke"]
    odd = CONFIG_VALUES | odd_values().filter(lambda value: not isinstance(value, Raw))
    attempt(Profile.from_dict, data.draw(reshaped(profile.to_dict(), odd)))
    names = [
        "recipe",
        "recipe.model",
        "recipe.model.use.appearance",
        "recipe.epochs",
        "seed",
        "",
        ".",
        "recipe.",
    ]
    name = data.draw(st.sampled_from(names))
    text = json_bytes(data.draw(CONFIG_VALUES | odd_values())).decode("utf-8", "replace")
    override = attempt(parse_override, f"{name}={text}")
    if isinstance(override, tuple):
        attempt(apply_overrides, profile, dict([override]))


@fuzzed(5)
@given(data=st.data())
def test_commands_take_or_refuse_settings(folder, smears_root, data):
    text = json_bytes(data.draw(odd_values())).decode("utf-8", "replace")[:100_000].replace("\0", "")
    name = data.draw(st.sampled_from(["recipe", "recipe.model.use", "recipe.augment.blur", "train_images"]))
    with nothing_changed(folder):
        command("train", "--profile", "smoke", "--data", smears_root, "--run", folder / "out/set",
                "--set", f"{name}={text}", "--set", "recipe.epochs=0")  # fmt: skip
