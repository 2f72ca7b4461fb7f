"""The torch dataset: shapes, counts, laziness and the cache."""

import pickle

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from ssdlib.common.errors import DataError
from ssdlib.data import dataset as module
from ssdlib.data.dataset import DetectionDataset, ImageCache, Sample
from ssdlib.data.formats.records import LabeledObject
from ssdlib.data.images import write_image

NAMES = ("WBC", "RBC", "Platelets")


def make(folder, labels_of_each, size=(24, 16), written=None):
    samples = []
    for k, labels in enumerate(labels_of_each):
        path = folder / f"{k}.png"
        write_image(path, np.full((size[1], size[0], 3), k, np.uint8))
        boxes = np.array([[i, i, i + 5, i + 6] for i in range(len(labels))], np.float32).reshape(-1, 4)
        names = written or tuple(NAMES[label - 1] for label in labels)
        objects = tuple(LabeledObject(name, (0, 0, 5, 6), None, ()) for name in names)
        samples.append(Sample(str(k), path, *size, boxes, np.array(labels, np.int64), objects))
    return DetectionDataset(samples, NAMES)


@pytest.mark.parametrize("labels", [[], [1], [2, 2, 3]])
def test_an_item_follows_the_v2_convention(tmp_path, labels):
    image, target = make(tmp_path, [labels])[0]
    assert isinstance(image, tv_tensors.Image)
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 16, 24))
    boxes = target["boxes"]
    assert isinstance(boxes, tv_tensors.BoundingBoxes)
    assert (boxes.dtype, tuple(boxes.shape), boxes.canvas_size) == (torch.float32, (len(labels), 4), (16, 24))
    assert boxes.format is tv_tensors.BoundingBoxFormat.XYXY
    assert (target["labels"].dtype, target["labels"].tolist()) == (torch.int64, labels)
    assert target["image_id"] == "0"


def test_counts_with_and_without_objects_that_were_dropped(tmp_path):
    assert make(tmp_path, []).class_counts() == {"WBC": 0, "RBC": 0, "Platelets": 0}
    data = make(tmp_path, [[2], [2]], written=("RBC", "RBC"))  # one box of each image was a point
    assert data.class_counts() == {"WBC": 0, "RBC": 2, "Platelets": 0}
    assert data.class_counts(raw=True) == {"WBC": 0, "RBC": 4, "Platelets": 0}


def test_ground_truth_needs_no_pixels(tmp_path, monkeypatch):
    data = make(tmp_path, [[1], []])
    monkeypatch.setattr(module, "read_image", lambda path: pytest.fail("decoded an image"))
    assert [target["labels"].tolist() for target in data.targets()] == [[1], []]
    data.class_counts()


def test_images_are_decoded_once_and_shared_between_transforms(tmp_path, monkeypatch):
    data, reads, read = make(tmp_path, [[1], [2]]), [], module.read_image
    monkeypatch.setattr(module, "read_image", lambda path: reads.append(path) or read(path))
    turned = data.with_transform(lambda image, target: (image + 1, target))
    for _ in range(2):
        data[0], data.subset(1)[0], data.image(1), data.preload()
        assert int(turned[1][0].max()) == 2
    assert len(reads) == 2


def test_what_a_caller_does_to_an_item_stays_with_it(tmp_path):
    data = make(tmp_path, [[1]])
    image, target = data[0]
    image.fill_(99)
    target["boxes"].fill_(99)
    target["labels"].fill_(3)
    data.image(0)[:] = 77
    image, target = data[0]
    assert int(image.max()) == 0
    assert target["boxes"].tolist() == [[0, 0, 5, 6]]
    assert target["labels"].tolist() == [1]


def test_the_cache_keeps_to_its_limit_and_travels_empty(tmp_path):
    data = make(tmp_path, [[1], [2], [3]])
    cache = ImageCache(limit=2 * 24 * 16 * 3)
    data = DetectionDataset(data.samples, NAMES, cache=cache).preload()
    assert len(cache) == 2
    assert int(data[2][0].max()) == 2
    copy = pickle.loads(pickle.dumps(data))
    assert len(copy._cache) == 0
    assert torch.equal(copy[1][0], data[1][0])


def test_subset(tmp_path):
    data = make(tmp_path, [[1], [2], [3]])
    assert len(data.subset(None)) == len(data.subset(9)) == 3
    assert [sample.image_id for sample in data.subset(2).samples] == ["0", "1"]
    assert data.image_path(1).name == "1.png"
    with pytest.raises(DataError, match="empty"):
        data.subset(0)


def test_joined_keeps_the_order_and_the_transform_and_refuses_other_classes(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first, second = make(tmp_path / "a", [[], [1]]), make(tmp_path / "b", [[2, 3]])
    both = first.with_transform(lambda image, target: (image, target | {"seen": True})).joined(second)
    assert len(both) == 3 and [len(both[i][1]["labels"]) for i in range(3)] == [0, 1, 2]
    assert all(both[i][1]["seen"] for i in range(3)) and both.class_counts()["Platelets"] == 1
    other = DetectionDataset(second.samples, ("a", "b", "c"))
    with pytest.raises(DataError, match="cannot be one data set"):
        first.joined(other)
