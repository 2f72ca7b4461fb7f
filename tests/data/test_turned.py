"""Labels of pictures that EXIF turns: they lie on the cells, whichever raster the tool showed."""

import json

import numpy as np
import pytest
from PIL import Image

from ssdlib.common.errors import DataError
from ssdlib.data.formats.layouts import read_folder
from ssdlib.data.formats.voc import write_voc
from ssdlib.data.images import read_image, turned_corners, upright
from ssdlib.data.source import open_folder
from ssdlib.data.writers import copy_as_voc, copy_with_added, write_layout

INVERSE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
CELLS = [(12, 10, 40, 38), (90, 20, 120, 50), (30, 70, 56, 98)]
SIZE = (160, 120)


def save_turned(path, orientation, *, cells=CELLS):
    """A picture of `SIZE` with dark cells once EXIF has turned it."""
    width, height = SIZE
    y, x = np.mgrid[:height, :width]
    picture = np.full((height, width, 3), 200, np.uint8)
    for x1, y1, x2, y2 in cells:
        picture[((x - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((y - (y1 + y2) / 2) / (y2 - y1)) ** 2 < 0.25] = 110
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(upright(picture, INVERSE[orientation]))).save(path, exif=exif)
    assert np.array_equal(read_image(path), picture)


def as_drawn(orientation, stored):
    """The boxes and the size that a tool states that shows the upright picture, or the `stored` raster."""
    if not stored:
        return CELLS, SIZE
    size = SIZE[::-1] if orientation > 4 else SIZE
    return [turned_corners(cell, SIZE, INVERSE[orientation]) for cell in CELLS], size


def write_labels(root, layout, orientation, stored):
    boxes, (width, height) = as_drawn(orientation, stored)
    if layout.startswith("voc"):
        (root / "JPEGImages").mkdir()
        save_turned(root / "JPEGImages/a.png", orientation)
        sizes = {"width": width, "height": height} if layout == "voc" else {"width": 0, "height": 0}
        write_voc(root / "Annotations/a.xml", filename="a.png", **sizes, boxes=boxes, names=["RBC"] * 3)
    elif layout == "coco":
        save_turned(root / "a.png", orientation)
        boxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes]
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": width, "height": height}],
            "categories": [{"id": 1, "name": "RBC"}],
            "annotations": [
                {"id": k, "image_id": 1, "category_id": 1, "bbox": b} for k, b in enumerate(boxes)
            ],
        }
        (root / "a.json").write_text(json.dumps(content))
    else:
        save_turned(root / "a.png", orientation)
        (root / "classes.txt").write_text("RBC\n")
        lines = [
            f"0 {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} {(x2 - x1) / width} {(y2 - y1) / height}\n"
            for x1, y1, x2, y2 in boxes
        ]
        (root / "a.txt").write_text("".join(lines))


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("layout", ["voc", "voc without size", "coco", "yolo"])
def test_boxes_lie_on_the_cells_of_the_upright_picture(tmp_path, layout, orientation, stored):
    write_labels(tmp_path, layout, orientation, stored)
    folder = read_folder(tmp_path)
    (image,) = folder.images
    assert np.allclose(image.boxes, CELLS, atol=0.01)
    told = layout in ("voc", "coco") and orientation > 4
    (finding,) = [one for one in folder.findings if one.kind == "turned_picture"]
    assert finding.severity == ("info" if told else "warning")
    assert str(finding).startswith("1 picture is turned by EXIF, a.png first")
    assert f"of {int(stored)} on the raster" in str(finding)
    kinds = {one.kind for one in image.findings}
    assert kinds == ({"size_mismatch"} if layout == "voc without size" else set())


@pytest.mark.parametrize("to", ["voc", "coco", "yolo", "csv"])
@pytest.mark.parametrize("layout", ["voc", "coco", "yolo"])
def test_a_converted_copy_is_upright_for_every_tool(tmp_path, layout, to):
    (tmp_path / "in").mkdir()
    write_labels(tmp_path / "in", layout, 6, True)
    (tmp_path / "in/notes.md").write_text("")
    write_layout(open_folder(tmp_path / "in"), tmp_path / "out", to)
    (picture,) = (tmp_path / "out").rglob("*.png")
    with Image.open(picture) as image:
        assert image.size == SIZE and image.getexif().get(0x0112, 1) == 1
    (image,) = read_folder(tmp_path / "out").images
    assert np.allclose(image.boxes, CELLS, atol=0.01)


@pytest.mark.parametrize("layout", ["voc", "coco", "yolo"])
def test_nothing_is_added_to_labels_of_the_stored_raster(tmp_path, layout):
    write_labels(tmp_path, layout, 6, True)
    with pytest.raises(DataError, match="data convert"):
        copy_with_added(open_folder(tmp_path), tmp_path / "out", {})
    if layout == "voc":
        with pytest.raises(DataError, match="data convert"):
            copy_as_voc(open_folder(tmp_path), tmp_path / "out")


def test_where_nothing_tells_the_picture_is_taken_upright_and_that_is_said(tmp_path):
    save_turned(tmp_path / "a.png", 3, cells=[])
    (tmp_path / "classes.txt").write_text("RBC\n")
    (tmp_path / "a.txt").write_text("0 0.25 0.25 0.1 0.1\n")
    folder = read_folder(tmp_path)
    assert np.allclose(folder.images[0].boxes, [[32, 24, 48, 36]])
    assert "it is a guess" in str(folder.findings[0])


def test_pictures_that_are_not_turned_cost_nothing_and_say_nothing(tmp_path, monkeypatch):
    write_labels(tmp_path, "yolo", 1, False)
    monkeypatch.setattr("ssdlib.data.formats.turned.read_image", None)
    assert not read_folder(tmp_path).findings
