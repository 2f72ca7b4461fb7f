"""Bad input, end to end: what a user does wrong, the command, its message and its exit code.

Each row of the tables damages a copy of a small data set and runs one command. In detail, each reader has
its tests of its own: test_images, test_voc, test_bccd, test_audit, test_weights, test_checkpoints.
"""

import hashlib
import json
import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook

from ssdlib.__main__ import main
from ssdlib.common import paths
from ssdlib.config import ModelConfig
from ssdlib.data.formats.voc import write_voc
from ssdlib.data.images import read_image
from ssdlib.data.source import open_folder
from ssdlib.detector.model_file import load_model, save_model
from ssdlib.detector.weights import build_model
from ssdlib.evaluation import evaluate
from ssdlib.training.trainer import Trainer

NAME = "SmearImage_00000"
"""The first image of train in every copy."""
VAL = "SmearImage_00006"
DOCTYPE = "<?xml version='1.0'?><!DOCTYPE annotation [{}]><annotation><filename>&x;</filename></annotation>"
BILLION = "<!ENTITY a 'ha'>" + "".join(
    f"<!ENTITY {name} '{10 * f'&{before};'}'>" for before, name in zip("abcdefgh", "bcdefghx", strict=True)
)
TRAIN = (
    "train --profile smoke --run {run} --device cpu --set recipe.initial_weights=scratch "
    "--set recipe.model.width=0.0625 --set recipe.epochs=1"
)
CHECK = "data check --quiet"
EVALUATE = "evaluate --quiet --weights {weights}"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    save_model(build_model(ModelConfig(width=0.05), seed=1), path)
    return path


@pytest.fixture
def ssdlib(capsys, tmp_path, weights):
    """Run one command line; what it printed, and its exit code."""

    def run(command: str, data: Path | str | None = None) -> tuple[str, int]:
        words = command.format(run=tmp_path / "run", weights=weights, tmp=tmp_path).split()
        code = main(words + (["--data", str(data)] if data is not None else []))
        printed = capsys.readouterr()
        text = printed.out + printed.err
        assert "Traceback" not in text
        return text, code

    return run


def annotation(root: Path, name: str = NAME) -> Path:
    return root / f"Annotations/{name}.xml"


def image(root: Path, name: str = NAME) -> Path:
    return root / f"JPEGImages/{name}.jpg"


def label(root, boxes, names, name=NAME, size=(640, 480)):
    write_voc(annotation(root, name), width=size[0], height=size[1], boxes=np.array(boxes), names=names)


def cut(file: Path, size: int = 4000) -> None:
    file.write_bytes(file.read_bytes()[:size])


def empty(root: Path, *splits: str) -> None:
    for split in splits:
        (root / f"ImageSets/Main/{split}.txt").write_text("\n")


def misspell(root, name):
    annotation(root, name).write_text(annotation(root, name).read_text().replace(">RBC<", ">Rbc<"))


def store(root: Path, suffix: str, pixels: np.ndarray) -> None:
    """Put `pixels` (in OpenCV's order) in the place of the first image."""
    image(root).unlink()
    cv2.imwrite(str(image(root).with_suffix(suffix)), pixels)


def odd_boxes(root):
    label(root, [[5, 5, 5, 5], [600, 9, 700, 99], [900, 9, 990, 99]], ["RBC"] * 3)


def odd_formats(root):
    bgr = read_image(image(root))[..., ::-1].copy()
    store(root, ".png", np.dstack([bgr, np.full(bgr.shape[:2], 200, np.uint8)]))  # RGBA
    for name, pixels in (
        ("SmearImage_00001", cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)),
        ("SmearImage_00002", bgr.astype(np.uint16) * 257),
        ("SmearImage_00003", bgr[..., 1].astype(np.uint16) * 257),
    ):
        image(root, name).unlink()
        cv2.imwrite(str(image(root, name).with_suffix(".png")), pixels)


