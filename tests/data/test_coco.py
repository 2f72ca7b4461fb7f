"""COCO files of other people's data."""

import copy
import json

import numpy as np
import pytest

from ssdlib.common.errors import DataError
from ssdlib.data.formats.coco import read_coco
from ssdlib.data.images import write_image

GOOD = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 32, "height": 24},
        {"id": 3, "file_name": "b.png"},
    ],
    "categories": [{"id": 9, "name": "yeast"}, {"id": 4, "name": "spore"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 2, 10, 5]},
        {"id": 2, "image_id": 7, "category_id": 4, "bbox": [0, 0, 4, 4], "iscrowd": 1},
        {"id": 3, "image_id": 7, "category_id": 4, "bbox": [30, 20, 10, 10]},
        {"id": 4, "image_id": 7, "category_id": 4, "bbox": [3, 3, 0, 0]},
    ],
}


@pytest.fixture
def read(tmp_path):
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name, np.zeros((24, 32, 3), np.uint8))

    def reader(content):
        (tmp_path / "labels.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return read_coco(tmp_path / "labels.json", tmp_path)

    return reader


def test_no_images(read):
    data = read({"images": [], "categories": GOOD["categories"], "annotations": []})
    assert len(data) == 0
    assert data.class_counts() == {"spore": 0, "yeast": 0}


def test_boxes_labels_and_repairs(read):
    data = read(GOOD)
    assert data.class_names == ("spore", "yeast")  # in the order of their ids
    _, target = data[0]
    assert target["boxes"].tolist() == [[1, 2, 11, 7], [30, 20, 32, 24]]
    assert target["labels"].tolist() == [2, 1]
    assert [repair.kind for repair in data.samples[0].repairs] == ["box_outside", "point_box"]
    assert data[1][1]["boxes"].shape == (0, 4)
    assert data.class_counts(raw=True) == {"spore": 2, "yeast": 1}


def test_the_image_wins_over_the_stated_size(read):
    content = copy.deepcopy(GOOD)
    content["images"][0]["width"] = 99
    sample = read(content).samples[0]
    assert (sample.width, sample.height) == (32, 24)
    assert sample.repairs[0].kind == "size_mismatch"


def changed(key, number, **values):
    content = copy.deepcopy(GOOD)
    content[key][number] |= values
    return content


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "not valid JSON"),
        ("[]", 'no list "images"'),
        ({"images": []}, 'no list "categories"'),
        ({**GOOD, "categories": []}, "class names must be distinct"),
        ({**GOOD, "images": ["a.png"]}, 'entry 0 of "images"'),
        (changed("categories", 0, name="spore"), "distinct"),
        (changed("annotations", 0, image_id=1), "annotation 1 has image_id 1"),
        (changed("annotations", 0, category_id=1), "annotation 1 has category_id 1"),
        (changed("annotations", 0, category_id=[1]), 'no valid "category_id"'),
        (changed("annotations", 0, bbox=[1, 2, 3]), "bbox of four numbers"),
        (changed("annotations", 0, bbox=["a", 2, 3, 4]), "bbox of four numbers"),
        (changed("annotations", 0, bbox=[float("nan"), 2, 3, 4]), "bbox of four numbers"),
        (changed("images", 0, file_name="../a.png"), "outside the image folder"),
        (changed("images", 0, file_name="/a.png"), "outside the image folder"),
        (changed("images", 0, file_name="c.png"), "no image"),
    ],
)
def test_bad_files_are_refused(read, content, complaint):
    with pytest.raises(DataError, match=complaint):
        read(content)


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"none\.json is missing"):
        read_coco(tmp_path / "none.json", tmp_path)
