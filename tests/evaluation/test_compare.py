"""Two detectors on the same images: a difference is told where there is one, and not where there is none."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ssdlib.__main__ import main
from ssdlib.common.errors import DataError
from ssdlib.config import ModelConfig
from ssdlib.detector.model_file import save_model
from ssdlib.detector.weights import build_model
from ssdlib.evaluation.bootstrap import bootstrap_map, resample_images
from ssdlib.evaluation.compare import Difference, PairedComparison, compare_detections
from ssdlib.evaluation.metrics import weighted_metrics
from ssdlib.evaluation.tables import Interval
from ssdlib.inference.detections import Detections

NAMES = ("WBC", "RBC")
SIZE = (640, 480)
NO_OBJECTS = {"boxes": torch.empty(0, 4), "labels": torch.empty(0, dtype=torch.int64)}
ZERO = Interval(0.0, 0.0, 0.0)
SIDES = ("boxes", "scores", "labels")
NONE = Interval(None, None, None)


def fields(images, misses, seed=0, *, chance=0, objects=8, jitter=3):
    """(detections, targets) of a detector that misses each object with the probability `misses`.

    The same seed gives the same objects. With the same `chance` a higher probability misses all that a lower
    one does; with another, what it misses is independent.
    """
    truth, luck = np.random.default_rng(seed), np.random.default_rng([seed, chance])
    detections, targets = [], []
    for index in range(images):
        boxes = np.concatenate([corner := truth.integers(0, 400, (objects, 2)), corner + 60], axis=1)
        labels = truth.integers(1, 3, objects)
        found, kept = boxes + luck.normal(0, jitter, boxes.shape), luck.random(objects) >= misses
        scores = luck.random(objects)
        detections.append(Detections(found[kept], scores[kept], labels[kept], SIZE, NAMES, f"{index}.png"))
        targets.append({"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels)})
    return detections, targets


def nothing(images):
    return [Detections.empty(SIZE, NAMES, f"{index}.png") for index in range(images)]


def figures(comparison: PairedComparison) -> dict[str, Difference]:
    return {"map_50": comparison.map_50, "map": comparison.map, **comparison.per_class}


@pytest.mark.parametrize(
    ("detections", "targets", "gap"),
    [
        pytest.param([], [], NONE, id="no image"),
        pytest.param(nothing(3), [NO_OBJECTS] * 3, NONE, id="nothing anywhere"),
        pytest.param(fields(3, 0.5)[0], [NO_OBJECTS] * 3, NONE, id="no objects"),
        pytest.param(*fields(1, 0.5), Interval(0.0, None, None), id="one image"),
        pytest.param(nothing(3), fields(3, 0)[1], ZERO, id="no detections"),
        pytest.param(*fields(20, 0.5), ZERO, id="many"),
    ],
)
def test_a_detector_does_not_differ_from_itself(detections, targets, gap):
    comparison = compare_detections(detections, detections, targets, NAMES, samples=50)
    for one in figures(comparison).values():
        assert one.difference == gap and one.a == one.b
        assert one.real is (None if gap.low is None else False)
    assert (
        "nothing to compare" in comparison.verdict if gap is NONE else "no difference" in comparison.verdict
    )
    table = comparison.table()
    assert {len(row) for row in table.rows} == {len(table.header)} and table.rows[-1][0] == "mAP@0.5"
    values = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert set(values) == {"map_50", "map", "per_class", "verdict", "images", "samples", "seed", "level"}
    assert set(values["map"]) == set(values["per_class"]["RBC"]) == {"a", "b", "difference", "real"}


def test_fewer_misses_are_better_and_swapping_the_two_turns_the_sign():
    (worse, targets), (better, _) = fields(30, 0.4), fields(30, 0.2)
    assert all(set(a.scores.tolist()) <= set(b.scores.tolist()) for a, b in zip(worse, better, strict=True))
    there = compare_detections(worse, better, targets, NAMES)
    back = compare_detections(better, worse, targets, NAMES)
    assert there.verdict.startswith("B is better by ") and there.verdict.endswith(
        "(the interval does not hold 0)"
    )
    assert back.verdict == there.verdict.replace("B is", "A is")
    for one, other in zip(figures(there).values(), figures(back).values(), strict=True):
        assert one.real and other.real and one.difference.low > 0
        assert (one.a, one.b) == (other.b, other.a)
        turned = (other.difference.value, other.difference.high, other.difference.low)
        gap = (one.difference.value, one.difference.low, one.difference.high)
        assert gap == pytest.approx([-end for end in turned], abs=1e-12)


def test_the_figures_are_those_of_each_alone_and_the_resamples_the_same_for_both():
    (a, targets), (b, _) = fields(12, 0.4), fields(12, 0.3, jitter=8)
    comparison = compare_detections(a, b, targets, NAMES, samples=12, seed=3)
    alone = [bootstrap_map(found, targets, NAMES, samples=12, seed=3) for found in (a, b)]
    for figure in ("map_50", "map"):
        one = getattr(comparison, figure)
        assert [one.a, one.b] == [getattr(intervals, figure) for intervals in alone]
    weights = resample_images(12, 12, 3)
    of_a, of_b = (weighted_metrics(found, targets, NAMES, weights)["map_50"] for found in (a, b))
    gap = comparison.map_50.difference
    assert (gap.low, gap.high) == pytest.approx(np.percentile((of_b - of_a)[1:], [2.5, 97.5]), abs=1e-12)
    assert gap.value == pytest.approx(alone[1].map_50.value - alone[0].map_50.value, abs=1e-12)


def test_a_small_gap_is_found_where_the_two_intervals_overlap():
    """What pairs are for: b misses a little more of what a finds, and both vary far more between images."""
    rng = np.random.default_rng(1)
    parts = [fields(1, float(rng.random()), seed=seed) for seed in range(40)]
    a, targets = [found[0] for found, _ in parts], [target[0] for _, target in parts]
    b = [replace(one, **{side: getattr(one, side)[: max(1, len(one) - 1)] for side in SIDES}) for one in a]
    gap = compare_detections(a, b, targets, NAMES).map_50
    assert gap.real and gap.b.high > gap.a.low


def test_chance_is_not_taken_for_a_difference():
    """Twice the same detector with its luck drawn anew: one of twenty 95 % intervals should not hold 0."""
    gaps = []
    for seed in range(20):
        (a, targets), (b, _) = fields(20, 0.3, seed), fields(20, 0.3, seed, chance=1)
        gaps.append(compare_detections(a, b, targets, NAMES, samples=200).map_50)
    assert sum(gap.difference.value != 0 for gap in gaps) > 15
    assert sum(bool(gap.real) for gap in gaps) <= 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found[:-1], "A has detections of 3 images, B of 2"),
        (lambda found: found[::-1], r"image 0 of A is 0.png \(640 x 480\), of B 2.png"),
        (lambda found: [replace(one, image_size=(64, 48)) for one in found], r"of B 0.png \(64 x 48\)"),
        (
            lambda found: [replace(one, class_names=("RBC", "WBC")) for one in found],
            "are of RBC, WBC, not of",
        ),
    ],
)
def test_other_images_or_classes_are_refused(change, message):
    found, targets = fields(3, 0.1)
    with pytest.raises(DataError, match=message):
        compare_detections(found, change(found), targets, NAMES)
    with pytest.raises(DataError, match="every image"):
        compare_detections(found, found, targets[:-1], NAMES)


@pytest.mark.parametrize(
    ("value", "low", "high", "points", "verdict"),
    [
        (None, None, None, "n/a", "nothing to compare: there are no objects to find in 87 images"),
        (0.01, None, None, "1.0", "no difference can be told from 87 images"),
        (0.012, -0.003, 0.021, "1.2 [-0.3, 2.1]", "no difference can be told from 87 images"),
        (0.012, 0.0, 0.021, "1.2 [0.0, 2.1]", "no difference can be told from 87 images"),
        (
            0.012,
            0.003,
            0.021,
            "1.2 [0.3, 2.1]",
            "B is better by 1.2 points [0.3, 2.1]: the difference",
        ),
        (-0.012, -0.021, -0.003, "-1.2 [-2.1, -0.3]", "A is better by 1.2 points [0.3, 2.1]: the"),
        (0.0123, 0.0003, 0.021, "1.23 [0.03, 2.10]", "B is better by 1.23 points [0.03, 2.10]: the"),
        (-0.012, -0.021, -0.000001, "-1.20 [-2.10, 0.00]", "A is better by 1.20 points [0.00, 2.10]: the"),
    ],
)
def test_the_words(value, low, high, points, verdict):
    gap = Difference(NONE, NONE, Interval(value, low, high))
    comparison = PairedComparison(gap, gap, {"WBC": gap}, images=87, samples=1000, seed=0)
    assert gap.points == points
    assert comparison.verdict.startswith(verdict)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    configs = {
        "a": (ModelConfig(width=0.05), 1),
        "b": (ModelConfig(width=0.05), 2),
        "dogs": (ModelConfig(width=0.05, class_names=("dog", "cat", "cow")), 1),
    }
    for name, (config, seed) in configs.items():
        save_model(build_model(config, seed=seed), folder / f"{name}.safetensors")
    return folder


@pytest.mark.slow
def test_the_command(networks, smears_root, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/best.safetensors").write_bytes((networks / "b.safetensors").read_bytes())
    report = tmp_path / "out.json"
    options = ["--data", str(smears_root), "--quiet", "--device", "cpu", "--samples", "50"]
    a = str(networks / "a.safetensors")
    assert main(["compare", a, str(run), *options, "--json", str(report)]) == 0
    printed = capsys.readouterr().out
    values = json.loads(report.read_text())
    assert values["a"] == a and values["b"] == str(run / "checkpoints/best.safetensors")
    assert values["split"] == "val" and values["images"] == 3 and values["samples"] == 50
    assert values["data"]["fingerprint"] and "SYNTHETIC" in printed
    assert f"mAP@0.5: {values['verdict']}" in printed and "AP50 Platelets" in printed
    assert main(["compare", a, a, *options]) == 0
    assert "no difference can be told from 3 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("nowhere", "no weights at"),
        ("dogs.safetensors", "A finds WBC, RBC, Platelets, but B dog, cat, cow"),
    ],
)
def test_the_command_refuses(second, message, networks, smears_root, capsys, monkeypatch):
    monkeypatch.chdir(networks)
    assert main(["compare", "a.safetensors", second, "--data", str(smears_root), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
