"""The ablation: labels taken off by chance, changes that the recipe has, rows trained once."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ssdlib.common.errors import ConfigError
from ssdlib.data.dataset import DetectionDataset, Sample
from tests.benchmarks import ablation
from tests.benchmarks.invocation import invoke

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
        ([], 0.5, (0, 0, 0)),
        ([[], [1, 3]], 1.0, (1, 0, 1)),
        ([[2, 2, 1], [2, 2]], 0.0, (1, 4, 0)),
        ([[2, 2, 1], [2, 2]], 0.5, (1, 2, 0)),
        ([[2, 2, 1], [2, 2]], 1.0, (1, 0, 0)),
    ],
)
def test_labels_are_removed_of_one_class_only(labels, share, left):
    data = dataset(*labels)
    before = numbers(data)
    fewer = ablation.remove_labels(data, "RBC", share, seed=0)
    assert tuple(fewer.class_counts().values()) == left
    assert len(fewer) == len(data) and numbers(data) == before  # all images; the given data is as it was


def test_what_a_small_share_removes_a_larger_one_removes_too():
    data = dataset(*[[2] * 10] * 20)
    for seed in range(3):
        kept = [numbers(ablation.remove_labels(data, "RBC", share, seed)) for share in (0.0, 0.15, 0.3, 0.5)]
        assert [len(k) for k in kept] == [200, 170, 140, 100]
        assert kept[0] > kept[1] > kept[2] > kept[3]
    assert kept[3] != numbers(ablation.remove_labels(data, "RBC", 0.5, seed=3))


def test_a_class_that_the_data_lacks_is_named():
    with pytest.raises(ConfigError, match=r"no class 'blast'; .*RBC"):
        ablation.remove_labels(dataset([2]), "blast", 0.5, seed=0)


def test_every_row_changes_the_recipe_and_sees_as_many_images():
    rows = ablation.changes(epochs=10, images=200)
    recipes = {name: ablation.recipe_of(overrides, 10) for name, overrides in rows.items()}
    for name, recipe in recipes.items():
        assert recipe.epochs * (200 + recipe.smears) == 2000, name
        assert name == ablation.BASELINE or recipe != recipes[ablation.BASELINE], name


def row(change, score=0.5, removed=0.0, recall=0.25):
    return {"change": change, "removed": removed, "map_50": score, "recall": recall, "precision": None}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], []),
        ([row("no flips", None)], [("no flips", "0%", "n/a", "", "0.250", "n/a", "1")]),
        (
            [row("as it is", 0.9), row("as it is", 0.8, recall=None), row("no flips", 0.86),
             row("no flips", 0.6, 0.5)],
            [
                ("as it is", "0%", "0.850", "", "n/a", "n/a", "2"),
                ("no flips", "0%", "0.860", "+1.0", "0.250", "n/a", "1"),
                ("no flips", "50%", "0.600", "", "0.250", "n/a", "1"),
            ],
        ),
    ],
)  # fmt: skip
def test_table(rows, expected):
    assert ablation.table(rows).rows == expected


@pytest.mark.slow
def test_rows_are_trained_once_and_the_largest_share_first(smears_root, tmp_path, monkeypatch):
    tiny = {"recipe.model.width": 0.0625, "recipe.batch_size": 2}
    rows = {"as it is": tiny, "no warm-up": {**tiny, "recipe.warmup_steps": 0}}
    monkeypatch.setattr(ablation, "changes", lambda epochs, images: rows)
    trained, train_row = [], ablation.train_row

    def noted(train, val, recipe, seed):
        trained.append((train.class_counts()["RBC"], recipe.warmup_steps == 0))
        return train_row(train, val, recipe, seed)

    monkeypatch.setattr(ablation, "train_row", noted)
    file = tmp_path / "ablation.json"
    few = f"--data {smears_root} --images 4 --train-images 4 --val-images 1 --json {file}".split()
    first = invoke(ablation.main, *few, "--removed", "1", "--removed", "0", "--only", "no warm-up")
    assert first.exit_code == 0, first.output
    assert [(bool(labels), change) for labels, change in trained] == [(False, True), (True, True)]
    again = invoke(ablation.main, *few)
    assert again.exit_code == 0, again.output
    assert len(trained) == 3 and Counter(trained).most_common(1)[0][1] == 1
    stored = json.loads(file.read_text())
    assert [r["change"] for r in stored["rows"]] == ["no warm-up", "no warm-up", "as it is"]
    assert all(0 <= r["map_50"] <= 1 and set(r["ap_50"]) == set(NAMES) for r in stored["rows"])
    assert stored["terms"]["images"] == 4 and "root" not in stored["data"]
    assert (tmp_path / "ablation.png").stat().st_size > 10_000
    for wrong in (["--only", "no such"], ["--removed", "1.5"]):
        assert invoke(ablation.main, *few, *wrong).exit_code == 2
