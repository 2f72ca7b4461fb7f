"""Missing labels: which finds count, how precise they are said to be, and the completed copy."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssdlib.__main__ import main
from ssdlib.common.errors import DataError
from ssdlib.common.files import read_json, write_json
from ssdlib.data import source as bccd
from ssdlib.data.formats.voc import read_tree
from ssdlib.data.writers import write_layout
from ssdlib.inference import tiling
from ssdlib.tools.label_errors import complete as work
from ssdlib.tools.label_errors.complete import apply_finds, complete, completion_table, find_missing
from ssdlib.tools.label_errors.folds import FoldSettings
from tests.tools.label_cases import A, B, C, folder_of, found


def fields(count, labeled, seed=0):
    """Labels and detections of fields with a place for each of 12 cells: nine red cells, found at scores of
    0.5 to 1 and labeled with the chance `labeled(column, row)`, and three finds of nothing, at 0.1 to 0.7."""
    draw = np.random.default_rng(seed)
    images, detections, real = {}, [], []
    for number in range(count):
        labels, items = [], []
        cells = set(draw.permutation(12)[:9].tolist())
        for place in range(12):
            column, row = place % 4, place // 4
            left, top = 50 * column + 5, 52 * row + 6
            box = (left, top, left + 40, top + 40)
            hidden = place in cells and draw.random() >= labeled(column, row)
            if place in cells and not hidden:
                labels.append(("RBC", box))
            items.append(("RBC", draw.uniform(0.5, 1) if place in cells else draw.uniform(0.1, 0.7), box))
            real += [(f"field-{number:02}", box)] if hidden else []
        images[f"field-{number:02}"] = labels
        detections.append(found(*sorted(items, key=lambda item: -item[1]), image=f"field-{number:02}"))
    return images, detections, set(real)


def write_predictions(folder, detections):
    write_json(folder / "all.json", [one.to_dict() for one in detections])
    return folder


@pytest.mark.parametrize(
    ("labels", "detections", "expected"),
    [
        ([], (), []),
        ([("RBC", A)], [("RBC", 0.9, A)], []),
        ([("RBC", A)], [("RBC", 0.9, B)], [("RBC", B)]),
        ([], [("RBC", 0.9, A), ("WBC", 0.8, A)], [("RBC", A)]),  # one object, the surest class
        ([("WBC", A)], [("RBC", 0.9, A)], []),  # in doubt, but not without a label
        ([("RBC", A)], [("RBC", 0.9, A), ("RBC", 0.8, (30, 10, 70, 50))], [("RBC", (30, 10, 70, 50))]),
        ([("RBC", A)], [("RBC", 0.9, A), ("RBC", 0.8, (22, 10, 62, 50))], []),  # its second box
        ([("RBC", A)], [("RBC", 0.9, A), ("RBC", 0.8, (12, 12, 34, 34))], []),  # a part of it
        ([("RBC", A), ("RBC", B)], [("RBC", 0.8, (5, 5, 145, 65))], []),  # around both
        # A platelet upon a labeled red cell is an object of its own, also where its class has no label.
        (
            [("RBC", A), ("Platelets", C)],
            [("RBC", 0.9, A), ("Platelets", 0.8, (20, 20, 32, 32))],
            [("Platelets", (20, 20, 32, 32))],
        ),
    ],
)
def test_which_detections_are_finds(tmp_path, labels, detections, expected):
    labels = [(name, (70, 110, 82, 122) if box == C else box) for name, box in labels]
    source = folder_of(tmp_path, {"field": labels, "other": [("RBC", B)]})
    result = find_missing(source.dataset("all"), [found(*detections), found(image="other")])
    assert [(issue.class_name, issue.box) for issue in result.finds] == expected


def test_the_precision_that_is_estimated_is_that_of_the_truth(tmp_path):
    images, detections, real = fields(100, lambda column, row: 0.5, seed=1)
    result = find_missing(folder_of(tmp_path, images).dataset("all"), detections, precision=0.9)
    estimate = result.classes[1]
    assert estimate.name == "RBC" and estimate.precision >= 0.9
    right = [(issue.image, issue.box) in real for issue in result.added]
    assert np.mean(right) == pytest.approx(estimate.precision, abs=0.05)
    assert sum(right) >= 0.65 * len(real)
    assert estimate.missing == pytest.approx(len(real), rel=0.15)
    stricter = find_missing(folder_of(tmp_path / "b", images).dataset("all"), detections, precision=0.99)
    assert 0 < len(stricter.added) < len(result.added)


def test_each_place_has_its_own_share_of_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(tiling, "BORDER", 0.04)  # the first row and the outer columns
    images, detections, real = fields(80, lambda column, row: 0.9 if row > 0 and column in (1, 2) else 0.3)
    result = find_missing(folder_of(tmp_path, images).dataset("all"), detections)
    labeled = result.classes[1].labeled
    assert labeled["alone"] == pytest.approx(0.9, abs=0.08)
    assert labeled["border"] == pytest.approx(0.3, abs=0.08)
    assert labeled["overlapping"] is None
    assert np.mean([(issue.image, issue.box) in real for issue in result.added]) >= 0.93
    assert "labeled, border" in completion_table(result).to_text()


def test_labels_that_the_detector_learned_from_are_taken_for_complete(tmp_path):
    # Then every label scores more than every object without one.
    images = {f"field-{k:02}": [("RBC", A)] for k in range(40)}
    detections = [found(("RBC", 0.9, A), ("RBC", 0.4, B), image=image) for image in images]
    result = find_missing(folder_of(tmp_path, images).dataset("all"), detections)
    assert len(result.finds) == 40 and not result.added
    dataset = folder_of(tmp_path / "again", images).dataset("all")
    assert len(find_missing(dataset, detections, min_score=0.4).added) == 40
    assert not find_missing(dataset, detections, min_score=0.41).added


def test_a_class_with_few_labels_is_left_to_a_person(tmp_path):
    images, detections, real = fields(3, lambda column, row: 0.5)
    assert sum(map(len, images.values())) < work.LEAST < 27
    result = find_missing(folder_of(tmp_path, images).dataset("all"), detections)
    assert len(result.finds) >= len(real) and not result.added


def test_predictions_for_other_images_are_refused(tmp_path):
    dataset = folder_of(tmp_path, {"field": [("RBC", A)]}).dataset("all")
    with pytest.raises(DataError, match="1 images and 0 predictions"):
        find_missing(dataset, [])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0], [1]),
        ([0, 1, 1], [0, 1, 1]),
        ([1, 0, 0, 1], [1 / 3, 1 / 3, 1 / 3, 1]),
        ([0, 1, 0, 1, 0, 1], [0, 0.5, 0.5, 0.5, 0.5, 1]),
        ([3, 2, 1], [2, 2, 2]),
    ],
)
def test_isotonic_regression(values, expected):
    assert work._rising(np.array(values, float)) == pytest.approx(expected)


# The copy --------------------------------------------------------------------------------------------------


def in_layout(root, images, layout):
    source = folder_of(root / "voc", images)
    return source if layout == "voc" else bccd.open_folder(write_layout(source, root / layout, layout))


@pytest.mark.parametrize("layout", ["voc", "coco", "yolo"])
def test_the_copy_keeps_the_layout_and_marks_what_was_added(tmp_path, layout):
    images, detections, _ = fields(40, lambda column, row: 0.6)
    images["field-00"] = []  # a file without a label, too
    source = in_layout(tmp_path, images, layout)
    before = source.fingerprint
    predictions = write_predictions(tmp_path / "p", detections)
    out, settings = tmp_path / "out", FoldSettings(split="all")
    result = complete(source, out, settings, predictions=predictions, rounds=1)
    assert result.added and bccd.open_folder(source.folder).fingerprint == before
    copy = bccd.open_folder(out / "data")
    assert (copy.kind, copy.labels.splits) == (source.kind, source.labels.splits)
    with (out / "data/added.csv").open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(result.added)
    marked = set()
    for row in rows:
        one = copy.labels.by_id[row["image"]].objects[int(row["object"]) - 1]
        assert one.name == row["class"]
        sides = [float(row[side]) for side in ("xmin", "ymin", "xmax", "ymax")]
        assert one.box == pytest.approx(sides, abs=0.01)
        assert 0 < float(row["score"]) <= 1 and 0.5 <= float(row["precision"]) <= 1
        marked.add((row["image"], int(row["object"])))
    # All others are the labels of the source, in order.
    for image in source.labels.images:
        objects = copy.labels.by_id[image.image_id].objects
        kept = [o for k, o in enumerate(objects, 1) if (image.image_id, k) not in marked]
        assert [(o.name, o.written) for o in kept] == [(o.name, o.written) for o in image.objects]
    # It is the same again, and nothing is written a second time.
    stamp = (out / "data/added.csv").stat().st_mtime_ns
    assert complete(source, out, settings, predictions=predictions, rounds=1).added == result.added
    assert (out / "data/added.csv").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="already holds something"):
        complete(source, out, settings, predictions=predictions, rounds=1, precision=0.8)


def test_marks_in_the_files_themselves(tmp_path):
    images, detections, _ = fields(40, lambda column, row: 0.6)
    predictions = write_predictions(tmp_path / "p", detections)
    voc, coco = (in_layout(tmp_path / layout, images, layout) for layout in ("voc", "coco"))
    settings = FoldSettings(split="all")
    result = complete(voc, tmp_path / "a", settings, predictions=predictions, rounds=1)
    complete(coco, tmp_path / "b", settings, predictions=predictions, rounds=1)
    poses = [
        node.findtext("pose")
        for file in (tmp_path / "a/data/Annotations").glob("*.xml")
        for node in read_tree(file).iterfind("object")
    ]
    assert poses.count("added") == len(result.added)
    assert poses.count("Unspecified") == sum(map(len, images.values()))
    entries = [
        entry
        for file in (tmp_path / "b/data/annotations").glob("*.json")
        for entry in read_json(file)["annotations"]
    ]
    marks = [entry["added"] for entry in entries if "added" in entry]
    assert len(marks) == len(result.added) and marks[0].keys() == {"score", "precision"}
    for file in (tmp_path / "b/data/annotations").glob("*.json"):
        numbers = [entry["id"] for entry in read_json(file)["annotations"]]
        assert len(set(numbers)) == len(numbers)


def test_other_files_and_unlabeled_classes_of_yolo_folders(tmp_path):
    source = in_layout(tmp_path, {f"field-{k}": [("RBC", A)] for k in range(4)}, "yolo")
    label = next(iter(source.labels.images)).label_file
    label.write_text(label.read_text().strip())  # no newline at its end
    (issue,) = find_missing(source.dataset("all"), [
        found(*([("Platelets", 0.9, (70, 110, 82, 122))] if image == label.stem else []), image=image)
        for image in source.split_ids("all")
    ]).finds  # fmt: skip
    source = bccd.open_folder(source.folder)
    work.write_copy(source, tmp_path / "copy", [issue])
    copied = tmp_path / "copy" / label.relative_to(source.folder)
    assert [line.split()[0] for line in copied.read_text().splitlines()] == ["1", "2"]
    names = source.folder / "data.yaml"
    names.write_text(names.read_text().replace("  2: Platelets\n", ""))
    with pytest.raises(DataError, match="does not list the class Platelets"):
        work.write_copy(bccd.open_folder(source.folder), tmp_path / "other", [issue])
    assert not (tmp_path / "other").exists()


# Rounds ----------------------------------------------------------------------------------------------------


@pytest.fixture
def rounds(monkeypatch):
    """The labels that each round's networks would be trained on; what they find comes from the list given."""
    asked = []

    def give(*detections):
        def out_of_fold(source, out, settings, kept):
            asked.append((Path(out).name, sum(source.dataset(settings.split).class_counts().values())))
            return detections[len(asked) - 1]

        monkeypatch.setattr(work, "out_of_fold", out_of_fold)
        return asked

    return give


