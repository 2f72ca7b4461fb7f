"""Reading Pascal VOC: what is repaired, and what is refused."""

import numpy as np
import pytest
from lxml import etree

from ssdlib.common.errors import DataError
from ssdlib.common.files import MAX_BYTES
from ssdlib.data.formats.records import LabeledImage
from ssdlib.data.formats.voc import (
    add_object,
    read_tree,
    read_voc,
    set_box,
    whole_box,
    write_tree,
    write_voc,
)
from ssdlib.data.images import write_image


def annotation(path, boxes, names=None, **kw):
    file = path / "field.xml"
    about = {"width": 640, "height": 480, "fractions": True} | kw
    write_voc(file, boxes=boxes, names=names or ["RBC"] * len(boxes), **about)
    return file


def read(file):
    """What is read of an annotation and of the image beside it, if there is one."""
    image = LabeledImage(file.with_suffix(".png"), file)
    read_voc(image)
    return image


@pytest.mark.parametrize(
    ("boxes", "kept", "kinds"),
    [
        ([], [], []),
        ([[10, 20, 30, 40]], [[10, 20, 30, 40]], []),
        ([[1.5, 2, 3, 4]], [[1.5, 2, 3, 4]], []),
        ([[0, 0, 640, 480]], [[0, 0, 640, 480]], []),
        ([[5, 5, 5, 5], [1, 1, 2, 2]], [[1, 1, 2, 2]], ["point_box"]),
        ([[5, 5, 5, 50]], [], ["point_box"]),
        ([[-3, 5, 10, 20]], [[0, 5, 10, 20]], ["box_outside"]),
        ([[-0.04, 5, 10, 20]], [[0, 5, 10, 20]], []),
        ([[600, 400, 700, 500]], [[600, 400, 640, 480]], ["box_outside"]),
        ([[700, 500, 800, 600]], [], ["box_outside"]),
        ([[30, 40, 10, 20]], [[10, 20, 30, 40]], ["swapped_corners"]),
        ([[700, 40, 600, 20]], [[600, 20, 640, 40]], ["swapped_corners", "box_outside"]),
    ],
)
def test_boxes_are_repaired_and_every_repair_is_noted(tmp_path, boxes, kept, kinds):
    image = read(annotation(tmp_path, boxes))
    assert image.boxes.dtype == np.float32
    assert image.boxes.tolist() == np.array(kept, np.float32).reshape(-1, 4).tolist()
    assert [finding.kind for finding in image.findings] == kinds
    assert all(str(image.label_file) in finding.remedy for finding in image.findings)
    assert [list(o.written) for o in image.objects] == boxes
    assert [kind for o in image.objects for kind in o.repairs] == kinds


def test_round_trip(tmp_path):
    image = read(annotation(tmp_path, [[1, 2, 30, 40], [5, 6, 7, 8]], ["WBC", "a <b> & ü"]))
    assert (image.width, image.height, image.names) == (640, 480, ["WBC", "a <b> & ü"])


@pytest.mark.parametrize(("stated", "said"), [((640, 480), "640 x 480"), ((0, 0), "no size")])
def test_the_image_wins_over_the_size_in_the_file(tmp_path, stated, said):
    file = annotation(tmp_path, [[10, 10, 50, 50], [300, 100, 400, 200]], width=stated[0], height=stated[1])
    write_image(tmp_path / "field.png", np.zeros((240, 320, 3), np.uint8))
    image = read(file)
    assert (image.width, image.height) == (320, 240)
    assert image.boxes.tolist() == [[10, 10, 50, 50], [300, 100, 320, 200]]
    assert [finding.kind for finding in image.findings] == ["size_mismatch", "box_outside"]
    assert f"states {said}, the image is 320 x 240" in image.findings[0].message


