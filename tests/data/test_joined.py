"""TXL-PBC, and several sources as one: what is read, what counts once, and leaks from one to another."""

import hashlib
import os
import shutil
import zipfile
from dataclasses import replace

import cv2
import numpy as np
import pytest

from ssdlib.common.errors import DataError
from ssdlib.config import BCCD_CLASSES
from ssdlib.data import download, txl_pbc
from ssdlib.data import source as bccd
from ssdlib.data.audit import audit
from ssdlib.data.duplicates import same_fields
from ssdlib.data.formats.voc import write_splits, write_voc
from ssdlib.data.images import encode_image, read_image, write_image
from ssdlib.data.writers import write_layout

BOX = [10, 10, 50, 40]


def pixels(seed, shape=(96, 128)):
    """Blobs that no other seed has."""
    noise = np.random.default_rng(seed).integers(0, 256, (shape[0] // 8, shape[1] // 8, 3), np.uint8)
    return cv2.resize(noise, shape[::-1], interpolation=cv2.INTER_CUBIC)


def voc_folder(root, splits, names=BCCD_CLASSES, *, seed=0, draw=pixels):
    """A folder of images that are all different, each with one object of every class."""
    for number, image_id in enumerate(image_id for ids in splits.values() for image_id in ids):
        image = draw(seed + number)
        write_image(root / "JPEGImages" / f"{image_id}.jpg", image)
        boxes = [[10 + 30 * k, 10, 30 + 30 * k, 40] for k in range(len(names))]
        height, width = image.shape[:2]
        write_voc(
            root / "Annotations" / f"{image_id}.xml", width=width, height=height, boxes=boxes, names=names
        )
    write_splits(root, splits)
    return root


# TXL-PBC -------------------------------------------------------------------------------------------------

LABELS = {
    "raabin_aa": "1 0.5 0.5 0.2 0.2\n1 0.501 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2\n",
    "pbc_bb": "1 0.5 0.5 0.2 0.2\n2 0.2 0.2 0.1 0.1\n",
    "pbc_cc": "0 0.5 0.5 0.2 0.2\n",
    "BloodImage_7": "0 0.5 0.5 0.2 0.2\n1 0.2 0.2 0.2 0.2\n1 0.8 0.2 0.2 0.2\n",
}
"""The first one has a red cell twice, and a white cell in the same place."""


def digest(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def published(tmp_path, monkeypatch, no_data):
    """A folder laid out as published: the files of a table of four images, and some that it does not list."""
    root, table = tmp_path / "TXL-PBC_Dataset" / "TXL_PBC", []
    for k, (image_id, labels) in enumerate(LABELS.items()):
        name = f"train/{image_id.split('_')[1]}"
        image = encode_image(pixels(100 + k))
        of_bccd = image_id.startswith("BloodImage")
        for file, content in ((f"images/{name}.jpg", image), (f"labels/{name}.txt", labels.encode())):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(content)
        table.append(
            txl_pbc.Row(image_id, name, "-", digest(labels.encode()), "-" if of_bccd else digest(image))
        )
    for split in ("train", "val"):
        write_image(root / f"images/{split}/leak.jpg", pixels(7))
        (root / f"labels/{split}").mkdir(exist_ok=True)
        (root / f"labels/{split}/leak.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (root / "data.yaml").write_text("names: [WBC, RBC, Platelets]\ntrain: images/train\nval: images/val\n")
    txl_pbc._manifest.cache_clear()
    monkeypatch.setattr(txl_pbc, "rows", lambda: tuple(table))
    yield root
    txl_pbc._manifest.cache_clear()


@pytest.fixture
def by_id(published, tmp_path):
    """The same with files named by the image ids."""
    root = tmp_path / "by_id"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for row in txl_pbc.rows():
        shutil.copy(published / f"labels/{row.published}.txt", root / f"labels/{row.image_id}.txt")
        if not row.of_bccd:
            shutil.copy(published / f"images/{row.published}.jpg", root / f"images/{row.image_id}.jpg")
    return root


@pytest.fixture
def blood(tmp_path, monkeypatch):
    """A folder that BCCD_ROOT names: one image that TXL-PBC labels anew, one of each split beside it."""
    splits = {"train": ["BloodImage_7", "BloodImage_1"], "val": ["BloodImage_2"], "test": ["BloodImage_3"]}
    root = voc_folder(tmp_path / "blood", {**splits, "trainval": []}, seed=10)
    monkeypatch.setenv("BCCD_ROOT", str(root))
    return root


def test_the_table_lists_what_may_be_trained_on_and_nothing_else():
    rows = txl_pbc.rows()
    assert len({row.image_id for row in rows}) == len({row.published for row in rows}) == len(rows) == 824
    kinds = [row.image_id.split("_")[0] for row in rows]
    assert [kinds.count(kind) for kind in ("raabin", "pbc", "BloodImage")] == [350, 350, 124]
    # Of BCCD's images, the labels alone.
    assert len(txl_pbc.TXL_PBC.manifest()) == 2 * 700 + 124
    assert {row.split for row in rows if row.of_bccd} == {"train", "val", "test"}
    counts = [
        sum(row.split == split and not row.of_bccd for row in rows) for split in ("train", "val", "test")
    ]
    assert counts == [556, 63, 81]
    split_of = {row.image_id: row.split for row in rows}
    together = [(row.split, split_of[row.same_field]) for row in rows if row.same_field != "-"]
    assert len(together) == 7
    assert all(a == b for a, b in together)


def test_no_image_of_bccds_val_or_test_is_in_the_table(bccd_root):
    of_bccd = {row.image_id for row in txl_pbc.rows() if row.of_bccd}
    assert of_bccd <= set((bccd_root / "ImageSets/Main/train.txt").read_text().split())


def test_real_txl_pbc(monkeypatch, bccd_root):
    if not os.environ.get("TXL_PBC_ROOT"):
        pytest.skip("TXL_PBC_ROOT is not set")
    source = bccd.resolve("txl-pbc")
    counts = {split: source.dataset(split).class_counts() for split in ("train", "val", "test")}
    assert counts == {
        "train": {"WBC": 707, "RBC": 10935, "Platelets": 354},
        "val": {"WBC": 63, "RBC": 925, "Platelets": 34},
        "test": {"WBC": 84, "RBC": 1214, "Platelets": 34},
    }
    assert txl_pbc.differences(source.folder) == []
    both = bccd.resolve("bccd,txl-pbc")
    assert [len(both.split_ids(split)) for split in ("train", "val", "test")] == [761, 150, 153]
    images = {row.image_id: source.labels.by_id[row.image_id].path for row in txl_pbc.rows()}
    others = {image_id: path for image_id, path in images.items() if not image_id.startswith("Blood")}
    listed = {(row.same_field, row.image_id) for row in txl_pbc.rows() if row.same_field != "-"}
    assert set(same_fields(others)) == listed


def test_both_layouts_are_read_alike_and_only_listed_files(published, by_id, monkeypatch):
    sources = [bccd.open_folder(path) for path in (published, published.parent, by_id)]
    monkeypatch.setenv("TXL_PBC_ROOT", str(by_id))
    sources.append(bccd.resolve("txl-pbc"))
    for source in sources:
        assert (source.kind, source.class_names) == ("txl-pbc", BCCD_CLASSES)
        assert sorted(source.labels.by_id) == ["pbc_bb", "pbc_cc", "raabin_aa"]
        assert "without 1 images of BCCD's train split" in source.notice
        assert source.labels.splits == sources[0].labels.splits
    assert len({source.fingerprint for source in sources}) == 1


def test_where_it_is_looked_for(published, no_data, monkeypatch):
    with pytest.raises(DataError, match=r"TXL-PBC is not on this machine.*set TXL_PBC_ROOT"):
        bccd.resolve("txl-pbc")
    shutil.copytree(published, no_data / "data" / "TXL-PBC")
    assert bccd.resolve("txl-pbc").folder == no_data / "data" / "TXL-PBC"
    monkeypatch.setenv("TXL_PBC_ROOT", str(no_data))
    with pytest.raises(DataError, match=r"TXL_PBC_ROOT is .* which is not TXL-PBC: there must be images/"):
        bccd.resolve("txl-pbc")


def test_pictures_of_bccd_come_from_bccd(by_id, blood):
    source = bccd.open_folder(by_id)
    image = source.labels.by_id["BloodImage_7"]
    assert image.path == blood / "JPEGImages/BloodImage_7.jpg"
    assert (len(image.objects), image.split, source.notice) == (3, "train", "")
    assert "BloodImage_7" in source.split_ids("train")


def test_a_cell_labeled_twice_counts_once_and_a_contradiction_is_said(by_id):
    source = bccd.open_folder(by_id)
    image = source.labels.by_id["raabin_aa"]
    assert image.names == ["RBC", "WBC"]
    assert [o.repairs for o in image.objects] == [(), ("duplicate_box",), ()]
    found = {f.kind: f for f in audit(source).findings if f.image_id == "raabin_aa"}
    assert (found["duplicate_box"].severity, found["contradicting_boxes"].severity) == ("info", "warning")
    assert "object 2 (RBC)" in found["duplicate_box"].message


def test_missing_and_changed_files_are_said(by_id):
    assert txl_pbc.differences(by_id) == []
    (by_id / "labels/pbc_bb.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (by_id / "labels/pbc_cc.txt").unlink()
    result = audit(bccd.open_folder(by_id))
    assert [f.message for f in result.of_kind("differs_from_published")] == [
        "labels/pbc_bb.txt differs from the published file.",
        "labels/pbc_cc.txt is missing.",
    ]
    assert [f.image_id for f in result.errors if f.kind == "missing_file"] == ["pbc_cc"]


def archive_of(folder, path):
    with zipfile.ZipFile(path, "w") as packed:
        for file in sorted(folder.rglob("*")):
            packed.write(file, f"TXL-PBC_Dataset-056d09e/TXL_PBC/{file.relative_to(folder).as_posix()}")
    return path


def test_the_download_takes_the_listed_files_and_checks_them(published, no_data, monkeypatch):
    monkeypatch.delenv("SSDLIB_OFFLINE")

    def serve(path):
        monkeypatch.setattr(txl_pbc, "TXL_PBC", replace(txl_pbc.TXL_PBC, url=path.as_uri()))

    target = no_data / "data" / "TXL-PBC"
    good = archive_of(published, no_data / "good.zip")
    (published / "labels/train/bb.txt").write_text("0 0.1 0.1 0.1 0.1\n")
    serve(archive_of(published, no_data / "changed.zip"))
    with pytest.raises(DataError, match=r"labels/train/bb\.txt .* is not the published file.*TXL_PBC_ROOT"):
        bccd.resolve("txl-pbc", progress=False)
    assert not target.exists()
    monkeypatch.setattr(bccd, "_failures", {})
    serve(good)
    assert bccd.resolve("txl-pbc", progress=False).folder == target
    found = {file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file()}
    assert found == set(txl_pbc.TXL_PBC.manifest())
    assert not any("leak" in name for name in found) and "images/train/7.jpg" not in found


# Several as one ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["bccd,txl-pbc", "txl-pbc,bccd", "{blood},{by_id}", "{by_id},bccd"])
def test_complete_labels_replace_those_of_bccd_and_an_image_counts_once(order, by_id, blood, monkeypatch):
    monkeypatch.setenv("TXL_PBC_ROOT", str(by_id))
    if "{blood}" in order:  # a folder given by its path is BCCD, too, if it has its images
        monkeypatch.delenv("BCCD_ROOT")
        manifest = {f"Annotations/{file.name}": "" for file in (blood / "Annotations").iterdir()}
        monkeypatch.setattr(download, "BCCD", replace(download.BCCD, manifest=lambda: manifest))
    source = bccd.resolve(order.format(blood=blood, by_id=by_id))
    image = source.labels.by_id["BloodImage_7"]
    assert (image.source, len(image.objects)) == ("txl-pbc", 3)
    assert source.labels.by_id["BloodImage_1"].source == "bccd"
    train, txl = source.split_ids("train"), bccd.open_folder(by_id).labels.splits["train"]
    assert sorted(train) == sorted({"BloodImage_7", "BloodImage_1", *txl})
    assert len(source.dataset("all")) == 7
    assert not set(train) & {*source.split_ids("val"), *source.split_ids("test")}
    assert source.notice == ""


def test_a_shared_image_that_one_source_holds_out_is_held_out(by_id, blood, monkeypatch):
    write_splits(blood, {"train": ["BloodImage_1"], "val": ["BloodImage_7"], "test": ["BloodImage_3"]})
    monkeypatch.setenv("TXL_PBC_ROOT", str(by_id))
    source = bccd.resolve("txl-pbc,bccd")
    assert "BloodImage_7" in source.split_ids("val")
    assert "BloodImage_7" not in source.split_ids("train")
    write_splits(blood, {"train": ["BloodImage_7"], "val": ["BloodImage_1"], "test": ["BloodImage_3"]})
    monkeypatch.setattr(txl_pbc.Row, "split", property(lambda row: "val" if row.of_bccd else "train"))
    source = bccd.resolve("txl-pbc,bccd")
    assert "BloodImage_7" in source.split_ids("val") and "BloodImage_7" not in source.split_ids("train")


def two(tmp_path, names=BCCD_CLASSES):
    """Two folders with different images of the same names."""
    splits = {"train": ["a", "b", "c"], "val": ["d"], "test": ["e"], "trainval": []}
    return [
        voc_folder(tmp_path / "one/cells", splits, seed=20),
        voc_folder(tmp_path / "two/cells", splits, names, seed=40),
    ]


def test_different_images_with_one_name_are_told_apart(tmp_path):
    first, second = two(tmp_path)
    source = bccd.resolve(f"{first}, {second}")
    assert source.name == "cells,cells-2"
    assert source.split_ids("train") == ["a", "b", "c", "cells-2_a", "cells-2_b", "cells-2_c"]
    assert source.split_ids("val") == ["d", "cells-2_d"]
    samples = source.dataset("train").samples
    assert [s.source for s in samples] == ["cells"] * 3 + ["cells-2"] * 3
    assert samples[3].image_path == second / "JPEGImages/a.jpg"
    # A limit takes of each in turn.
    assert [s.image_id for s in source.dataset("train", limit=3).samples] == ["a", "cells-2_a", "b"]
    shutil.copy(first / "JPEGImages/a.jpg", second / "JPEGImages/a.jpg")
    assert bccd.resolve(f"{first},{second}").split_ids("train") == ["a", "b", "c", "cells-2_b", "cells-2_c"]


def test_what_is_said_about_several(tmp_path):
    first, second = two(tmp_path)
    source = bccd.resolve(f"{first},{second}")
    described = source.describe()
    assert described["source"] == "voc,voc"
    assert [one["root"] for one in described["sources"]] == [str(first), str(second)]
    assert bccd.resolve(described["root"]).fingerprint == source.fingerprint
    assert str(tmp_path) not in str(source.describe(root=False))
    assert bccd.resolve(f"{second},{first}").fingerprint != source.fingerprint
    before = source.fingerprint
    write_image(second / "JPEGImages/a.jpg", pixels(1))
    assert bccd.resolve(f"{first},{second}").fingerprint != before


def test_one_drawn_source_makes_the_whole_synthetic(tmp_path, smears_root):
    source = bccd.resolve(f"{two(tmp_path)[0]},{smears_root}")
    assert source.synthetic
    assert "SYNTHETIC" in source.notice


def test_classes_must_be_those_of_one_source(tmp_path):
    first, second = two(tmp_path, ("RBC", "Echinocyte", "WBC", "Platelets"))
    source = bccd.resolve(f"{first},{second}")
    assert source.class_names == ("Echinocyte", "Platelets", "RBC", "WBC")
    assert source.dataset("train").samples[0].labels.tolist() == [4, 3, 2]
    (finding,) = audit(source).of_kind("class_not_in_source")
    assert finding.message.startswith("cells labels no Echinocyte")
    third = voc_folder(tmp_path / "yeast", {"train": ["x"], "val": ["y"], "test": ["z"]}, ("yeast",))
    with pytest.raises(
        DataError, match="yeast has the classes yeast, which WBC, RBC, Platelets do not include"
    ):
        bccd.resolve(f"{first},{third}")


@pytest.mark.parametrize("data", ["auto,smears", "smears,", ",smears", "smears,smears", "smears, ,bccd"])
def test_lists_that_are_none(data):
    with pytest.raises(DataError, match="is not a list of data sources"):
        bccd.resolve(data)


def test_one_folder_twice_and_a_name_with_a_comma(tmp_path):
    first, _ = two(tmp_path)
    with pytest.raises(DataError, match="is given twice"):
        bccd.resolve(f"{first},{first.parent / 'cells'}/")
    comma = first.rename(tmp_path / "cells,and more")
    assert bccd.resolve(comma).folder == comma


def test_several_are_written_as_one_folder(tmp_path):
    first, second = two(tmp_path)
    source = bccd.resolve(f"{first},{second}")
    for layout in ("voc", "yolo"):
        copy = bccd.open_folder(write_layout(source, tmp_path / layout, layout))
        for split in ("train", "val", "test"):
            assert sorted(copy.split_ids(split)) == sorted(source.split_ids(split))
            assert copy.dataset(split).class_counts() == source.dataset(split).class_counts()


# Leaks ---------------------------------------------------------------------------------------------------


def encoded_again(field):
    """The field, and a smaller and brighter copy."""
    return field, cv2.convertScaleAbs(cv2.resize(field, (400, 300)), alpha=0.95, beta=6)


def cropped(field):
    """Two crops of a field that share most of it."""
    wide = cv2.resize(field, (800, 600))
    return wide[:480, :640], wide[100:580, 120:760]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda field: (field, field), "near_duplicate"),
        (encoded_again, "near_duplicate"),
        (cropped, "overlapping_fields"),
    ],
)
def test_a_field_in_one_sources_train_and_anothers_val_is_found(tmp_path, smears_copy, change, kind):
    held_out = (smears_copy / "ImageSets/Main/val.txt").read_text().split()[0]
    original = smears_copy / "JPEGImages" / f"{held_out}.jpg"
    mine = voc_folder(tmp_path / "mine", {"train": ["x", "copy"], "val": ["y"], "test": ["z"]}, seed=60)
    field, copy = change(read_image(original))
    write_image(original, field)
    write_image(mine / "JPEGImages/copy.jpg", copy, quality=70)
    assert not audit(bccd.open_folder(mine)).of_kind(kind)
    (finding,) = audit(bccd.resolve(f"{smears_copy},{mine}")).of_kind(kind)
    assert finding.severity == "warning"
    for words in (f"{held_out} (val)", "copy (train)", "smears and mine", "leak between splits"):
        assert words in finding.message


def test_both_sources_of_a_leak_are_named(tmp_path):
    first, second = two(tmp_path)
    shutil.copy(first / "JPEGImages/d.jpg", second / "JPEGImages/b.jpg")
    findings = audit(bccd.resolve(f"{first},{second}")).of_kind("duplicate_image")
    assert [f.message for f in findings] == [
        "cells-2_b (train) and d (val) show the same picture, pixel for pixel, in cells-2 and cells: a leak "
        "between splits."
    ]