ERRORS = [
    # item, damage, command, what the message must have, exit code
    ("empty folder", lambda r: shutil.rmtree(r) or r.mkdir(), TRAIN, ["{root}", "Give a folder"], 1),
    ("missing folder", shutil.rmtree, TRAIN, ["{root} is not a dataset", "Give the folder"], 1),
    ("missing folder", shutil.rmtree, CHECK, ["{root} is not a dataset", "Give the folder"], 1),
    ("missing folder", shutil.rmtree, EVALUATE, ["{root} is not a dataset", "Give the folder"], 1),
    ("empty split", lambda r: empty(r, "train", "trainval"), TRAIN,
     ["split train", "train.txt", "remove ImageSets"], 1),
    ("empty split", lambda r: empty(r, "train", "val", "trainval", "test"), EVALUATE,
     ["split test", "test.txt", "remove ImageSets"], 1),
    ("empty split", lambda r: empty(r, "train", "trainval"), CHECK,
     ["empty_split", "split train is empty", "List some images"], 1),
    ("truncated JPEG", lambda r: cut(image(r)), TRAIN, [f"{NAME}.jpg is truncated", "Copy it again"], 1),
    ("truncated JPEG in val", lambda r: cut(image(r, VAL)), TRAIN,
     [f"{VAL}.jpg is truncated", "Copy it again"], 1),
    ("truncated JPEG", lambda r: cut(image(r)), CHECK, [f"{NAME}.jpg is truncated", "Copy it again"], 1),
    ("truncated JPEG", lambda r: cut(image(r)), "detect {tmp}/copy --quiet --weights {weights}",
     ["1 of 12 images", f"{NAME}.jpg is truncated", "Copy it again"], 3),
    ("no bytes at all", lambda r: cut(image(r), 0), TRAIN, [f"{NAME}.jpg is not an image", "remove it"], 1),
    ("broken XML", lambda r: cut(annotation(r), 200), TRAIN,
     [f"{NAME}.xml is not well-formed", "Restore"], 1),
    ("broken XML, twice", lambda r: [cut(annotation(r, n), 200) for n in (NAME, VAL)], CHECK,
     [f"{NAME}.xml is not well-formed", f"{VAL}.xml is not well-formed", "2 of them errors"], 1),
    ("entity bomb", lambda r: annotation(r).write_text(DOCTYPE.format(BILLION)), TRAIN,
     [f"{NAME}.xml declares a DOCTYPE", "Remove"], 1),
    ("entity bomb", lambda r: annotation(r).write_text(DOCTYPE.format(BILLION)), CHECK,
     [f"{NAME}.xml declares a DOCTYPE", "Remove", "1 of them errors"], 1),
    ("external entity", lambda r: annotation(r).write_text(DOCTYPE.format("<!ENTITY x SYSTEM 'file:///etc/passwd'>")),
     TRAIN, [f"{NAME}.xml declares a DOCTYPE", "Remove"], 1),
    ("unknown class", lambda r: misspell(r, NAME), "bccd " + TRAIN,
     [f"{NAME}.xml has unknown class 'Rbc'", "known are WBC, RBC, Platelets", "Correct the name"], 1),
    ("unknown class", lambda r: misspell(r, NAME), "bccd " + CHECK,
     ["unknown class 'Rbc'", "known are WBC, RBC, Platelets", f"{NAME}.xml"], 1),
    ("misspelt class", lambda r: misspell(r, VAL), CHECK, ["class 'Rbc' is in train", "misspelt"], 0),
    ("image without a label file", lambda r: annotation(r).unlink(), TRAIN,
     [f"{NAME}.jpg has no annotation", "Label it"], 1),
    ("image without a label file", lambda r: annotation(r).unlink(), CHECK,
     [f"{NAME}.jpg has no annotation", "Label it"], 1),
    ("label file without an image", lambda r: image(r).unlink(), TRAIN,
     [f"{NAME}.xml has no image", "Restore the image"], 1),
    ("label file without an image", lambda r: image(r).unlink(), CHECK,
     [f"{NAME}.xml has no image", "Restore the image"], 1),
    ("point box and boxes outside", odd_boxes, CHECK,
     ["point_box", "dropped", "box_outside", "clipped", f"{NAME}.xml", "0 of them errors"], 0),
    ("size that contradicts the image", lambda r: label(r, [[5, 5, 60, 60]], ["RBC"], size=(64, 48)), CHECK,
     ["size_mismatch", "states 64 x 48, the image is 640 x 480", f"{NAME}.xml"], 0),
    ("checkpoint with other classes", lambda r: misspell(r, NAME), EVALUATE,
     ["finds WBC, RBC, Platelets, but the data holds", "Rbc", "use a checkpoint"], 1),
    ("half-written checkpoint", lambda r: (r / "half").write_bytes(b"\x60\0\0\0\0\0\0\0{"),
     "evaluate --quiet --weights {tmp}/copy/half", ["half is damaged", "Use another checkpoint"], 1),
    ("half-written checkpoint", lambda r: (r / "half").write_bytes(b""),
     "detect {tmp}/copy --quiet --weights {tmp}/copy/half", ["half is damaged", "Use another checkpoint"], 1),
    ("half-written initial weights", lambda r: (r / "half").write_bytes(b""),
     TRAIN + " --set recipe.initial_weights={tmp}/copy/half",
     ["half is damaged", "Use another checkpoint"], 1),
    ("missing checkpoint", lambda r: None, "evaluate --weights {tmp}/none",
     ["no weights at", "none", "train some"], 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("item", "damage", "command", "parts", "code"),
    ERRORS,
    ids=[f"{i}-{c.split()[0]}" for i, _, c, *_ in ERRORS],
)
def test_the_message_names_file_and_remedy(
    ssdlib, smears_copy, monkeypatch, tmp_path, item, damage, command, parts, code
):
    damage(smears_copy)
    data = smears_copy
    if command.startswith("bccd "):
        monkeypatch.setenv("BCCD_ROOT", str(smears_copy))
        command, data = command.removeprefix("bccd "), "bccd"
    text, ended = ssdlib(command, None if command.startswith("detect") else data)
    plain = " ".join(text.split())
    assert [part for part in parts if part.format(root=smears_copy) not in plain] == [], text
    assert ended == code, text
    assert "root:x:" not in text
    assert "epoch 1" not in text and not list(tmp_path.rglob("*.safetensors")), "said before any training"


@pytest.mark.parametrize(
    ("damage", "repairs"),
    [
        (lambda r: label(r, np.empty((0, 4)), []), []),
        (odd_boxes, ["point_box", "box_outside", "box_outside"]),
        (lambda r: label(r, [[5, 5, 60, 60]], ["RBC"], size=(64, 48)), ["size_mismatch"]),
        (odd_formats, []),
    ],
    ids=["no objects", "boxes", "size", "gray, RGBA, 16 bit"],
)  # fmt: skip
def test_what_is_repaired_trains_and_is_evaluated(ssdlib, smears_copy, damage, repairs):
    damage(smears_copy)
    text, code = ssdlib(TRAIN, smears_copy)
    assert code == 0 and "weights: " in text
    found = open_folder(smears_copy).labels.by_id[NAME].findings
    assert [finding.kind for finding in found] == repairs


@pytest.mark.slow
def test_odd_formats_are_detected_in_like_any_other(ssdlib, smears_copy, tmp_path):
    odd_formats(smears_copy)
    command = (
        "detect {tmp}/copy/JPEGImages --quiet --weights {weights} --threshold 0.01 --json {tmp}/cells.json"
    )
    assert ssdlib(command)[1] == 0
    cells = json.loads((tmp_path / "cells.json").read_text())
    assert len(cells) == 12 and all((c["width"], c["height"]) == (640, 480) for c in cells)


# --- a full disk -----------------------------------------------------------------------------------------


@contextmanager
def full_disk(size: int):
    """Inside it the system refuses any file longer than `size` bytes.

    Only around the command itself: pytest's own output may go to a file that is longer already.
    """
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and "events" not in p.parts)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_full_disk_in_training_keeps_what_was_written(ssdlib, smears_root, tmp_path):
    assert ssdlib(TRAIN, smears_root)[1] == 0
    before = contents(tmp_path / "run")
    assert "checkpoints/best.safetensors" in before
    with full_disk(100_000):
        text, code = ssdlib(TRAIN + " --restart", smears_root)
    assert code == 1 and "cannot write" in text and "best.safetensors" in text and "Free some space" in text
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("evaluate --data {root} --quiet --weights {{weights}} --json {{tmp}}/old.json", "old.json"),
        ("detect {root}/JPEGImages --quiet --weights {{weights}} --json {{tmp}}/old.json", "journal.jsonl"),
        ("detect {root}/JPEGImages --quiet --weights {{weights}} --out {{tmp}}", f"{NAME}.jpg"),
        ("data check --data {root} --quiet --json {{tmp}}/old.json", "old.json"),
        ("data smears {{tmp}}/new --train 1 --val 1 --test 1 --quiet", "new"),
    ],
)
def test_a_full_disk_keeps_the_former_results(ssdlib, smears_root, tmp_path, command, named):
    (tmp_path / "old.json").write_text("[]")
    with full_disk(500):
        text, code = ssdlib(command.format(root=smears_root))
    assert code == 1 and "cannot write" in text and named in text and "Free some space" in text
    left = {name: digest for name, digest in contents(tmp_path).items() if not name.startswith("job/")}
    assert left == {"old.json": hashlib.sha256(b"[]").hexdigest()}, "but for the list of what is finished"


