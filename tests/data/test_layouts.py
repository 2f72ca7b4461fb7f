"""Folders as COCO and YOLO tools lay them out: read, audited like any other, never written to."""

import copy
import csv
import io
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.config import BCCD_CLASSES
from ssdlib.data import source as bccd
from ssdlib.data.audit import audit
from ssdlib.data.formats.voc import write_splits, write_voc
from ssdlib.data.images import write_image
from ssdlib.data.splits import complete, divide
from ssdlib.data.writers import FORMATS, copy_as_voc, write_layout

SIZE = (40, 30)
NAMES = ["yeast", "spore"]
BOX = [4, 3, 14, 9]  # xyxy
LINE = "1 0.225 0.2 0.25 0.2"  # the same in a YOLO file, as a spore


def picture(path: Path, number: int = 0) -> Path:
    """Noise, so that no two are the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.random.default_rng(number).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8))
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def coco_content(images: list[str]) -> dict:
    x1, y1, x2, y2 = BOX
    box = [x1, y1, x2 - x1, y2 - y1]
    return {
        "images": [{"id": k, "file_name": name} for k, name in enumerate(images)],
        "categories": [{"id": 5, "name": "yeast"}, {"id": 9, "name": "spore"}],
        "annotations": [
            {"id": 10 + k, "image_id": k, "category_id": 9, "bbox": box} for k in range(len(images))
        ],
    }


def stamps(folder: Path) -> dict[str, tuple]:
    return {str(f): (f.stat().st_mtime_ns, f.stat().st_size) for f in folder.rglob("*")}


# --- what is recognized ----------------------------------------------------------------------------------


def roboflow_yolo(root):
    for k, split in enumerate(("train", "valid", "test")):
        picture(root / split / "images" / f"{split}_jpg.rf.0a.jpg", k)
        text(root / split / "labels" / f"{split}_jpg.rf.0a.txt", LINE + "\n")
    places = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    text(root / "data.yaml", f"{places}\nnc: 2\nnames: ['yeast', 'spore']\nroboflow:\n  license: CC BY 4.0\n")


def ultralytics(root):
    for k, split in enumerate(("train", "val", "test")):
        picture(root / "images" / split / f"{split}.png", k)
        text(root / "labels" / split / f"{split}.txt", LINE)
    places = "path: /home/someone/datasets/mine\ntrain: images/train\nval: images/val\ntest: images/test\n"
    text(root / "mine.yaml", f"{places}names:\n  0: yeast\n  1: spore\n")


def lists_of_files(root):
    ultralytics(root)
    (root / "mine.yaml").unlink()
    for split in ("train", "val", "test"):
        text(root / f"{split}.txt", f"./images/{split}/{split}.png\n")
    text(root / "data.yaml", "train: train.txt\nval: [val.txt]\ntest: test.txt\nnames: [yeast, spore]")


def folders_of_yolo_without_yaml(root):
    ultralytics(root)
    (root / "mine.yaml").unlink()
    text(root / "classes.txt", "yeast\nspore\n")


def roboflow_coco(root):
    for k, split in enumerate(("train", "valid", "test")):
        picture(root / split / f"{split}.jpg", k)
        text(root / split / "_annotations.coco.json", json.dumps(coco_content([f"{split}.jpg"])))


def original_coco(root):
    for k, split in enumerate(("train", "val", "test")):
        picture(root / "images" / f"{split}2017" / f"{split}.jpg", k)
        content = json.dumps(coco_content([f"{split}.jpg"]))
        text(root / "annotations" / f"instances_{split}2017.json", content)
    text(root / "annotations" / "captions_train2017.json", "{}")


def voc_beside(root):
    for k, split in enumerate(("train", "valid", "test")):
        picture(root / split / f"{split}.JPG", k)
        width, height = SIZE
        write_voc(root / split / f"{split}.xml", width=width, height=height, boxes=[BOX], names=["spore"])


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (roboflow_yolo, "yolo"),
        (ultralytics, "yolo"),
        (lists_of_files, "yolo"),
        (folders_of_yolo_without_yaml, "yolo"),
        (roboflow_coco, "coco"),
        (original_coco, "coco"),
        (voc_beside, "voc"),
    ],
)
def test_layouts_with_splits(tmp_path, make, kind):
    make(root := tmp_path / "mine")
    before = stamps(tmp_path)
    source = bccd.resolve(root)
    assert (source.kind, source.class_names, source.folder, source.notice) == (kind, ("spore",), root, "")
    assert source.describe()["root"] == str(root)
    for split in ("train", "val", "test"):
        data = source.dataset(split)
        (sample,) = data.samples
        assert sample.image_path.is_relative_to(root) and sample.label_file.is_relative_to(root)
        assert sample.boxes.tolist() == [BOX] and sample.labels.tolist() == [1]
        assert sample.image_id.startswith(split) and data[0][0].shape == (3, SIZE[1], SIZE[0])
    found = audit(source)
    assert found.errors == [] and set(found.kinds()) <= {"unused_class"}
    assert stamps(tmp_path) == before


def loose_yolo(root, count):
    for k in range(count):
        picture(root / "images" / f"f{k:02d}.png", k)
        text(root / "labels" / f"f{k:02d}.txt", LINE + "\n0 0.5 0.5 0.1 0.1")
    text(root / "classes.txt", "yeast\nspore\n")
    text(root / "notes.json", '{"categories": []}')  # Label Studio writes it


def loose_coco(root, count):
    names = [f"f{k:02d}.png" for k in range(count)]
    for k, name in enumerate(names):
        picture(root / "images" / name, k)
    content = coco_content(names)
    content["annotations"] += [{**entry, "category_id": 5} for entry in content["annotations"]]
    text(root / "result.json", json.dumps(content))


def labelimg(root, count):
    for k in range(count):
        picture(root / f"f{k:02d}.png", k)
        text(root / f"f{k:02d}.txt", LINE + "\n0 0.5 0.5 0.1 0.1")
    text(root / "classes.txt", "yeast\nspore\n")


@pytest.mark.parametrize("make", [loose_yolo, loose_coco, labelimg])
def test_images_without_splits_are_divided_as_those_of_a_voc_folder(tmp_path, make):
    make(tmp_path / "mine", 12)
    source = bccd.resolve(tmp_path / "mine")
    assert source.class_names == ("yeast", "spore")  # the folder's order
    assert "divided by a fixed seed" in source.notice and str(tmp_path / "mine") in source.notice
    expected = divide([f"f{k:02d}" for k in range(12)])
    assert {split: source.split_ids(split) for split in expected} == expected


@pytest.mark.parametrize(
    ("given", "sizes", "done"),
    [
        ({}, (0, 0, 0), "divided"),
        ({"train": 56, "val": 24, "test": 20}, (56, 24, 20), ""),
        ({"train": 76, "val": 24}, (56, 24, 20), "no test"),
        ({"train": 80, "test": 20}, (56, 24, 20), "no val"),
        ({"train": 100}, (56, 24, 20), "divided"),
        ({"val": 60, "test": 40}, (56, 24, 20), "divided"),
        ({"": 100}, (56, 24, 20), "divided"),
    ],
)
def test_missing_splits(given, sizes, done):
    ids = {split: [f"{split}{k}" for k in range(count)] for split, count in given.items()}
    parts, said = complete(ids)
    assert tuple(len(parts[split]) for split in ("train", "val", "test")) == sizes
    assert done in said and bool(said) == bool(done)
    divided = itertools.chain(*(parts[split] for split in ("train", "val", "test")))
    assert sorted(divided) == sorted(itertools.chain(*ids.values()))
    assert parts["trainval"] == sorted(parts["train"] + parts["val"])
    for split in ("val", "test"):
        assert not done or "divided" in said or parts[split] == sorted(ids.get(split, parts[split]))


def test_two_images_of_one_name_stay_two(tmp_path):
    root = tmp_path / "mine"
    for k, split in enumerate(("train", "valid", "test")):
        picture(root / split / "images" / "a.png", k)
        text(root / split / "labels" / "a.txt", LINE)
    picture(root / "train" / "images" / "a.jpg", 7)
    text(
        root / "data.yaml", "train: train/images\nval: valid/images\ntest: test/images\nnames: [yeast, spore]"
    )
    source = bccd.resolve(root)
    assert source.split_ids("train") == ["train_images_a_jpg", "train_images_a_png"]
    assert source.split_ids("val") == ["valid_images_a_png"]
    paths = [
        sample.image_path for split in ("train", "val", "test") for sample in source.dataset(split).samples
    ]
    assert len(set(paths)) == 4


@pytest.mark.parametrize("make", [roboflow_yolo, lists_of_files, roboflow_coco, voc_beside])
def test_every_change_is_in_the_fingerprint_and_a_copy_agrees(tmp_path, make):
    make(root := tmp_path / "mine")
    source = bccd.resolve(root)
    assert bccd.resolve(shutil.copytree(root, tmp_path / "other")).fingerprint == source.fingerprint
    (root / "notes.md").write_text("x")
    assert bccd.resolve(root).fingerprint == source.fingerprint
    seen = {source.fingerprint}
    for number, file in enumerate(source.labels.files):
        if file.suffix.lower() in (".jpg", ".png"):
            picture(file, 90 + number)
        else:
            file.write_text(file.read_text() + "\n")
        seen.add(bccd.resolve(root).fingerprint)
    assert len(seen) == 1 + len(source.labels.files)


def test_a_change_behind_a_link_is_seen(tmp_path):
    roboflow_yolo(real := tmp_path / "real")
    root = tmp_path / "mine"
    root.mkdir()
    shutil.copy(real / "data.yaml", root)
    for split in ("train", "valid", "test"):
        (root / split).symlink_to(real / split, target_is_directory=True)
    before = bccd.resolve(root)
    fingerprint = before.fingerprint
    (real / TRAIN_LABEL).write_text("0 0.5 0.5 0.5 0.5")
    after = bccd.resolve(root)
    assert before.class_names == ("spore",) and after.class_names == ("yeast", "spore")
    assert after.fingerprint != fingerprint
    assert after.dataset("train").samples[0].boxes.tolist() == [[10, 7.5, 30, 22.5]]


# --- there and back --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["voc", "coco", "yolo", "csv"])
def test_there_and_back(smears_source, tmp_path, layout):
    written = write_layout(smears_source, tmp_path / "out", layout, fractions=True)
    back = bccd.resolve(written)
    assert (back.kind, back.synthetic, back.class_names) == ("smears", True, BCCD_CLASSES)  # by their names
    for split in ("train", "val", "test", "trainval"):
        assert sorted(back.split_ids(split)) == sorted(smears_source.split_ids(split))
        theirs = {sample.image_id: sample for sample in back.dataset(split).samples}
        for sample in smears_source.dataset(split).samples:
            other = theirs[sample.image_id]
            np.testing.assert_allclose(other.boxes, sample.boxes, atol=0.01)
            np.testing.assert_array_equal(other.labels, sample.labels)
            assert other.image_path.read_bytes() == sample.image_path.read_bytes() and not other.repairs
    assert audit(back).kinds() == {}
    copy_as_voc(back, tmp_path / "voc")
    twice = bccd.resolve(tmp_path / "voc")
    assert twice.labels.splits == back.labels.splits and twice.synthetic
    for image in twice.labels.images:
        assert [o.written for o in image.objects] == [
            o.written for o in back.labels.by_id[image.image_id].objects
        ]


def odd_voc(root: Path) -> bccd.DataSource:
    """Four images: one with fractions of pixels, one turned by EXIF, two without an object."""
    boxes = {"=Müller": [[4.4, 3, 14.6, 9], [20.1, 7, 20.3, 8]], "turned": [BOX], "none": [], "last": []}
    for name, own in boxes.items():
        path = picture(root / f"JPEGImages/{name}.jpg", len(own))
        if name == "turned":
            exif = Image.Exif()
            exif[0x0112] = 6  # shown turned by 90 degrees clockwise
            with Image.open(path) as raw:
                raw.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
        size = {"width": SIZE[0], "height": SIZE[1]}
        file = root / f"Annotations/{name}.xml"
        write_voc(file, **size, boxes=own, names=["spore"] * len(own), fractions=True)
    write_splits(root, {"train": ["=Müller", "turned"], "val": ["none"], "test": ["last"]})
    return bccd.open_folder(root)


@pytest.mark.parametrize("layout", FORMATS)
def test_pictures_are_written_upright(tmp_path, layout):
    source = odd_voc(tmp_path / "in")
    written = write_layout(source, tmp_path / "out", layout)
    (turned,) = written.rglob("turned.*g")
    assert turned.suffix == ".png"
    with Image.open(turned) as copy, Image.open(source.labels.by_id["turned"].path) as raw:
        assert copy.size == SIZE and raw.size == SIZE[::-1] and not copy.getexif()
        assert np.array_equal(np.array(copy), np.array(ImageOps.exif_transpose(raw)))
    (kept,) = written.rglob("none.jpg")
    assert kept.read_bytes() == source.labels.by_id["none"].path.read_bytes()
    if layout == "coco":
        content = json.loads((written / "annotations/instances_train.json").read_text())
        stated = {image["file_name"]: (image["width"], image["height"]) for image in content["images"]}
        assert stated["turned.png"] == SIZE


@pytest.mark.parametrize(
    ("fractions", "first"), [(False, ["4", "3", "15", "9"]), (True, ["4.4", "3.0", "14.6", "9.0"])]
)
def test_tables_have_a_row_for_each_box(tmp_path, fractions, first):
    written = write_layout(odd_voc(tmp_path / "in"), tmp_path / "out", "csv", fractions=fractions)
    tables = {file.name: file.read_text("utf-8") for file in written.glob("*.csv")}
    assert tables.keys() == {"train.csv", "val.csv", "test.csv"}
    header, *rows = csv.reader(io.StringIO(tables["train.csv"]))
    assert header == ["image", "xmin", "ymin", "xmax", "ymax", "label"]
    assert rows[0] == ["=Müller.jpg", *first, "spore"], "for programs: a name as it is"
    assert [row[0] for row in rows] == ["=Müller.jpg", "=Müller.jpg", "turned.png"]
    assert all((written / row[0]).is_file() and float(row[1]) < float(row[3]) for row in rows)
    assert list(csv.reader(io.StringIO(tables["val.csv"])))[1] == ["none.jpg", "", "", "", "", ""]


def test_voc_has_whole_pixels_unless_asked_and_a_faithful_copy_what_is_written(tmp_path):
    source = odd_voc(tmp_path / "in")
    written = {}
    for name, fractions in (("whole", False), ("exact", True)):
        folder = write_layout(source, tmp_path / name, "voc", fractions=fractions)
        written[name] = [o.written for o in bccd.open_folder(folder).labels.by_id["=Müller"].objects]
    assert written == {
        "whole": [(4, 3, 15, 9), (20, 7, 21, 8)],
        "exact": [(4.4, 3, 14.6, 9), (20.1, 7, 20.3, 8)],
    }
    as_coco = bccd.open_folder(write_layout(source, tmp_path / "coco", "coco"))
    (tmp_path / "copy").mkdir()
    copy_as_voc(as_coco, tmp_path / "copy")
    kept = bccd.open_folder(tmp_path / "copy").labels.by_id["=Müller"].objects
    assert [o.written for o in kept] == written["exact"]


def test_pycocotools_shows_what_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    coco = pytest.importorskip("pycocotools.coco")
    written = write_layout(odd_voc(tmp_path / "in"), tmp_path / "out", "coco")
    labels = coco.COCO(str(written / "annotations/instances_train.json"))
    found = labels.loadAnns(labels.getAnnIds())
    assert [one["segmentation"] for one in found] == [[], [], []]
    labels.showAnns(found, draw_bbox=True)
    assert found[0]["bbox"] == [4.4, 3.0, 10.2, 6.0] and found[0]["area"] == 61.2


def test_an_unknown_layout(smears_source, tmp_path):
    with pytest.raises(ConfigError, match="voc, coco, yolo, csv"):
        write_layout(smears_source, tmp_path / "out", "VOC")


@pytest.mark.parametrize("layout", FORMATS)
def test_a_split_that_cannot_be_read_is_not_lost_on_the_way(smears_copy, tmp_path, layout):
    (smears_copy / "ImageSets/Main/val.txt").write_bytes(b"SmearImage_00006 \xff\n")
    with pytest.raises(DataError, match=r"val\.txt is not UTF-8"):
        write_layout(bccd.open_folder(smears_copy), tmp_path / "out", layout)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(smears_source, tmp_path):
    text(tmp_path / "out" / "mine.txt", "x")
    with pytest.raises(DataError, match="already holds something"):
        write_layout(smears_source, tmp_path / "out", "yolo")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigError, match="lies in the data"):
        write_layout(smears_source, smears_source.folder / "JPEGImages/out", "yolo")


# --- damage ----------------------------------------------------------------------------------------------

TRAIN_LABEL = "train/labels/train_jpg.rf.0a.txt"


@pytest.mark.parametrize(
    ("content", "kind", "severity", "message"),
    [
        ("\n \n", "no_objects", "info", "teaches background only"),
        (LINE, None, None, None),
        ("1 0.5 0.5 1.0000004 1.0000004", None, None, None),  # six digits are not exact
        ("2 0.5 0.5 0.1 0.1", "damaged_labels", "error", "line 1: there is no class 2: they are 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", "damaged_labels", "error", "there is no class 0.5"),
        (f"{LINE}\n\nspore 0.5 0.5 0.1 0.1", "damaged_labels", "error", "line 3: numbers are expected"),
        ("1 0.5 0.5 0.1", "damaged_labels", "error", "not 4 numbers"),
        ("1 0.5 0.5 0.1 nan", "damaged_labels", "error", "finite numbers"),
        ("1 320 240 50 50", "damaged_labels", "error", "fractions of the image from 0 to 1"),
        ("1 0.1 0.1 0.4 0.1 0.4 0.4 0.1", "damaged_labels", "error", "not 8 numbers"),
        ("1 0.9 0.5 0.5 0.1", "box_outside", "warning", "line 1 (spore)"),
        ("1 0.5 0.5 0 0.1", "point_box", "warning", "line 1 (spore)"),
        ("1 0.1 0.1 0.4 0.1 0.4 0.4", "outline", "info", "line 1): the upright box around each"),
        (f"{LINE} 0.93", "scored_label", "warning", "a sixth number"),
        (f"{LINE}\n{LINE}", "duplicate_box", "warning", "mark the same place"),
        (None, "no_label_file", "warning", f"there is no {TRAIN_LABEL}"),
        (b"\xff\xfe1 0", "damaged_labels", "error", "not UTF-8"),
    ],
)
def test_odd_yolo_labels(tmp_path, content, kind, severity, message):
    roboflow_yolo(root := tmp_path / "mine")
    (root / TRAIN_LABEL).unlink()
    if content is not None:
        (root / TRAIN_LABEL).write_bytes(content if isinstance(content, bytes) else content.encode())
    source = bccd.resolve(root)
    aside = {"unused_class", "no_objects", "class_not_in_train"} - {kind}
    found = [f for f in audit(source).findings if f.kind not in aside]
    assert [(f.kind, f.severity, f.image_id) for f in found] == [(kind, severity, "train_jpg.rf.0a")] * bool(
        kind
    )
    assert all(message in f.message for f in found)
    if severity == "error":
        assert TRAIN_LABEL in found[0].message
        with pytest.raises(DataError) as error:
            source.dataset("train")
        assert str(error.value).startswith(found[0].message)
    else:
        assert len(source.dataset("train")) == 1
    assert len(source.dataset("val")) == 1  # the others can be used all the same


def test_an_outline_becomes_the_box_around_it(tmp_path):
    roboflow_yolo(root := tmp_path / "mine")
    (root / TRAIN_LABEL).write_text("1 0.1 0.2 0.4 0.1 0.3 0.5 0.2 0.4")
    np.testing.assert_allclose(
        bccd.resolve(root).dataset("train").samples[0].boxes, [[4, 3, 16, 15]], atol=1e-3
    )


def labels_are(content):
    return lambda root: [file.write_text(content) for file in root.rglob("*.txt")]


def no_folder(name):
    return lambda root: [shutil.rmtree(folder) for folder in root.rglob(name)]


def multiplied(item, each):
    """Four levels of YAML aliases, each of nine times the last."""
    levels = [
        f"{name}: &{name} {each % ', '.join(9 * [f'*{below}'])}\n" for below, name in ("ab", "bc", "cd")
    ]
    return f"a: &a {item}\n" + "".join(levels)


ALIASES, MERGES = multiplied("[x]", "[%s]"), multiplied("{x: 1}", "{<<: [%s]}")


def yaml_is(content):
    return lambda root: text(root / "data.yaml", content)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (yaml_is(""), r'data\.yaml has no "names"'),
        (yaml_is("names: [yeast\n"), r"data\.yaml is not valid YAML .*line 2"),
        (yaml_is("names: !!python/object/apply:os.system ['true']\n"), r"data\.yaml is not valid YAML"),
        (yaml_is(ALIASES + "names: *d\n"), r"data\.yaml is not valid YAML .*more than 8 aliases"),
        (yaml_is(MERGES + "names: [yeast, spore]\n<<: *d\n"), r"data\.yaml is not valid YAML .*aliases"),
        (yaml_is("names: &a [*a]\n"), r"data\.yaml is not valid YAML"),
        (yaml_is("names: " + "[" * 5000 + "]" * 5000), r"data\.yaml is not valid YAML"),
        (yaml_is("names: !mine [yeast, spore]"), r"data\.yaml is not valid YAML .*tag"),
        (yaml_is(f"names: [yeast, spore]\n# {'x' * 1_000_000}"), r"data\.yaml is larger than 1 MB"),
        (yaml_is("names: [yeast, spore]\ntrain: {a: b}"), r"name folders or lists as text"),
        (yaml_is("names: [yeast, spore]\npath: [a]\ntrain: images"), r"name folders or lists as text"),
        (yaml_is(f"names: [yeast, spore]\ntrain: {'a' * 5000}"), r"has train: a{70,79}, and.*no such"),
        (yaml_is('names: [yeast, spore]\ntrain: "a\\0b"'), r"has train: a.x00b.*no such"),
        (yaml_is("names: []"), r"data\.yaml: class names must be distinct.*at least one"),
        (yaml_is("names: [a, a]"), r"data\.yaml: class names must be distinct"),
        (yaml_is("names: [[a]]"), r"data\.yaml: names must be a list"),
        (yaml_is("names: {1: a, 2: b}"), r"data\.yaml: names must be numbered 0, 1, 2"),
        (yaml_is("names: [yeast, spore]\ntrain: ../../../etc"), r"has train: \.\./\.\./\.\./etc.*no such"),
        (no_folder("labels"), r"none of the 3 images has a label file: .*train/labels/train_jpg.rf.0a.txt"),
        (no_folder("images"), r"has train: \.\./train/images.*no such"),
        (labels_are(""), r"no label in .* is of use"),
        (labels_are("9 1 1 1 1"), r"no label in .* line 1: there is no class 9"),
    ],
)
def test_damaged_yolo_folders(tmp_path, damage, complaint):
    roboflow_yolo(root := tmp_path / "mine")
    damage(root)
    with pytest.raises(DataError, match=complaint):
        bccd.resolve(root)


def findings(root):
    return {f.kind: f for f in audit(bccd.resolve(root)).findings if f.kind != "unused_class"}


def test_what_a_yolo_folder_lacks_is_said(tmp_path):
    roboflow_yolo(root := tmp_path / "mine")
    text(root / "train" / "labels" / "gone.txt", LINE)
    shutil.rmtree(root / "test")
    found = findings(root)
    assert "train/labels/gone.txt belongs to no image" in found["label_without_image"].message
    assert "the split is left out" in found["missing_split"].message


def test_a_list_that_names_a_missing_image(tmp_path):
    lists_of_files(root := tmp_path / "mine")
    with (root / "train.txt").open("a") as file:
        file.write("./images/train/gone.png\n")
    source = bccd.resolve(root)
    assert audit(source).kinds()["missing_image"] == 1
    with pytest.raises(DataError, match=r"no image .*gone\.png.*take it out of the labels"):
        source.dataset("train")


def test_images_of_two_splits_stay_in_one(tmp_path):
    """As the small examples have it that are trained and judged on the same images."""
    ultralytics(root := tmp_path / "mine")
    text(root / "mine.yaml", "train: images/train\nval: images/train\nnames: [yeast, spore]")
    for k in range(9):
        picture(root / "images" / "train" / f"f{k}.png", k + 9)
        text(root / "labels" / "train" / f"f{k}.txt", LINE)
    source = bccd.resolve(root)
    assert not set(source.split_ids("train")) & set(source.split_ids("val"))
    assert "in another split, too" in findings(root)["split_overlap"].message


def test_a_damaged_image_is_named_by_its_own_path(tmp_path):
    roboflow_yolo(root := tmp_path / "mine")
    image = root / "train" / "images" / "train_jpg.rf.0a.jpg"
    image.write_bytes(image.read_bytes()[:60])
    source = bccd.resolve(root)
    assert [str(image) in f.message for f in audit(source).of_kind("damaged_image")] == [True]
    with pytest.raises(DataError, match=str(image)):
        source.dataset("train")[0]


COCO = coco_content(["train.jpg"])


def changed(key, **values):
    content = copy.deepcopy(COCO)
    content[key][0] |= values
    return content


@pytest.mark.parametrize(
    ("content", "kind", "severity", "message"),
    [
        ({**COCO, "annotations": []}, "no_objects", "info", "no object is labeled"),
        (COCO, None, None, None),
        (changed("annotations", category_id=7), "unknown_class", "error", "annotation 10 has category_id 7"),
        (changed("annotations", bbox=[1, 2, 3]), "damaged_labels", "error", "(spore) must have a bbox"),
        (changed("annotations", bbox=None), "damaged_labels", "error", "not None"),
        (changed("annotations", bbox=[1, 2, float("nan"), 3]), "damaged_labels", "error", "four numbers"),
        (changed("annotations", bbox=[1, 2, "x", 3]), "damaged_labels", "error", "bbox of four numbers"),
        (changed("annotations", image_id=4), "unknown_image", "warning", "its box is lost"),
        (changed("annotations", bbox=[30, 3, 20, 6]), "box_outside", "warning", "annotation 10 (spore)"),
        (changed("annotations", iscrowd=1), "crowd", "info", "counts as background"),
        (changed("images", width=80, height=60), "size_mismatch", "warning", "80 x 60, the image is 40 x 30"),
        (changed("images", file_name="gone.jpg"), "missing_image", "error", "gone.jpg"),
        (changed("images", file_name="../../secret.jpg"), "missing_image", "error", "mine/train/secret.jpg"),
        (changed("images", file_name="/secret.jpg"), "missing_image", "error", "mine/train/secret.jpg"),
    ],
)
def test_odd_coco_annotations(tmp_path, content, kind, severity, message):
    roboflow_coco(root := tmp_path / "mine")
    picture(tmp_path / "secret.jpg")  # nothing outside the folder is ever read
    file = text(root / "train" / "_annotations.coco.json", json.dumps(content))
    source = bccd.resolve(root)
    aside = {"unused_class", "class_not_in_train", "image_not_listed", "no_objects", "missing_split"} - {kind}
    found = [f for f in audit(source).findings if f.kind not in aside]
    assert [(f.kind, f.severity) for f in found] == [(kind, severity)] * bool(kind)
    assert all(message in f.message for f in found)
    if severity == "error":
        with pytest.raises(DataError, match=r"gone\.jpg" if "gone" in message else file.parent.name):
            source.dataset("train")


def test_an_outline_stands_in_for_a_missing_bbox(tmp_path):
    roboflow_coco(root := tmp_path / "mine")
    content = changed("annotations", bbox=None, segmentation=[[4, 3, 14, 3, 14, 9], [5, 5, 6, 6, 5, 6]])
    text(root / "train" / "_annotations.coco.json", json.dumps(content))
    assert bccd.resolve(root).dataset("train").samples[0].boxes.tolist() == [BOX]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", r"train/_annotations\.coco\.json is not valid JSON \(.*line 1"),
        ("[]", 'no list "images"'),
        (json.dumps({"images": []}), 'no list "categories"'),
        (json.dumps({**COCO, "images": ["a.png"]}), 'entry 0 of "images"'),
        (json.dumps(changed("annotations", category_id=[1])), 'no valid "category_id"'),
        (json.dumps({**COCO, "categories": []}), "class names must be distinct"),
        (json.dumps({**COCO, "images": COCO["images"] * 2}), "two images have the id 0"),
    ],
)
def test_damaged_coco_folders(tmp_path, content, complaint):
    roboflow_coco(root := tmp_path / "mine")
    text(root / "train" / "_annotations.coco.json", content)
    with pytest.raises(DataError, match=complaint):
        bccd.resolve(root)


def test_broken_xml_beside_an_image(tmp_path):
    voc_beside(root := tmp_path / "mine")
    (root / "train" / "train.xml").write_text("<annotation>")
    source = bccd.resolve(root)
    assert audit(source).kinds() == {"damaged_annotation": 1}
    with pytest.raises(DataError, match=r"train\.xml is not well-formed"):
        source.dataset("train")


@pytest.mark.parametrize("make", [lambda root: root.mkdir(), lambda root: picture(root / "a.png")])
def test_what_is_no_dataset_is_told_what_would_be(tmp_path, make):
    make(tmp_path / "mine")
    with pytest.raises(DataError, match=r"mine is not a dataset: .*JPEGImages.*YOLO.*data\.yaml.*COCO.*XML"):
        bccd.resolve(tmp_path / "mine")


@pytest.mark.parametrize(
    "value", ["2001-02-30", "!!int abc", "!!bool abc", "!!float abc", "9" * 5000, "1" + ":59" * 999]
)
def test_what_data_yaml_says_besides_is_not_read(tmp_path, value):
    roboflow_yolo(tmp_path)
    (file,) = tmp_path.glob("*.yaml")
    before = bccd.open_folder(tmp_path).labels
    file.write_text(f"date: {value}\nother: &one [1]\nmore: *one\n" + file.read_text())
    after = bccd.open_folder(tmp_path).labels
    assert after.class_names == before.class_names and after.splits == before.splits


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"bbox": None, "segmentation": [[]]}, "damaged_labels"),
        ({"bbox": None, "segmentation": [[], [1, 2]]}, None),
        ({"bbox": [10**90, 1, 2, 3]}, "point_box"),
        ({"bbox": "x" * 10_000}, "damaged_labels"),
        ({"image_id": "\x1b[2J"}, None),
    ],
)
def test_odd_coco_annotations_of_a_stranger(tmp_path, smears_source, change, kind):
    root = write_layout(smears_source, tmp_path / "coco", "coco")
    file = sorted(root.glob("annotations/*.json"))[0]
    content = json.loads(file.read_text())
    content["annotations"][0] |= change
    file.write_text(json.dumps(content))
    kinds = {finding.kind for finding in audit(bccd.open_folder(root)).findings}
    assert kind is None or kind in kinds


@pytest.mark.parametrize(
    "name", ["a\0b.jpg", "\x1b[2J.jpg", "\ud800.jpg", 5000 * "a" + ".jpg", 5000 * "a/" + "b"]
)
def test_a_name_that_no_file_has_is_a_missing_image(tmp_path, smears_source, name):
    root = write_layout(smears_source, tmp_path / "coco", "coco")
    file = sorted(root.glob("annotations/*.json"))[0]
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = name
    file.write_text(json.dumps(content))
    assert "missing_image" in {finding.kind for finding in audit(bccd.open_folder(root)).findings}
    content["images"][0]["id"] = 10**400
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="number of 401 digits"):
        bccd.open_folder(root)


def test_a_run_of_a_mask_has_an_end(tmp_path, smears_source):
    root = write_layout(smears_source, tmp_path / "coco", "coco")
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    mask = {"size": [240, 320], "counts": "o" * 2_000_000}
    content["annotations"][0] |= {"bbox": None, "segmentation": mask}
    content["annotations"][1]["bbox"] = [1e308, 1, 1e308, 1]
    file.write_text(json.dumps(content))
    errors = audit(bccd.open_folder(root)).errors
    assert [finding.kind for finding in errors] == ["damaged_labels"] * 2


def test_what_is_wrong_a_million_times_is_not_said_as_often(tmp_path, smears_source, monkeypatch):
    monkeypatch.setattr("ssdlib.data.formats.records.MAX_FINDINGS", 5)
    root = write_layout(smears_source, tmp_path / "yolo", "yolo")
    file = next((root / "labels/train").iterdir())
    file.write_text("0 0.5 0.5 9e-9 2\n" * 50 + "7 0 0 0 0\n" * 50)
    image = bccd.open_folder(root).labels.by_id[file.stem]
    assert len(image.findings) == 6
    assert image.error and "only 5 findings are listed" in image.findings[4].message


@pytest.mark.parametrize("layout", ["yolo", "coco"])
def test_a_list_of_more_images_than_anyone_has(tmp_path, smears_source, monkeypatch, layout):
    monkeypatch.setattr(f"ssdlib.data.formats.{layout}.MAX_IMAGES", 5)
    root = write_layout(smears_source, tmp_path / "data", layout)
    if layout == "yolo":
        names = "\n".join(str(path.relative_to(root)) for path in root.glob("images/train/*"))
        text(root / "train.txt", names)
        text(root / "data.yaml", f"train: train.txt\nnames: {list(BCCD_CLASSES)}")
    with pytest.raises(DataError, match="lists 6 images: more than 5 are not read"):
        bccd.open_folder(root)


@pytest.mark.parametrize("to", FORMATS)
def test_names_that_fit_no_label_file_are_made_to(tmp_path, to):
    root = tmp_path / "data"
    names = ["caf\udce9", "a\x1bb", "x" * 251, " .hidden", "a\nb", "plain"]
    for k, name in enumerate(names):
        picture(root / "JPEGImages" / f"{name}.png", k)
        size = {"width": SIZE[0], "height": SIZE[1], "filename": "any.png"}
        write_voc(root / "Annotations" / f"{name}.xml", boxes=np.array([BOX]), names=["RBC"], **size)
    copied = bccd.open_folder(write_layout(bccd.open_folder(root), tmp_path / "copy", to))
    found = audit(copied)
    assert not found.errors and found.classes["all"]["RBC"] == 6
    assert {"caf_", "a_b", "hidden", "plain"} < {image.image_id for image in copied.labels.images}


def test_what_the_system_refuses_to_read_is_said(tmp_path, smears_source, monkeypatch):
    root = write_layout(smears_source, tmp_path / "coco", "coco")

    def refuse(place):
        raise PermissionError(13, "Permission denied", str(place))

    source = bccd.open_folder(root)
    with monkeypatch.context() as patched:
        patched.setattr("ssdlib.data.source.sha256_of", refuse)
        assert audit(source).source["fingerprint"]  # the image that cannot be read is a finding
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"cannot read .*coco: Permission denied"):
        bccd.open_folder(root)
