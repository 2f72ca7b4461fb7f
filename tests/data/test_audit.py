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
from ssdlib.data.formats.voc import write_voc
from ssdlib.data.images import read_image, write_image


def ids(root, split):
    return (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split()


def paths(root, image_id):
    return root / "JPEGImages" / f"{image_id}.jpg", root / "Annotations" / f"{image_id}.xml"


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


def break_point_box(root, a, b):
    relabel(root, a, [[5, 5, 5, 5]], ["RBC"])


def break_outside(root, a, b):
    relabel(root, a, [[600, 5, 700, 50]], ["RBC"])


def break_corners(root, a, b):
    relabel(root, a, [[60, 50, 10, 5]], ["RBC"])


def break_size(root, a, b):
    relabel(root, a, [[6, 5, 10, 50]], ["RBC"], width=480, height=640)


def break_class(root, a, b):
    relabel(root, a, [[6, 5, 10, 50]], ["Yeast"])


def break_objects(root, a, b):
    relabel(root, a, [], [])


def break_duplicate_box(root, a, b):
    relabel(root, a, [[10, 10, 90, 90], [10, 11, 90, 90]], ["RBC", "RBC"])


def break_contradiction(root, a, b):
    relabel(root, a, [[10, 10, 90, 90], [10, 10, 90, 90]], ["RBC", "WBC"])


def break_xml(root, a, b):
    paths(root, a)[1].write_text("<annotation>")


def break_jpeg(root, a, b):
    image = paths(root, a)[0]
    image.write_bytes(image.read_bytes()[:5000])


def break_no_image(root, a, b):
    paths(root, a)[0].unlink()


def break_no_annotation(root, a, b):
    paths(root, a)[1].unlink()


def break_both(root, a, b):
    for path in paths(root, a):
        path.unlink()


def break_unlisted(root, a, b):
    for name in ("train", "trainval"):
        file = root / "ImageSets" / "Main" / f"{name}.txt"
        file.write_text(file.read_text().replace(f"{a}\n", ""))


def break_orphan_image(root, a, b):
    write_image(
        root / "JPEGImages" / "orphan.jpg", np.random.default_rng(0).integers(0, 9, (480, 640, 3), np.uint8)
    )


def break_orphan_annotation(root, a, b):
    relabel(root, "orphan", [[1, 1, 9, 9]], ["RBC"])


def break_splits(root, a, b):
    add(root, "val", a)


def break_trainval(root, a, b):
    (root / "ImageSets" / "Main" / "trainval.txt").write_text(f"{a}\n")


def break_empty_split(root, a, b):
    (root / "ImageSets" / "Main" / "test.txt").write_text("")


def break_split_path(root, a, b):
    (root / "ImageSets" / "Main" / "test.txt").write_text("../a\n")


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
        (lambda root, a, b: None, [], None, None),
        (break_point_box, ["point_box"], "warning", "a"),
        (break_outside, ["box_outside"], "warning", "a"),
        (break_corners, ["swapped_corners"], "warning", "a"),
        (break_size, ["size_mismatch"], "warning", "a"),
        (break_class, ["unknown_class"], "error", "a"),
        (break_objects, ["no_objects"], "info", "a"),
        (break_duplicate_box, ["duplicate_box"], "warning", "a"),
        (break_contradiction, ["contradicting_boxes"], "warning", "a"),
        (break_xml, ["damaged_annotation"], "error", "a"),
        (break_jpeg, ["damaged_image"], "error", "a"),
        (break_no_image, ["annotation_without_image"], "error", "a"),
        (break_no_annotation, ["image_without_annotation"], "error", "a"),
        (break_both, ["missing_file"], "error", "a"),
        (break_unlisted, ["in_no_split"], "info", "a"),
        (break_orphan_image, ["image_without_annotation"], "warning", "orphan"),
        (break_orphan_annotation, ["annotation_without_image"], "warning", "orphan"),
        (break_splits, ["split_overlap"], "warning", "a"),
        (break_trainval, ["trainval_mismatch"], "info", "second"),
        (break_empty_split, ["empty_split", "in_no_split"], "error", ""),
        (break_split_path, ["bad_split", "empty_split", "in_no_split"], "error", ""),
        (break_copy, ["duplicate_image"], "warning", "a"),
        (break_near_copy, ["near_duplicate"], "warning", "a"),
        (break_shifted, ["overlapping_fields"], "warning", "a"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
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
        assert first.image_id == {"a": image_id, "second": second}.get(where, where)
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
    break_point_box(smears_copy, ids(smears_copy, "train")[0], None)
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
