"""The ablation: every change is one that the profile has, and a finished row is not run again."""

import json

import pytest
from typer.testing import CliRunner

from ssdlib.config import PROFILES
from ssdlib.runs.overrides import apply_overrides
from tests.benchmarks import ablation


def test_every_row_changes_the_recipe_and_sees_as_many_images():
    rows = ablation.changes(epochs=10, images=200)
    for name, overrides in rows.items():
        recipe = apply_overrides(
            PROFILES["full"],
            {"recipe.epochs": 10, "recipe.smears": 0, **overrides},
        ).recipe
        seen = recipe.epochs * (200 + recipe.smears)
        assert seen == 2000, name
    assert rows[ablation.BASELINE] == {} and all(rows[name] for name in rows if name != ablation.BASELINE)


@pytest.mark.parametrize(
    "scores, expected",
    [
        ([], 2),
        ([("as it is", 0, 0.9), ("as it is", 1, 0.8), ("no flips", 0, 0.86)], 4),
        ([("no flips", 0, None)], 2),
    ],
)
def test_table(scores, expected):
    rows = [{"change": name, "seed": seed, "map_50": score} for name, seed, score in scores]
    lines = ablation.table(rows).splitlines()
    assert len(lines) == expected
    if expected == 4:
        assert lines[2] == "| as it is | 0.850 (0.800 to 0.900) |  | 2 |"
        assert lines[3] == "| no flips | 0.860 | +1.0 | 1 |"


def test_rows_are_trained_once(smears_root, tmp_path, monkeypatch):
    monkeypatch.setattr(
        ablation, "changes", lambda epochs, images: {ablation.BASELINE: {}, "no flips": {"train_images": 4}}
    )
    tiny = {"recipe.model.width": 0.0625, "recipe.batch_size": 2, "val_images": 1, "precision": "fp32"}
    given = ablation.run_row
    trained = []

    def run_row(name, overrides, *rest):
        trained.append(name)
        return given(name, {**tiny, **overrides}, *rest)

    monkeypatch.setattr(ablation, "run_row", run_row)
    file = tmp_path / "ablation.json"
    command = [
        "--data",
        str(smears_root),
        "--images",
        "6",
        "--json",
        str(file),
        "--runs",
        str(tmp_path / "runs"),
    ]
    import typer

    app = typer.Typer()
    app.command()(ablation.main)
    first = CliRunner().invoke(app, [*command, "--only", "no flips"])
    assert first.exit_code == 0, first.output
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0 and trained == ["no flips", "as it is"], again.output
    rows = json.loads(file.read_text())["rows"]
    assert [row["change"] for row in rows] == trained and all(0 <= row["map_50"] <= 1 for row in rows)
    assert CliRunner().invoke(app, [*command, "--only", "no such"]).exit_code == 2
