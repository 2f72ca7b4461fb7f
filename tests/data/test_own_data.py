"""The whole way with classes of one's own: smears with a fourth one, checked, trained on, judged."""

from pathlib import Path

import pytest
import torch

from ssdlib.__main__ import main
from ssdlib.common import paths
from ssdlib.common.errors import CheckpointError
from ssdlib.config import BCCD_CLASSES, RECIPES, SMALL_PRIORS, ModelConfig
from ssdlib.data import smears
from ssdlib.data import source as bccd
from ssdlib.data.writers import write_layout
from ssdlib.detector import model_file
from ssdlib.detector.model_file import load_model, save_model
from ssdlib.detector.weights import build_model
from ssdlib.runs.folder import RunFolder
from ssdlib.runs.overrides import NEW_CLASSES_LEARNING_RATE, start_settings

FOUR = (*BCCD_CLASSES, smears.FOURTH_CLASS)
TINY = ModelConfig(width=0.0625, batch_norm=True, priors=SMALL_PRIORS)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "data_folders", lambda: [tmp_path / "data"])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """Weights of a small network for BCCD's classes."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(build_model(TINY, seed=1), path)
    return path


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "four"
    counts = {"train": 4, "val": 2, "test": 2}
    return smears.write_dataset(root, **counts, seed=1, fourth_class=True, progress=False)


@pytest.mark.parametrize("layout", ["voc", "coco", "yolo"])
def test_check_train_evaluate_detect(four, tiny, tmp_path, capsys, layout):
    folder = write_layout(bccd.open_folder(four), tmp_path / "mine", layout)
    assert set(bccd.open_folder(folder).class_names) == set(FOUR)
    assert main(f"data check --data {folder} --quiet".split()) == 0
    assert f"{folder}\n" in capsys.readouterr().out
    if layout != "yolo":
        return  # from here on all layouts are one
    run = tmp_path / "run"
    train = f"train --profile smoke --data {folder} --init {tiny} --run {run} --device cpu"
    assert main(f"{train} --set recipe.epochs=1 --set train_images=4".split()) == 0
    said = capsys.readouterr().err
    assert "class heads remade: kept" in said and f"new {smears.FOURTH_CLASS}" in said
    best = run / "checkpoints/best.safetensors"
    model = load_model(best)
    assert set(model.config.class_names) == set(FOUR) and model.config.width == TINY.width
    capsys.readouterr()
    assert main(f"evaluate --weights {best} --data {folder} --quiet --device cpu".split()) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in FOUR)


def settings(init, profile="quick", names=FOUR):
    return start_settings(str(init), profile, names)


@pytest.mark.parametrize(
    ("init", "profile", "expected"),
    [
        ("scratch", "full", {}),
        ("scratch", "quick", {"recipe": "scratch"}),
        ("imagenet", "quick", {"recipe.initial_weights": "imagenet"}),
        ("coco", "full", {"recipe": "finetune", "recipe.initial_weights": "coco"}),
    ],
)
def test_a_start_without_weights_of_ours(init, profile, expected):
    assert settings(init, profile)[0] == expected


@pytest.mark.parametrize(
    ("names", "message", "faster"),
    [
        (BCCD_CLASSES, "all of the network is kept", False),
        (FOUR, "kept WBC, RBC, Platelets; new Echinocyte", True),
        (("RBC",), "kept RBC; dropped WBC, Platelets", False),
        (("spore", "yeast"), "new spore, yeast; dropped WBC, RBC, Platelets", True),
    ],
)
def test_what_becomes_of_the_heads_is_said(tiny, names, message, faster):
    found, said = settings(tiny, names=names)
    assert message in said
    assert found["recipe.initial_weights"] == str(tiny)
    assert ModelConfig.from_dict(found["recipe.model"]) == TINY
    assert found.get("recipe.learning_rate") == (NEW_CLASSES_LEARNING_RATE if faster else None)


def test_the_shipped_weights_need_no_other_network(tiny, tmp_path, monkeypatch):
    path = tmp_path / "shipped.safetensors"
    save_model(build_model(RECIPES["finetune"].model.replace(width=0.5)), path, half=True)
    monkeypatch.setattr(model_file, "SHIPPED", path)
    assert settings("shipped")[0] == {
        "recipe.initial_weights": "shipped",
        "recipe.learning_rate": NEW_CLASSES_LEARNING_RATE,
    }
    assert settings("shipped", "full", BCCD_CLASSES)[0] == {
        "recipe": "finetune",
        "recipe.initial_weights": "shipped",
    }


def test_settings_of_the_user_win(tiny, four, tmp_path):
    overrides = {**settings(tiny)[0], "recipe.learning_rate": 3e-3}
    run = RunFolder.open(
        tmp_path / "run", profile="quick", data=str(four), overrides=overrides, progress=False
    )
    assert run.profile.recipe.learning_rate == 3e-3
    assert run.profile.recipe.model == TINY.replace(class_names=tuple(sorted(FOUR)))


def wrong(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"{kind}.safetensors"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "pickle":
        torch.save({"a": torch.zeros(1)}, path)
    elif kind == "picture":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "damaged or no safetensors file"),
        ("pickle", "damaged or no safetensors file"),
        ("picture", "damaged or no safetensors file"),
        ("missing", "no weights at"),
        ("folder", "train that run to an end"),
    ],
)
def test_a_wrong_file_is_named_before_anything_is_trained(four, tmp_path, capsys, kind, message):
    path = wrong(tmp_path, kind)
    with pytest.raises(CheckpointError, match=message):
        settings(path)
    assert main(f"train --data {four} --init {path} --run {tmp_path / 'run'} --device cpu".split()) == 1
    assert str(path) in capsys.readouterr().err and not (tmp_path / "run").exists()