BOMB = (
    '<!DOCTYPE a [<!ENTITY x0 "ha">'
    + "".join(f'<!ENTITY x{k} "{f"&x{k - 1};" * 10}">' for k in range(1, 10))
    + "]><annotation><filename>&x9;</filename></annotation>"
)
EXTERNAL = (
    '<!DOCTYPE a [<!ENTITY secret SYSTEM "file://{secret}">]>'
    "<annotation><filename>&secret;</filename></annotation>"
)
OBJECT = (
    "<annotation><object><name>{name}</name>"
    "<bndbox><xmin>{xmin}</xmin><ymin>2</ymin>{rest}</bndbox></object></annotation>"
)
REST = "<xmax>3</xmax><ymax>4</ymax>"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "not well-formed"),
        ("<annotation><object>", "not well-formed"),
        ("<html/>", "root is <html>"),
        (BOMB, "DOCTYPE"),
        (EXTERNAL, "DOCTYPE"),
        (EXTERNAL.encode("utf-16"), "DOCTYPE"),
        ('<!DOCTYPE annotation SYSTEM "http://example.com/x.dtd"><annotation/>', "DOCTYPE"),
        ("<annotation><filename>&undeclared;</filename></annotation>", "not well-formed"),
        ("<annotation><size><width>wide</width></size></annotation>", "size must be a number"),
        (OBJECT.format(name="", xmin=1, rest=REST), "the <name> of object 1 is missing"),
        (OBJECT.format(name="RBC", xmin="left", rest=REST), "<xmin> must be a number"),
        (OBJECT.format(name="RBC", xmin="nan", rest=REST), "<xmin> must be a number"),
        (OBJECT.format(name="RBC", xmin="inf", rest=REST), "<xmin> must be a number"),
        (OBJECT.format(name="RBC", xmin=1, rest=""), "<xmax> must be a number"),
        ("<annotation><object><name>RBC</name></object></annotation>", "<xmin> must be a number"),
        (OBJECT.format(name="R\nBC", xmin=1, rest=REST), "the <name> of object 1 is no name of a class"),
        (OBJECT.format(name="R" * 201, xmin=1, rest=REST), "the <name> of object 1 is no name"),
        (OBJECT.format(name="RBC", xmin="1e300", rest=REST), "<xmin> must be a number of pixels"),
        (f"<{'x' * 40_000}/>", f"root is <{'x' * 80}>"),
        (
            OBJECT.format(name="RBC", xmin=1, rest=REST).replace(
                "</object>", f"<part>{'x' * 1_000_000}</part>{'<bndbox/>' * 19_000}</object>"
            ),
            "an <object> of many boxes and much else",
        ),
    ],
)
def test_broken_and_hostile_files_are_refused_by_name(tmp_path, content, complaint):
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    file = tmp_path / "bad.xml"
    if isinstance(content, str):
        file.write_text(content.replace("{secret}", str(secret)))
    else:
        file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(file)
    assert complaint in str(caught.value)
    assert "bad.xml" in str(caught.value)
    assert "the secret" not in str(caught.value)


def test_missing_and_huge_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no annotation .*none\.xml"):
        read(tmp_path / "none.xml")
    with (tmp_path / "huge.xml").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: takes no room
    with pytest.raises(DataError, match=r"huge\.xml is larger"):
        read(tmp_path / "huge.xml")


def test_names_and_boxes_must_agree_when_writing(tmp_path):
    with pytest.raises(ValueError, match="zip"):
        write_voc(tmp_path / "a.xml", width=1, height=1, boxes=[], names=["RBC"])


@pytest.mark.parametrize(
    ("box", "whole"),
    [
        ([1, 2, 30, 40], (1, 2, 30, 40)),
        ([171.42, 0.4, 639.6, 480.0], (171, 0, 640, 480)),
        ([3.6, 3.6, 4.4, 4.2], (3, 3, 4, 4)),  # both sides would round to 4
        ([639.7, 479.9, 640.0, 480.0], (639, 479, 640, 480)),
        ([2.4, 0.0, 2.6, 0.3], (2, 0, 3, 1)),
        ([5, 5, 5, 50], (5, 5, 5, 50)),  # a box without an area gets none
        ([30.2, 40, 10.4, 20], (30, 40, 10, 20)),
    ],
)
def test_whole_pixels_keep_an_area_and_stay_inside(tmp_path, box, whole):
    assert whole_box(box) == whole
    file = annotation(tmp_path, [box], fractions=False)
    assert [list(map(float, whole))] == [list(o.written) for o in read(file).objects]
    assert not set(".e") & set("".join(etree.parse(file).xpath("//bndbox/*/text()")))


def test_any_box_inside_an_image_has_whole_pixels_inside_it():
    draw = np.random.default_rng(0)
    corners = np.sort(draw.uniform(0, 9, (2000, 2, 2)), axis=1).reshape(-1, 4)
    for box in (corners + draw.choice([0, 1e-4], corners.shape)).clip(0, 9).astype(np.float32).tolist():
        xmin, ymin, xmax, ymax = whole_box(box)
        assert 0 <= xmin < xmax <= 9 and 0 <= ymin < ymax <= 9
        assert max(abs(a - b) for a, b in zip(box, (xmin, ymin, xmax, ymax), strict=True)) < 1


def test_what_is_added_or_moved_has_whole_pixels_and_the_rest_stays(tmp_path):
    file = annotation(tmp_path, [[1.5, 2.25, 30, 40], [5.5, 6, 70.123, 8]])
    tree = read_tree(file)
    set_box(tree.findall("object/bndbox")[1], [9.2, 9.6, 20.5001, 30])
    add_object(tree, "WBC", [100.4, 100, 100.45, 120.7])
    write_tree(file, tree)
    written = [o.written for o in read(file).objects]
    assert written == [(1.5, 2.25, 30, 40), (9, 10, 21, 30), (100, 100, 101, 121)]