def test_a_full_disk_in_the_chain_is_said(ssdlib, smears_root, tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    cells = [
        new_code_cell('PROFILE = ""\nDATA = ""\nRUN_DIR = ""', metadata={"tags": ["parameters"]}),
        new_code_cell("print('x' * 200_000)"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), tmp_path / "notebooks/01_long.ipynb")
    monkeypatch.setattr(paths, "project_root", lambda: tmp_path)
    with full_disk(100_000):
        text, code = ssdlib("run --profile smoke --run {run} --quiet", smears_root)
    assert code == 1 and "Free some space" in text and "01_long.ipynb could not be run and saved" in text
    assert json.loads((tmp_path / "run/stages.json").read_text())["stages"][0]["state"] == "failed"


# --- Ctrl-C (in the chain: test_pipeline; in several processes: test_processes) ---------------------------


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_in_training_is_saved_and_resumed(ssdlib, smears_root, tmp_path, monkeypatch):
    command = TRAIN.replace("epochs=1", "epochs=2")
    assert ssdlib(command, smears_root)[1] == 0
    whole = load_model(tmp_path / "run/checkpoints/best.safetensors").state_dict()
    shutil.rmtree(tmp_path / "run")
    print_line = Trainer._print_line

    def then_ctrl_c(self, record):
        print_line(self, record)
        signal.raise_signal(signal.SIGINT)  # to this thread: os.kill may reach us a moment late

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_print_line", then_ctrl_c)
        text, code = ssdlib(command, smears_root)
    assert (
        code == 130 and "stopped by Ctrl-C before epoch 2" in text and "last.pt" in text and "resume" in text
    )
    assert len(json.loads((tmp_path / "run/history.json").read_text())["epochs"]) == 1
    text, code = ssdlib(command + " --resume", smears_root)
    assert code == 0 and "resuming before epoch 2" in text
    resumed = load_model(tmp_path / "run/checkpoints/best.safetensors").state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_ctrl_c_elsewhere_is_a_word_and_130(ssdlib, smears_root, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "evaluate_model", stop)
    text, code = ssdlib(EVALUATE + " --json {tmp}/new.json", smears_root)
    assert code == 130 and "stopped; what was written so far is kept" in text
    assert not (tmp_path / "new.json").exists()
