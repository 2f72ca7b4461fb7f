"""Detections: order, thresholds, counts, and the ways to and from other people's formats."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.inference.detections import Detections
from ssdlib.inference.interop import FRAME_COLUMNS, fiftyone_labels

NAMES = ("WBC", "RBC", "Platelets")
SIZE = (640, 480)


def random_detections(count: int, seed: int = 0) -> Detections:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([500.0, 400.0])
    boxes = torch.cat([corner, corner + 1 + 70 * torch.rand(count, 2, generator=generator)], dim=1)
    labels = torch.randint(1, 4, (count,), generator=generator)
    return Detections(boxes, torch.rand(count, generator=generator), labels, SIZE, NAMES, "field.jpg")


def assert_same(a: Detections, b: Detections, atol: float = 0.0) -> None:
    torch.testing.assert_close(a.boxes, b.boxes, atol=atol, rtol=0)
    torch.testing.assert_close(a.scores, b.scores, atol=min(atol, 1e-6), rtol=0)
    assert a.labels.tolist() == b.labels.tolist()
    assert (a.image_size, a.class_names, a.image) == (b.image_size, b.class_names, b.image)


EXAMPLES = [
    pytest.param(Detections.empty(SIZE, NAMES, "field.jpg"), id="none"),
    pytest.param(random_detections(1), id="one"),
    pytest.param(random_detections(200), id="many"),
]


@pytest.mark.parametrize("detections", EXAMPLES)
class TestRoundTrips:
    def test_dict(self, detections):
        values = detections.to_dict()
        text = json.dumps(values, allow_nan=False)
        back = Detections.from_dict(json.loads(text))
        assert_same(back, detections, atol=0.0051)
        assert back.to_dict() == values
        assert set(values) == {"image", "width", "height", "detections", "counts"}
        assert (values["width"], values["height"]) == SIZE
        assert sum(values["counts"].values()) == len(values["detections"]) == len(detections)

    def test_coco(self, detections):
        results = json.loads(json.dumps(detections.to_coco(7)))
        others = random_detections(3, seed=1).to_coco(8)
        assert_same(Detections.from_coco(results + others, SIZE, NAMES, "field.jpg", image_id=7), detections)

    def test_supervision(self, detections):
        pytest.importorskip("supervision")
        converted = detections.to_supervision()
        assert len(converted) == len(detections)
        assert list(converted.data["class_name"]) == detections.names
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
        text = io.StringIO(many.to_csv(index=False))
        read = Detections.from_frame(pandas.read_csv(text), SIZE, NAMES, "field.jpg")
        assert_same(read, detections, atol=1e-4)


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
    assert Detections.from_supervision(
        sv.Detections(boxes, class_id=np.array([1])), SIZE, NAMES
    ).scores.tolist() == [1.0]
    with pytest.raises(DataError, match="class_id"):
        Detections.from_supervision(sv.Detections(boxes), SIZE, NAMES, "field.jpg")


def test_supervision_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match=r"pip install 'ssdlib\[supervision\]'"):
        random_detections(1).to_supervision()


def test_sorted_by_score_and_ties_keep_their_order():
    boxes = [[i, 0, i + 1, 1] for i in range(4)]
    found = Detections(boxes, [0.2, 0.9, 0.2, 0.5], [1, 2, 3, 1], SIZE, NAMES)
    assert found.boxes[:, 0].tolist() == [1, 3, 0, 2]
    assert found.names == ["RBC", "WBC", "WBC", "Platelets"]


@pytest.mark.parametrize(
    ("scores", "labels", "threshold", "left"),
    [
        ([], [], 0.5, 0),
        ([0.5, 0.49], [1, 1], 0.5, 1),
        ([0.7, 0.7], [1, 2], 0.7, 2),
        ([0.7, 0.7], [1, 2], {"WBC": 0.8, "RBC": 0.7, "Platelets": 0.1}, 1),
    ],
)
def test_above(scores, labels, threshold, left):
    found = Detections(torch.zeros(len(scores), 4), scores, labels, SIZE, NAMES)
    assert len(found.above(threshold)) == left


@pytest.mark.parametrize(
    "threshold", [{}, {"WBC": 0.5}, {"WBC": 0.5, "RBC": 0.5, "Platelets": 0.5, "Giraffe": 0.5}]
)
def test_above_wants_exactly_the_classes(threshold):
    with pytest.raises(ConfigError, match="WBC, RBC, Platelets"):
        random_detections(2).above(threshold)


@pytest.mark.parametrize(
    ("scores", "labels", "counts", "means"),
    [
        ([], [], (0, 0, 0), (None, None, None)),
        ([0.5], [3], (0, 0, 1), (None, None, 0.5)),
        ([0.75, 0.25, 1.0], [1, 1, 2], (2, 1, 0), (0.5, 1.0, None)),
    ],
)
def test_counts_and_mean_scores(scores, labels, counts, means):
    found = Detections(torch.zeros(len(scores), 4), scores, labels, SIZE, NAMES)
    assert found.counts() == dict(zip(NAMES, counts, strict=True))
    assert found.mean_scores() == dict(zip(NAMES, means, strict=True))


@pytest.mark.parametrize(
    ("boxes", "scores", "labels", "message"),
    [
        ([], [0.5], [1], "0 boxes, 1 scores"),
        ([[0, 0, 1, 1]], [0.5], [0], "label outside"),
        ([[0, 0, 1, 1]], [0.5], [4], "label outside"),
        ([[0, 0, 1, float("nan")]], [0.5], [1], "finite"),
        ([[0, 0, 1, 1]], [float("inf")], [1], "finite"),
    ],
)
def test_impossible_values_name_the_image(boxes, scores, labels, message):
    with pytest.raises(DataError, match=rf"(?s)field\.jpg.*{message}"):
        Detections(boxes, scores, labels, SIZE, NAMES, "field.jpg")


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: {},
        lambda values: values | {"detections": [{"box": [1, 2, 3], "label": "RBC", "score": 0.5}]},
        lambda values: values | {"detections": [{"box": [1, 2, 3, 4], "label": "Giraffe", "score": 0.5}]},
        lambda values: values | {"detections": [{"box": [1, 2, 3, 4], "score": 0.5}]},
    ],
)
def test_damaged_records_are_refused(damage):
    with pytest.raises(DataError):
        Detections.from_dict(damage(random_detections(2).to_dict()))


def test_damaged_coco_results_are_refused():
    with pytest.raises(DataError, match="bbox"):
        Detections.from_coco([{"image_id": 1, "score": 0.5, "category_id": 1}], SIZE, NAMES)
