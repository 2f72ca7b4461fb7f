"""The model card: its tables are those of `ssdlib evaluate`, its facts those of the file."""

import hashlib
import json

import pytest
import safetensors.torch
import torch

from ssdlib.__main__ import main as ssdlib
from ssdlib.config import ModelConfig, Recipe
from ssdlib.detector import model_file
from ssdlib.detector.model_file import load_model, read_metadata, save_model
from ssdlib.detector.weights import build_model

NETWORK = ModelConfig(width=0.0625, batch_norm=True)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(model_file, "SHIPPED", tmp_path / "weights/cells.safetensors")
    return model_file.SHIPPED


@pytest.fixture
def checkpoint(tmp_path):
    recipe = Recipe(model=NETWORK, epochs=7).to_dict()
    save_model(build_model(NETWORK, seed=1), tmp_path / "best", recipe=recipe, epoch=6, seed=3)
    return tmp_path / "best"


def tables(page: str) -> list[str]:
    """The blocks of the section Results, but for the commands."""
    return page.split("## Results")[1].split("To check them")[0].split("```\n")[1::2]


@pytest.mark.slow
def test_a_shipped_checkpoint_and_its_card(shipped, checkpoint, smears_root, tmp_path, capsys, monkeypatch):
    int8 = shipped.with_name("cells-int8.onnx")
    monkeypatch.setattr("ssdlib.inference.onnx.engine.renew_shipped_int8", lambda: int8)
    (tmp_path / "how.md").write_text("`make it` on a potato: 3 h.", encoding="utf-8")
    data = ["--data", str(smears_root), "--quiet"]
    assert ssdlib(["model-card", "--ship", str(checkpoint), "--notes", str(tmp_path / "how.md"), *data]) == 0
    assert capsys.readouterr().out == f"written: {int8}\nwritten: {shipped.with_suffix('.md')}\n"

    stored = safetensors.torch.load_file(shipped)
    assert {t.dtype for t in stored.values()} == {torch.float16, torch.int64}
    about = read_metadata(shipped)
    assert "root" not in about["data"] and "/" not in json.dumps(about["data"])
    assert about["epoch"] == 6 and about["training"] == "`make it` on a potato: 3 h."
    for name, tensor in load_model(checkpoint).state_dict().items():
        torch.testing.assert_close(load_model(shipped).state_dict()[name], tensor, rtol=1e-3, atol=1e-6)

    page = shipped.with_suffix(".md").read_text(encoding="utf-8")
    parameters = sum(p.numel() for p in build_model(NETWORK).parameters())
    for fact in (
        hashlib.sha256(shipped.read_bytes()).hexdigest(),
        about["training"],
        f"| parameters | {parameters:,} |",
        "(8 in conv1_1, 64 in conv7)",
        "7 of batch 8; these weights are of epoch 6",
        "| seed | 3 |",
        "train 6, val 3, test 3 images; drawn",
        "not a medical device",
    ):
        assert fact in page, fact
    commands = page.split("To check them:\n\n```\n")[1].split("```")[0].splitlines()
    assert len(commands) == len(tables(page)) == 2
    for command, table in zip(commands, tables(page), strict=True):
        assert ssdlib([*command.split()[3:], "--quiet"]) == 0
        assert capsys.readouterr().out == table, "the page shows what the command prints"


def test_a_card_of_a_file_that_says_little(tmp_path, smears_root, capsys):
    save_model(build_model(NETWORK), tmp_path / "bare.safetensors")
    arguments = ["--weights", str(tmp_path / "bare.safetensors"), "--data", str(smears_root), "--quiet"]
    assert ssdlib(["model-card", *arguments]) == 0
    page = (tmp_path / "bare.md").read_text(encoding="utf-8")
    assert "does not say by which command" in page and f"--weights {tmp_path}" in page
    assert "| recipe | – |" in page and "None" not in page and "nan" not in page.split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/nowhere"], "/nowhere is not a dataset: there is no /nowhere"),
        (["--notes", "none.md"], "cannot read the notes none.md"),
        (["--weights", "none"], "no weights at none"),
        (["--ship", "none"], "no weights at none"),
        ([], "the shipped weights are missing"),
    ],
)
def test_mistakes_are_one_message_and_write_nothing(
    shipped, smears_root, tmp_path, monkeypatch, capsys, arguments, message
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    data = [] if "--data" in arguments else ["--data", str(smears_root)]
    assert ssdlib(["model-card", *arguments, *data, "--quiet"]) == 1
    printed = capsys.readouterr().err
    assert f"error: {message}" in printed and "Traceback" not in printed
    assert not shipped.exists() and list((tmp_path / "here").iterdir()) == []


def test_help_and_wrong_usage(capsys):
    assert ssdlib(["model-card", "--help"]) == 0 and "--smears" in capsys.readouterr().out
    assert ssdlib(["model-card", "--nothing"]) == 2