def test_a_round_learns_from_what_the_one_before_added_until_little_is_new(tmp_path, rounds):
    images, all_found, _ = fields(40, lambda column, row: 0.5)
    labels = sum(map(len, images.values()))

    # The first networks find the cells of the first two columns only, as do the labels' own.
    def seen(one):
        left = one.boxes[:, 0] < 100
        return replace(one, boxes=one.boxes[left], scores=one.scores[left], labels=one.labels[left])

    first = [seen(one) for one in all_found]
    asked = rounds(first, all_found, all_found, all_found)
    source = folder_of(tmp_path / "data", images)
    settings = FoldSettings(split="all")
    result = complete(source, tmp_path / "out", settings, rounds=4)
    once = len(find_missing(source.dataset("all"), first).added)
    assert 0 < once < len(result.added)
    assert asked == [("round-1", labels), ("round-2", labels + once), ("round-3", labels + len(result.added))]
    copy = bccd.open_folder(tmp_path / "out/data").dataset("all")
    assert sum(copy.class_counts().values()) == labels + len(result.added)


def test_a_round_that_finds_less_does_not_count(tmp_path, rounds):
    images, detections, _ = fields(40, lambda column, row: 0.5)
    nothing = [found(image=one.image) for one in detections]
    # The best that these networks find agrees with no label.
    wrong = [
        found(("RBC", 0.9, (0, 80, 9, 89)), ("RBC", 0.1, (5, 6, 45, 46)), image=one.image) for one in nothing
    ]
    source, settings = folder_of(tmp_path / "data", images), FoldSettings(split="all")
    for number, worse in enumerate((nothing, wrong)):
        asked = rounds(detections, worse)
        asked.clear()
        result = complete(source, tmp_path / f"out-{number}", settings, rounds=4)
        assert len(asked) == 2
        assert result.added == find_missing(source.dataset("all"), detections).added != []


