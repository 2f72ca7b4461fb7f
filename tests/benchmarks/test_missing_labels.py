"""Labels taken off by chance, rows trained once, and the figure of what came of it."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import typer
from matplotlib import pyplot as plt
from typer.testing import CliRunner

from ssdlib.common.errors import ConfigError
from ssdlib.config import RECIPES
from ssdlib.data.dataset import DetectionDataset, Sample
from ssdlib.plots import missing_labels as plots
from tests.benchmarks import missing_labels as bench

NAMES = ("WBC", "RBC", "Platelets")


def dataset(*labels):
    """Images with these labels; each box's first coordinate is its number over all."""
    samples, number = [], 0
    for k, own in enumerate(labels):
        boxes = np.array([[number + j, 0, 300, 200] for j in range(len(own))], np.float32).reshape(-1, 4)
        number += len(own)
        samples.append(Sample(f"i{k}", Path(f"i{k}.png"), 400, 300, boxes, np.array(own, np.int64), ()))
    return DetectionDataset(samples, NAMES)


def numbers(data):
    return {int(box[0]) for sample in data.samples for box in sample.boxes}


@pytest.mark.parametrize(
    ("labels", "share", "left"),
    [
        ([], 0.5, {"WBC": 0, "RBC": 0, "Platelets": 0}),
        ([[], [1, 3]], 1.0, {"WBC": 1, "RBC": 0, "Platelets": 1}),
        ([[2, 2, 1], [2, 2]], 0.0, {"WBC": 1, "RBC": 4, "Platelets": 0}),
        ([[2, 2, 1], [2, 2]], 0.5, {"WBC": 1, "RBC": 2, "Platelets": 0}),
        ([[2, 2, 1], [2, 2]], 0.3, {"WBC": 1, "RBC": 3, "Platelets": 0}),
        ([[2, 2, 1], [2, 2]], 1.0, {"WBC": 1, "RBC": 0, "Platelets": 0}),
    ],
)
def test_labels_are_removed_of_one_class_only(labels, share, left):
    data = dataset(*labels)
    before = numbers(data)
    fewer = bench.remove_labels(data, "RBC", share, seed=0)
    assert fewer.class_counts() == left
    assert len(fewer) == len(data) and numbers(data) == before  # all images; the given data is as it was
    assert all(len(s.boxes) == len(s.labels) for s in fewer.samples)


def test_what_a_small_share_removes_a_larger_one_removes_too():
    data = dataset(*[[2] * 10] * 20)
    for seed in range(3):
        kept = [numbers(bench.remove_labels(data, "RBC", share, seed)) for share in (0.0, 0.15, 0.3, 0.5)]
        assert [len(k) for k in kept] == [200, 170, 140, 100]
        assert kept[0] > kept[1] > kept[2] > kept[3]
    again = [numbers(bench.remove_labels(data, "RBC", 0.5, seed)) for seed in (2, 3)]
    assert again[0] == kept[3] != again[1]


@pytest.mark.parametrize(
    ("name", "share", "message"), [("RBC", 1.5, r"in \[0, 1\]"), ("blast", 0.5, "no class 'blast'; .*RBC")]
)
def test_impossible_removals_are_named(name, share, message):
    with pytest.raises(ConfigError, match=message):
        bench.remove_labels(dataset([2]), name, share, seed=0)


@pytest.mark.parametrize(("images", "train", "epochs"), [(1, 96, 1), (400, 96, 4), (1500, 96, 16), (8, 4, 2)])
def test_the_recipe_of_a_method(images, train, epochs):
    recipes = {method: bench.recipe_for(method, images, train) for method in bench.METHODS}
    for method, recipe in recipes.items():
        assert (recipe.epochs, recipe.smears, recipe.background) == (epochs, 0, method)
        assert recipe.model == RECIPES["scratch"].model


def row(removed, method, seed=0, ap=0.5, recall=0.25):
    return {
        "removed": removed, "method": method, "seed": seed, "recall": recall, "precision": None,
        "map_50": 0.7, "ap_50": {"RBC": ap}, "seconds": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        ([], []),
        ([row(0.5, "hard")], ["| 50% | `hard` | 0.500 | 0.700 | 0.250 | n/a | 1 |"]),
        (
            [row(0.5, "hard", 0), row(0.0, "soft", ap=None), row(0.5, "hard", 1, ap=0.6, recall=None)],
            [
                "| 0% | `soft` | n/a | 0.700 | 0.250 | n/a | 1 |",
                "| 50% | `hard` | 0.550 | 0.700 | n/a | n/a | 2 |",
            ],
        ),
    ],
)
def test_table(rows, lines):
    assert bench.table(rows).splitlines()[2:] == lines


@pytest.fixture
def trained(monkeypatch):
    """Rows are not trained but noted."""
    done = []

    def run_row(train, val, recipe, removed, seed):
        done.append((removed, recipe.background, seed, len(train), len(val)))
        return row(removed, recipe.background, seed)

    monkeypatch.setattr(bench, "run_row", run_row)
    return done


