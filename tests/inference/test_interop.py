"""Conversions of detections to and from other tools' formats: round trips, and what is refused."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.common.tables import from_cell, to_cell
from ssdlib.data.images import write_image
from ssdlib.inference.detections import Detections
from ssdlib.inference.interop import FRAME_COLUMNS, fiftyone_labels
from ssdlib.inference.results import cells_csv
from tests.inference.cases import EXAMPLES, NAMES, SIZE, assert_same, random_detections


@pytest.mark.parametrize("detections", EXAMPLES)
class TestRoundTrips:
    def test_coco(self, detections):
        results = json.loads(json.dumps(detections.to_coco(7)))
        others = random_detections(3, seed=1).to_coco(8)
        assert_same(Detections.from_coco(results + others, SIZE, NAMES, "field.jpg", image_id=7), detections)

    def test_supervision(self, detections):
        pytest.importorskip("supervision")
        converted = detections.to_supervision()
        assert len(converted) == len(detections)
        assert list(converted.data["class_name"]) == detections.names
        assert [NAMES[number] for number in converted.class_id] == detections.names, "counted from 0"
        assert_same(Detections.from_supervision(converted, SIZE, NAMES, "field.jpg"), detections)

    def test_fiftyone(self, detections):
        content = fiftyone_labels([("field", detections), ("other", random_detections(2, seed=1))])
        labels = json.loads(json.dumps(content))["labels"]["field"]
        assert_same(Detections.from_fiftyone(labels, SIZE, NAMES, "field.jpg"), detections, atol=1e-4)
        assert (labels is None) == (len(detections) == 0), "FiftyOne's sign of an image without labels"

    def test_frame(self, detections):
        pandas = pytest.importorskip("pandas")
        frame = detections.to_frame()
        assert tuple(frame.columns) == FRAME_COLUMNS and len(frame) == len(detections)
        assert_same(Detections.from_frame(frame, SIZE, NAMES, "field.jpg"), detections)
        many = pandas.concat([frame, replace(random_detections(3, seed=1), image="other.jpg").to_frame()])
        assert_same(Detections.from_frame(many, SIZE, NAMES, "field.jpg"), detections)

    @pytest.mark.parametrize("um", [None, 0.1])
    @pytest.mark.parametrize("image", ["field.jpg", "=field.jpg", "'=field.jpg", "'field.jpg"])
    def test_csv(self, detections, image, um):
        pandas = pytest.importorskip("pandas")
        detections, other = replace(detections, image=image), random_detections(3, seed=1)
        table = pandas.read_csv(
            io.StringIO(cells_csv([(detections, um), (replace(other, image="b.jpg"), um)]))
        )
        assert tuple(table.columns) == (*FRAME_COLUMNS, "width_um", "height_um")
        assert len(table) == len(detections) + 3 and table["width_um"].isna().all() == (um is None)
        assert_same(Detections.from_frame(table, SIZE, NAMES, image), detections, atol=0.0051)


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        *((text, text) for text in ("", "a.jpg", "../a.jpg", "a=1.jpg", "'a.jpg", "'")),
        *((text, f"'{text}") for text in ("=1+1", "+a", "-a.jpg", "@a", "'=a", "''@a")),
    ],
)
def test_no_spreadsheet_runs_a_name_as_a_formula(text, cell):
    assert to_cell(text) == cell and from_cell(cell) == text


def test_classes_are_read_back_that_a_spreadsheet_would_run():
    pandas = pytest.importorskip("pandas")
    found = Detections([[1, 2, 3, 4]], [0.5], [1], SIZE, ("=CELL", "RBC"), "a.jpg")
    table = pandas.read_csv(io.StringIO(cells_csv([(found, None)])))
    assert table["class"][0] == "'=CELL"
    assert_same(Detections.from_frame(table, SIZE, found.class_names), found)


def test_fiftyone_boxes_are_shares_of_the_image():
    one = Detections([[64, 48, 128, 144]], [0.5], [2], SIZE, NAMES)
    (label,) = one.to_fiftyone()
    assert label["bounding_box"] == pytest.approx([0.1, 0.1, 0.1, 0.2])
    assert (label["label"], label["confidence"]) == ("RBC", 0.5)
    del label["confidence"]
    assert Detections.from_fiftyone([label], SIZE, NAMES).scores.tolist() == [1.0], "a person's label"


@pytest.mark.parametrize(
    "labels",
    [[{}], [{"label": "Giraffe", "bounding_box": [0, 0, 1, 1]}], [{"label": "RBC", "bounding_box": [0]}]],
)
def test_not_fiftyones_labels(labels):
    with pytest.raises(DataError, match="FiftyOne"):
        Detections.from_fiftyone(labels, SIZE, NAMES)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda frame: frame.drop(columns="xmin"), "lacks xmin"),
        (lambda frame: frame.assign(**{"class": "Giraffe"}), "Giraffe"),
        (lambda frame: frame.assign(image=["a", "b"]), "2 images"),
    ],
)
def test_tables_that_are_no_detections(damage, message):
    pytest.importorskip("pandas")
    with pytest.raises(DataError, match=message):
        Detections.from_frame(damage(random_detections(2).to_frame()), SIZE, NAMES)


def test_pandas_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"ssdlib\[pandas\]"):
        random_detections(1).to_frame()


def test_coco_boxes_are_corner_and_size():
    one = Detections([[10, 20, 40, 80]], [0.5], [2], SIZE, NAMES)
    assert one.to_coco(3) == [
        {"image_id": 3, "category_id": 2, "bbox": [10.0, 20.0, 30.0, 60.0], "score": 0.5}
    ]


def test_supervision_without_class_or_score():
    sv = pytest.importorskip("supervision")
    boxes = np.array([[1.0, 2.0, 3.0, 4.0]])
    found = Detections.from_supervision(sv.Detections(boxes, class_id=np.array([1])), SIZE, NAMES)
    assert found.scores.tolist() == [1.0] and found.names == ["RBC"]
    own = sv.Detections(boxes, class_id=np.array([0]), data={"class_name": np.array(["Platelets"])})
    assert Detections.from_supervision(own, SIZE, NAMES).names == ["Platelets"], "names win over numbers"
    own.data["class_name"] = np.array(["Giraffe"])
    with pytest.raises(DataError, match="WBC, RBC, Platelets"):
        Detections.from_supervision(own, SIZE, NAMES)
    with pytest.raises(DataError, match="class_id"):
        Detections.from_supervision(sv.Detections(boxes), SIZE, NAMES, "field.jpg")


@pytest.mark.parametrize("layout", ["coco", "yolo", "pascal_voc"])
def test_a_data_set_of_supervision_keeps_the_classes(tmp_path, layout):
    sv = pytest.importorskip("supervision")
    found = Detections([[1, 2, 30, 40], [50, 60, 90, 80]], [0.9, 0.8], [2, 1], SIZE, NAMES, "a.png")
    write_image(tmp_path / "a.png", np.zeros((SIZE[1], SIZE[0], 3), np.uint8))
    path = str(tmp_path / "a.png")
    dataset = sv.DetectionDataset(list(NAMES), [path], {path: found.to_supervision()})
    if layout == "coco":
        dataset.as_coco(str(tmp_path / "out"), str(tmp_path / "out.json"))
        entries = json.loads((tmp_path / "out.json").read_text())
        names = {one["id"]: one["name"] for one in entries["categories"]}
        assert [names[one["category_id"]] for one in entries["annotations"]] == found.names
        back = sv.DetectionDataset.from_coco(str(tmp_path / "out"), str(tmp_path / "out.json"))
    elif layout == "yolo":
        words = str(tmp_path / "out"), str(tmp_path / "labels"), str(tmp_path / "data.yaml")
        dataset.as_yolo(*words)
        back = sv.DetectionDataset.from_yolo(*words)
    else:
        words = str(tmp_path / "out"), str(tmp_path / "labels")
        dataset.as_pascal_voc(*words)
        back = sv.DetectionDataset.from_pascal_voc(*words)
    ((_, _, theirs),) = back
    names = [back.classes[number] for number in theirs.class_id]
    assert sorted(names) == ["RBC", "WBC"]
    assert Detections.from_supervision(theirs, SIZE, back.classes).counts() == dict.fromkeys(
        back.classes, 0
    ) | {"RBC": 1, "WBC": 1}


def test_supervision_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match=r"pip install 'ssdlib\[supervision\]'"):
        random_detections(1).to_supervision()


def test_damaged_coco_results_are_refused():
    with pytest.raises(DataError, match="bbox"):
        Detections.from_coco([{"image_id": 1, "score": 0.5, "category_id": 1}], SIZE, NAMES)