def test_rounds_end_when_enough_were_made(tmp_path, rounds):
    images, detections, _ = fields(40, lambda column, row: 0.5)
    asked = rounds(detections)
    complete(folder_of(tmp_path / "data", images), tmp_path / "out", FoldSettings(split="all"), rounds=1)
    assert len(asked) == 1


# Everything together ---------------------------------------------------------------------------------------


def test_command_line(tmp_path, capsys):
    images, detections, _ = fields(40, lambda column, row: 0.6)
    source = folder_of(tmp_path / "data", images)
    predictions = write_predictions(tmp_path / "p", detections)
    command = ["data", "complete", "--data", str(source.folder), "--split", "all", "-q"]
    predicted = [*command, "--predictions", str(predictions)]
    assert main([*predicted, "--out", str(tmp_path / "out")]) == 0
    assert f"completed copy: {tmp_path / 'out/data'}" in capsys.readouterr().out
    assert main([*predicted, "--out", str(tmp_path / "review"), "--review"]) == 0
    assert {path.name for path in (tmp_path / "review").iterdir()} == {"complete.html", "decisions.json"}
    decisions = tmp_path / "review/decisions.json"
    content = json.loads(decisions.read_text())
    for record in content["issues"][:2]:
        record["decision"] = "accept"
    write_json(decisions, content)
    copy = [*command, "--apply", str(decisions), "--out", str(tmp_path / "copy")]
    assert main(copy) == 0
    assert "added: 2" in capsys.readouterr().out
    completed = bccd.open_folder(tmp_path / "copy").dataset("all").class_counts()
    assert completed["RBC"] == sum(map(len, images.values())) + 2
    shutil.rmtree(tmp_path / "copy")
    content["issues"][0].update(object=1)
    write_json(decisions, content)
    assert main(copy) == 1
    assert "accepted issues that add nothing" in capsys.readouterr().err
    write_json(decisions, {**content, "issues": []})
    with pytest.raises(DataError, match="nothing is accepted"):
        apply_finds(source, decisions, tmp_path / "copy")