def test_rows_are_trained_once_and_the_largest_share_first(smears_root, tmp_path, trained):
    app, file = typer.Typer(), tmp_path / "missing.json"
    app.command()(bench.main)
    few = ["--data", str(smears_root), "--images", "6", "--train-images", "4", "--json", str(file)]
    first = CliRunner().invoke(
        app, [*few, "--removed", "0.5", "--removed", "0", "--only", "ignore_confident"]
    )
    assert first.exit_code == 0, first.output
    assert trained == [(0.5, "ignore_confident", 0, 4, 3), (0.0, "ignore_confident", 0, 4, 3)]
    again = CliRunner().invoke(app, few)
    assert again.exit_code == 0, again.output
    assert Counter(trained).most_common(1)[0][1] == 1 and len(trained) == 8
    stored = json.loads(file.read_text())
    assert [r["method"] for r in stored["rows"]][:3] == ["ignore_confident", "ignore_confident", "hard"]
    assert stored["terms"]["images"] == 6 and "root" not in stored["data"]
    assert (tmp_path / "missing.png").stat().st_size > 10_000
    other = CliRunner().invoke(app, [*few, "--train-images", "5"])
    assert isinstance(other.exception, ConfigError) and "other terms" in str(other.exception)
    unknown = CliRunner().invoke(app, [*few, "--only", "mirror"])
    assert "no method mirror" in str(unknown.exception)


def test_a_method_that_changed_is_trained_anew(smears_source, tmp_path, trained, monkeypatch):
    settings = {"images": 6, "train_images": 4, "shares": [0.5], "methods": ["ignore_confident"]}
    bench.measure(smears_source, tmp_path / "a.json", **settings)
    monkeypatch.setitem(
        bench.METHODS, "ignore_confident", {"background": "ignore_confident", "negatives_per_positive": 4.0}
    )
    rows = bench.measure(smears_source, tmp_path / "a.json", **settings)
    assert len(trained) == 2 and [r["recipe"]["negatives_per_positive"] for r in rows] == [4.0]
    stored = json.loads((tmp_path / "a.json").read_text())
    del stored["rows"][0]["recipe"]["ignore_iou"]  # as if written before there was such a setting
    (tmp_path / "a.json").write_text(json.dumps(stored))
    bench.measure(smears_source, tmp_path / "a.json", **settings)
    assert len(trained) == 2


def test_a_row_is_really_trained(smears_source):
    train, val = smears_source.dataset("train", 2), smears_source.dataset("val", 1)
    recipe = bench.recipe_for("ignore_confident", 2, 2)
    recipe = recipe.replace(model=recipe.model.replace(width=0.0625), ignore_after=0.0)
    found = bench.run_row(train, val, recipe, 1.0, seed=0)
    assert found["labels"] == 0 and set(found["ap_50"]) == set(NAMES)
    assert 0 <= found["map_50"] <= 1 and found["recall"] is not None and found["seconds"] > 0
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ({}, {}),
        ({"hard": {}}, {"hard": ([], [])}),
        ({"hard": {0.5: 0.4, 0.0: 0.9}}, {"hard": ([0.0, 0.5], [0.9, 0.4])}),
        (
            {"soft": {0.0: None, 0.3: 0.8}, "mine": {0.0: 0.1}},
            {"soft": ([0.3], [0.8]), "mine": ([0.0], [0.1])},
        ),
    ],
)
def test_lines_against_the_share_removed(values, drawn):
    _, given = plt.subplots()
    ax = plots.against_removed(given, values)
    assert ax is given
    found = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.get_lines()}
    assert found == {plots.NAMES.get(name, name): points for name, points in drawn.items()}


@pytest.mark.parametrize("methods", [["soft"], ["hard", "soft"], ["soft", "hard"]])
def test_a_method_keeps_its_color(methods):
    ax = plots.against_removed(None, {name: {0.0: 0.5} for name in methods})
    found = {line.get_label(): line.get_color() for line in ax.get_lines()}
    assert found == {plots.NAMES[name]: plots.COLORS[name] for name in methods}
    assert len(set(plots.COLORS.values())) == len(plots.NAMES) and set(bench.METHODS) < set(plots.NAMES)


@pytest.mark.parametrize("synthetic", [False, True])
@pytest.mark.parametrize("rows", [[], [row(0.5, "hard")], [row(0.5, "hard"), row(0.0, "soft", ap=None)]])
def test_the_figure_has_a_panel_for_each_quantity(rows, synthetic):
    figure = plots.missing_labels(bench.panels(rows), synthetic=synthetic)
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "RBC AP@0.5", "mAP@0.5", "RBC recall at score 0.5",
    ]  # fmt: skip
    assert len(figure.legends) == bool(rows)
    assert ("synthetic" in figure.get_supxlabel()) == synthetic
    assert plots.missing_labels({}).axes
