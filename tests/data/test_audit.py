"""The audit: what it finds when nothing is wrong, when something is, and on real BCCD."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from ssdlib.config import BCCD_CLASSES
from ssdlib.data import duplicates
from ssdlib.data import source as bccd
from ssdlib.data.audit import audit
from ssdlib.data.formats.records import Finding
from ssdlib.data.formats.voc import write_voc
from ssdlib.data.images import read_image, write_image


def ids(root, split):
    return (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split()


def paths(root, image_id):
    return root / "JPEGImages" / f"{image_id}.jpg", root / "Annotations" / f"{image_id}.xml"


TWICE = [[10, 10, 90, 90], [10, 11, 90, 90]]


def relabel(root, image_id, boxes, names, width=640, height=480):
    write_voc(paths(root, image_id)[1], width=width, height=height, boxes=boxes, names=names)


def add(root, split, image_id):
    for name in (split, "trainval"):
        with (root / "ImageSets" / "Main" / f"{name}.txt").open("a") as file:
            file.write(f"{image_id}\n")


def test_clean_data_has_no_findings_and_the_right_numbers(smears_source):
    result = audit(smears_source)
    assert result.kinds() == {}
    assert result.errors == []
    assert result.images == {"train": 6, "val": 3, "test": 3, "trainval": 9, "all": 12}
    assert result.image_sizes == ((640, 480, 12),)
    for split in ("train", "val", "test", "trainval"):
        assert result.classes[split] == smears_source.dataset(split).class_counts(raw=True)
    assert sum(result.classes["all"].values()) == sum(sizes["boxes"] for sizes in result.box_sizes.values())
    assert 80 < result.box_sizes["RBC"]["median_width"] < 130
    assert json.loads(json.dumps(result.to_dict()))["source"] == smears_source.describe()
    assert "RBC" in result.to_text()


def test_the_first_findings_of_a_kind_are_printed_and_all_are_kept(smears_source):
    result = audit(smears_source)
    many = [Finding("odd", "warning", "", f"number {k}.") for k in range(150)]
    result = replace(result, findings=(*many, Finding("rare", "info", "", "the last.")))
    lines = result.to_text().splitlines()
    assert sum("odd" in line for line in lines) == 101 and "number 99." in result.to_text()
    assert lines[-2].endswith("the last.")
    assert lines[-1] == "... and 50 more of odd: --json FILE has them all"
    assert len(result.to_dict()["findings"]) == 151


def set_split(root, split, content):
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text(content)


def unlist(root, image_id):
    for split in ("train", "trainval"):
        set_split(root, split, "\n".join(name for name in ids(root, split) if name != image_id))


def remove(*files):
    for file in files:
        file.unlink()


def noise(path):
    write_image(path, np.random.default_rng(0).integers(0, 9, (480, 640, 3), np.uint8))


def cut(file):
    file.write_bytes(file.read_bytes()[:5000])


def break_copy(root, a, b):
    for source, target in zip(paths(root, a), paths(root, b), strict=True):
        shutil.copy(source, target)


def break_near_copy(root, a, b):
    image = cv2.convertScaleAbs(read_image(paths(root, a)[0]), alpha=0.95, beta=6)
    write_image(paths(root, b)[0], np.roll(image, 2, axis=1), quality=70)


def break_shifted(root, a, b):
    wide = cv2.resize(read_image(paths(root, a)[0]), (800, 600))
    write_image(paths(root, a)[0], wide[:480, :640])
    write_image(paths(root, b)[0], wide[100:580, 120:760])


@pytest.mark.parametrize(
    ("damage", "kinds", "severity", "where"),
    [
        (lambda r, a, b: None, [], None, None),
        (lambda r, a, b: relabel(r, a, [[5, 5, 5, 5]], ["RBC"]), ["point_box"], "warning", "a"),
        (lambda r, a, b: relabel(r, a, [[600, 5, 700, 50]], ["RBC"]), ["box_outside"], "warning", "a"),
        (lambda r, a, b: relabel(r, a, [[60, 50, 10, 5]], ["RBC"]), ["swapped_corners"], "warning", "a"),
        (lambda r, a, b: relabel(r, a, [[6, 5, 9, 9]], ["RBC"], 480, 640), ["size_mismatch"], "warning", "a"),
        (lambda r, a, b: relabel(r, a, [[6, 5, 9, 9]], ["Yeast"]), ["unknown_class"], "error", "a"),
        (lambda r, a, b: relabel(r, a, [], []), ["no_objects"], "info", "a"),
        (lambda r, a, b: relabel(r, a, TWICE, ["RBC", "RBC"]), ["duplicate_box"], "warning", "a"),
        (lambda r, a, b: relabel(r, a, TWICE, ["RBC", "WBC"]), ["contradicting_boxes"], "warning", "a"),
        (lambda r, a, b: paths(r, a)[1].write_text("<x"), ["damaged_annotation"], "error", "a"),
        (lambda r, a, b: cut(paths(r, a)[0]), ["damaged_image"], "error", "a"),
        (lambda r, a, b: paths(r, a)[0].write_bytes(b""), ["damaged_image"], "error", "a"),
        (lambda r, a, b: remove(paths(r, a)[0]), ["annotation_without_image"], "error", "a"),
        (lambda r, a, b: remove(paths(r, a)[1]), ["image_without_annotation"], "error", "a"),
        (lambda r, a, b: remove(*paths(r, a)), ["missing_file"], "error", "a"),
        (lambda r, a, b: unlist(r, a), ["in_no_split"], "info", "a"),
        (lambda r, a, b: noise(paths(r, "new")[0]), ["image_without_annotation"], "warning", "new"),
        (lambda r, a, b: relabel(r, "new", [[1, 1, 9, 9]], ["RBC"]), ["annotation_without_image"], "warning",
         "new"),
        (lambda r, a, b: add(r, "val", a), ["split_overlap"], "warning", "a"),
        (lambda r, a, b: set_split(r, "trainval", f"{a}\n"), ["trainval_mismatch"], "info", "second"),
        (lambda r, a, b: set_split(r, "test", ""), ["in_no_split"], "info", "other"),
        (lambda r, a, b: [set_split(r, name, "") for name in ("train", "trainval")],
         ["empty_split", "in_no_split"], "error", ""),
        (lambda r, a, b: set_split(r, "test", "../a\n"), ["bad_split", "empty_split", "in_no_split"], "error",
         ""),
        (break_copy, ["duplicate_image"], "warning", "a"),
        (break_near_copy, ["near_duplicate"], "warning", "a"),
        (break_shifted, ["overlapping_fields"], "warning", "a"),
    ],
)  # fmt: skip
def test_each_fault_is_found_and_nothing_else(smears_copy, damage, kinds, severity, where):
    image_id, second, other = *ids(smears_copy, "train")[:2], ids(smears_copy, "test")[0]
    damage(smears_copy, image_id, other)
    source = replace(bccd.open_folder(smears_copy), class_names=BCCD_CLASSES)
    result = audit(source)
    assert sorted(result.kinds()) == sorted(set(kinds))
    if kinds:
        first = result.of_kind(kinds[0])[0]
        assert first.severity == severity
        assert first.kind in result.to_text()
        assert first.image_id == {"a": image_id, "second": second, "other": other}.get(where, where)
        assert [finding.severity for finding in result.findings] == sorted(
            (finding.severity for finding in result.findings), key=("error", "warning", "info").index
        )


def test_a_shift_is_measured(smears_copy):
    image_id, other = ids(smears_copy, "train")[0], ids(smears_copy, "test")[0]
    break_shifted(smears_copy, image_id, other)
    finding = audit(bccd.open_folder(smears_copy)).of_kind("overlapping_fields")[0]
    assert other in finding.message
    assert "leak between splits" in finding.message
    dx, dy = (int(word.rstrip(",")) for word in finding.message.split("about ")[1].split()[:2])
    assert abs(dx - 120) <= 4
    assert abs(dy - 100) <= 4


def test_the_audit_changes_nothing(smears_copy):
    before = bccd.open_folder(smears_copy).fingerprint
    relabel(smears_copy, ids(smears_copy, "train")[0], [[5, 5, 5, 5]], ["RBC"])
    damaged = bccd.open_folder(smears_copy)
    assert damaged.fingerprint != before
    audit(damaged)
    assert damaged.fingerprint == bccd.open_folder(smears_copy).fingerprint


def test_very_many_images_are_not_compared_pairwise(smears_source, monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_IMAGES", 3)
    assert audit(smears_source).kinds() == {"not_checked": 1}


def test_real_bccd(bccd_root):
    result = audit(bccd.open_folder(bccd_root))
    assert result.classes == {
        "train": {"WBC": 214, "RBC": 2382, "Platelets": 209},
        "val": {"WBC": 87, "RBC": 968, "Platelets": 83},
        "test": {"WBC": 71, "RBC": 805, "Platelets": 69},
        "trainval": {"WBC": 301, "RBC": 3350, "Platelets": 292},
        "all": {"WBC": 372, "RBC": 4155, "Platelets": 361},
    }
    assert result.image_sizes == ((640, 480, 364),)
    points = {finding.image_id: finding.message for finding in result.of_kind("point_box")}
    assert points.keys() == {"BloodImage_00338", "BloodImage_00343"}
    assert "[504, 337, 504, 337]" in points["BloodImage_00338"]
    assert "[181, 329, 181, 329]" in points["BloodImage_00343"]
    (near,) = result.of_kind("near_duplicate")
    assert "BloodImage_00037 (val) and BloodImage_00038 (train)" in near.message
    shared = result.of_kind("overlapping_fields")
    assert len(shared) == 34
    assert sum(finding.severity == "warning" for finding in shared) == 21
    assert any("BloodImage_00227 (test) and BloodImage_00260 (val)" in finding.message for finding in shared)
    assert result.kinds() == {
        "duplicate_box": 7,
        "point_box": 2,
        "near_duplicate": 1,
        "overlapping_fields": 34,
    }


def test_many_boxes_in_one_place_are_found_in_blocks(smears_copy):
    image_id = ids(smears_copy, "train")[0]
    spread = [[10 * k, 10, 10 * k + 9, 30] for k in range(60)]
    relabel(smears_copy, image_id, [*spread, *([[5, 100, 60, 160]] * 1000)], ["RBC"] * 1060)
    found = audit(bccd.open_folder(smears_copy)).of_kind("duplicate_box")
    assert len(found) == 999 and {finding.image_id for finding in found} == {image_id}


@pytest.mark.parametrize("kind", ["objects", "boxes of one object"])
def test_more_objects_than_any_picture_shows_are_refused(smears_copy, kind):
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    each = f"<object><name>RBC</name>{box}</object>" * 20_001
    each = each if kind == "objects" else f"<object><name>RBC</name>{box * 20_001}</object>"
    image_id = ids(smears_copy, "train")[0]
    file = smears_copy / f"Annotations/{image_id}.xml"
    file.write_text(f"<annotation><filename>{image_id}.jpg</filename>{each}</annotation>")
    (finding,) = bccd.open_folder(smears_copy).labels.by_id[image_id].findings
    assert finding.severity == "error" and "20,001 objects" in finding.message
