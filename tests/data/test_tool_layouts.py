"""One small data set as many tools write it, and as many ways as files come: the same labels are read.

Six images with two red cells and a white one each, at places of their own, so that no mix-up goes unseen.
"""

import codecs
import contextlib
import csv
import functools
import io
import json
import random
import shutil
import sys
import unicodedata
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from ssdlib.common.errors import DataError
from ssdlib.data.audit import audit
from ssdlib.data.formats import layouts
from ssdlib.data.formats.voc import read_objects, read_tree
from ssdlib.data.source import open_folder

WIDTH, HEIGHT = 160, 120
CLASSES = ["RBC", "WBC"]
OBJECTS = [
    [
        ("RBC", (8 + k, 30 + k, 36 + k, 58 + k)),
        ("RBC", (60 + 2 * k, 40 - k, 88 + 2 * k, 68 - k)),
        ("WBC", (100, 60 + k, 140 + k, 100 + k)),
    ]
    for k in range(6)
]
SPLITS = ["train", "train", "train", "train", "val", "test"]


@dataclass
class Way:
    """How the files come."""

    encoding: str = "utf-8"
    upper: bool = False
    """Endings in capitals."""
    folders: bool = False
    """Images in sub-folders, with the same names in each."""
    machine: str = ""
    """Where the images were when they were labeled: before each name that is stated."""
    companions: bool = False
    """macOS's ._x and .DS_Store, Synology's thumbnails, a hidden copy."""
    written: list[Path] = field(default_factory=list)

    def name(self, k: int) -> str:
        """The path of an image below its place, without ending."""
        return f"slide {k % 2}/frame_{k // 2:06d}" if self.folders else f"Zelle ä {k}"

    def ending(self, suffix: str) -> str:
        return suffix.upper() if self.upper else suffix

    def stated(self, name: str) -> str:
        """What a label file calls the image `name`."""
        if "?" in self.machine:
            return self.machine + quote(name, safe="")
        return self.machine + (name.replace("/", "\\") if "\\" in self.machine else name)

    def picture(self, place: Path, k: int, suffix: str = ".png") -> str:
        """Write image k into `place`; its path below, with ending."""
        name = self.name(k) + self.ending(suffix)
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(k, suffix))
        self.written.append(file)
        return name

    def text(self, file: Path, content: str) -> None:
        file = file.with_name(file.stem + self.ending(file.suffix))
        file.parent.mkdir(parents=True, exist_ok=True)
        mark = codecs.BOM_UTF16_BE if self.encoding == "utf-16-be" else b""
        file.write_bytes(mark + content.encode(self.encoding))
        self.written.append(file)

    def finish(self) -> None:
        if not self.companions:
            return
        for file in self.written:
            (file.parent / f"._{file.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
            (file.parent / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
            (file.parent / "__MACOSX").mkdir(exist_ok=True)
            (file.parent / "__MACOSX" / file.name).write_bytes(file.read_bytes())
            thumbnail = file.parent / "@eaDir" / file.name / "SYNOPHOTO_THUMB_M.jpg"
            thumbnail.parent.mkdir(parents=True, exist_ok=True)
            thumbnail.write_bytes(picture(0, ".jpg"))


@functools.cache
def picture(k: int, suffix: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (40 * k, 200, 90)).save(stream, {".jpg": "JPEG"}.get(suffix, "PNG"))
    return stream.getvalue()


WAYS = {
    "plain": Way(),
    "mark, macOS": Way("utf-8-sig", companions=True),
    "utf-16, Windows": Way("utf-16", machine="D:\\Labor\\slides\\"),
    "big-endian, folders": Way("utf-16-be", folders=True, machine="/home/me/project 1/"),
    "capitals, address": Way(upper=True, machine="/data/local-files/?d=slides%2F"),
    "all": Way("utf-16", True, True, "..\\..\\media\\", True),
}


# --- the layouts: each writes the data set into a folder and says whether it has the splits of SPLITS -----


def xml(way: Way, name: str, objects, *, together: bool = False) -> str:
    """A VOC annotation; `together` puts the boxes of a class into one object, as ybat does."""
    boxes: dict = {}
    for number, (label, box) in enumerate(objects):
        corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        inner = "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners)
        boxes.setdefault((label, 0 if together else number), []).append(f"<bndbox>{inner}</bndbox>")
    nodes = "".join(f"<object><name>{label}</name>{''.join(b)}</object>" for (label, _), b in boxes.items())
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    return f"<annotation><filename>{way.stated(name)}</filename>{size}{nodes}</annotation>"


def voc(root, way, together=False, lists=()):
    for k in range(6):
        name = way.picture(root / "JPEGImages", k)
        way.text(root / "Annotations" / f"{way.name(k)}.xml", xml(way, name, OBJECTS[k], together=together))
    for split, content in lists:
        way.text(root / "ImageSets" / "Main" / f"{split}.txt", content)
    return bool(lists)


def voc_ybat(root, way):
    return voc(root, way, together=True)


def voc_lists(root, way, line="{name}\n", names="{split}"):
    lists = {}
    for k, split in enumerate(SPLITS):
        one = line.format(name=way.name(k), ending=way.ending(".png"), machine=way.machine)
        lists[names.format(split=split)] = lists.get(names.format(split=split), "") + one
    return voc(root, way, lists=lists.items())


def voc_lists_with_endings(root, way):
    return voc_lists(root, way, "{name}{ending}\r\n")


def voc_lists_with_paths(root, way):
    return voc_lists(root, way, "{machine}JPEGImages/{name}{ending}\n")


def voc_lists_of_classes(root, way):
    return voc_lists(root, way, "{name}{ending} 1\n", "RBC_{split}")


def voc_lists_without_main(root, way):
    voc_lists(root, way)
    for file in (root / "ImageSets" / "Main").iterdir():
        file.rename(root / "ImageSets" / file.name)
    (root / "ImageSets" / "Main").rmdir()
    way.written = [file for file in way.written if file.parent.name != "Main"]
    return True


def beside(root, way):
    for k in range(6):
        name = way.picture(root, k)
        way.text(root / f"{way.name(k)}.xml", xml(way, name, OBJECTS[k]))


def xml_in_a_folder_of_its_own(root, way):
    for k in range(6):
        name = way.picture(root / "images", k)
        way.text(root / "annotations" / f"{way.name(k)}.xml", xml(way, name, OBJECTS[k]))


def xml_of_other_names(root, way):
    for k in range(6):
        name = way.picture(root / "images", k)
        way.text(root / "labels" / f"task-{k}.xml", xml(way, name, OBJECTS[k]))


def voc_in_folders_of_splits(root, way):
    for k, split in enumerate(SPLITS):
        name = way.picture(root / split / "JPEGImages", k)
        way.text(root / split / "Annotations" / f"{way.name(k)}.xml", xml(way, name, OBJECTS[k]))
    return True


def xml_flat_and_images_by_split(root, way):
    for k, split in enumerate(SPLITS):
        name = way.picture(root / "images" / split, k)
        way.text(root / "annotations" / f"{way.name(k)}.xml", xml(way, name, OBJECTS[k]))
    return True


def xml_by_split_and_images_flat(root, way):
    for k, split in enumerate(SPLITS):
        name = way.picture(root / "images", k)
        way.text(root / "annotations" / split / f"{way.name(k)}.xml", xml(way, name, OBJECTS[k]))
    return True


def line(label: str, box, numbers=CLASSES) -> str:
    x1, y1, x2, y2 = box
    values = (x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT
    return f"{numbers.index(label)} " + " ".join(f"{value:.6f}" for value in values) + "\n"


def yolo_files(root, way, images, labels):
    """The stated names of the images, which go to the folder `images`, the labels to `labels`."""
    names = []
    for k, split in enumerate(SPLITS):
        place = images.format(split=split)
        names.append((split, f"{place}/{way.picture(root / place, k)}"))
        content = "".join(line(*one) for one in OBJECTS[k])
        way.text(root / labels.format(split=split) / f"{way.name(k)}.txt", content)
    return names


def ultralytics(root, way):
    yolo_files(root, way, "images/{split}", "labels/{split}")
    machine = "" if "?" in way.machine or ".." in way.machine else way.machine
    places = "".join(f"{split}: {machine}images/{split}\n" for split in ("train", "val", "test"))
    way.text(root / "data.yaml", f"path: /datasets/mine\n{places}names:\n  0: RBC\n  1: WBC\n")
    return True


def roboflow_yolo(root, way):
    yolo_files(root, way, "{split}/images", "{split}/labels")
    places = "".join(f"{split}: ../{split}/images\n" for split in ("train", "val", "test"))
    way.text(root / "data.yaml", f"{places}nc: 2\nnames: ['RBC', 'WBC']\n")
    return True


def cvat_yolo(root, way):
    names = yolo_files(root, way, "obj_{split}_data", "obj_{split}_data")
    way.text(root / "obj.names", "RBC\nWBC\n")
    entries = "".join(f"{split} = data/{split}{way.ending('.txt')}\n" for split in ("train", "val", "test"))
    way.text(root / "obj.data", f"classes = 2\n{entries}names = data/obj.names\nbackup = backup/\n")
    for split in ("train", "val", "test"):
        listed = [way.stated(f"data/{name}") for own, name in names if own == split]
        way.text(root / f"{split}.txt", "\n".join(listed))
    return True


def cvat_yolo_without_lists(root, way):
    yolo_files(root, way, "obj_{split}_data", "obj_{split}_data")
    way.text(root / "obj.names", "RBC\nWBC\n\n")
    return True


def darknet(root, way):
    names = yolo_files(root, way, "JPEGImages", "labels")
    way.text(root / "data" / "obj.names", "RBC\r\nWBC\r\n")
    for split in ("train", "val", "test"):
        listed = [way.stated(f"build/darknet/x64/{name}") for own, name in names if own == split]
        way.text(root / "data" / f"{split}.txt", "\n".join(listed))
    return True


def darknet_without_lists(root, way):
    yolo_files(root, way, "JPEGImages", "labels")
    way.text(root / "voc.names", "RBC\nWBC\n")


def darknet_beside_empty_annotations(root, way):
    (root / "Annotations").mkdir(parents=True)
    darknet_without_lists(root, way)


def labelimg(root, way):
    yolo_files(root, way, "images", "labels")
    way.text(root / "labels" / "classes.txt", "RBC\nWBC\n")


def labelimg_all_in_one(root, way):
    yolo_files(root, way, ".", ".")
    way.text(root / "classes.txt", "RBC\nWBC\n")


def labelimg_images_above(root, way):
    yolo_files(root, way, ".", "labels")
    way.text(root / "labels" / "classes.txt", "RBC\nWBC\n")


def labelimg_by_split(root, way):
    yolo_files(root, way, "images/{split}", "labels/{split}")
    for split in ("train", "val", "test"):
        way.text(root / "labels" / split / "classes.txt", "RBC\nWBC\n")
    return True


def make_sense(root, way):
    yolo_files(root, way, "images", "labels")
    way.text(root / "labels" / "labels.txt", "RBC\nWBC")


def coco_entries(way, names, *, ids=int, root_category=False, shape=None):
    """The content of a COCO file for (k, name of the image)."""
    categories = [{"id": 0, "name": "RBC", "supercategory": "none"}] if root_category else []
    content = {"images": [], "categories": [*categories], "annotations": []}
    content["categories"] += [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    for k, name in names:
        size = {"width": WIDTH, "height": HEIGHT}
        content["images"].append({"id": k + 1, "file_name": way.stated(name), **size})
        for label, (x1, y1, x2, y2) in OBJECTS[k]:
            about = {"id": len(content["annotations"]), "image_id": ids(k + 1), "iscrowd": 0}
            box = shape(x1, y1, x2, y2) if shape else {"bbox": [x1, y1, x2 - x1, y2 - y1]}
            content["annotations"].append({**about, "category_id": ids(CLASSES.index(label) + 1), **box})
    return content


def coco(root, way, **options):
    names = [(k, way.picture(root / "images", k)) for k in range(6)]
    way.text(root / "result.json", json.dumps(coco_entries(way, names, **options), ensure_ascii=False))


def coco_with_ids_as_text(root, way):
    coco(root, way, ids=str)


def coco_with_ids_as_floats(root, way):
    coco(root, way, ids=float)


def mask_of(x1, y1, x2, y2) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def runs(x1, y1, x2, y2):
    flat = mask_of(x1, y1, x2, y2).ravel("F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}}


def packed(x1, y1, x2, y2):
    mask = pytest.importorskip("pycocotools.mask")
    encoded = mask.encode(np.asfortranarray(mask_of(x1, y1, x2, y2)))
    return {"segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()}, "bbox": []}


def polygon(x1, y1, x2, y2):
    return {"segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]], "bbox": None}


def keypoints(x1, y1, x2, y2):
    return {"keypoints": [x1, y1, 2, x2, y2, 1, 0, 0, 0], "num_keypoints": 2}


def coco_runs(root, way):
    coco(root, way, shape=runs)


def coco_packed_runs(root, way):
    coco(root, way, shape=packed)


def coco_polygons(root, way):
    coco(root, way, shape=polygon)


def coco_keypoints(root, way):
    coco(root, way, shape=keypoints)


def livecell(root, way):
    names = [(k, way.picture(root / "images" / "livecell_train_images", k)) for k in range(6)]
    content = coco_entries(way, names)
    content["annotations"] = {str(entry["id"]): entry for entry in content["annotations"]}
    way.text(root / "livecell_all.json", json.dumps(content))


def coco_and_images_by_split(root, way):
    names = [(k, way.picture(root / split, k)) for k, split in enumerate(SPLITS)]
    way.text(root / "labels.json", json.dumps(coco_entries(way, names)))
    return True


def cvat_coco(root, way, subsets=("default",)):
    places = {subset: [] for subset in subsets}
    for k, split in enumerate(SPLITS):
        subset = split if split in subsets else subsets[0]
        places[subset].append((k, way.picture(root / "images" / subset, k)))
    for subset, names in places.items():
        file = root / "annotations" / f"instances_{subset}.json"
        way.text(file, json.dumps(coco_entries(way, names)))
    return len(subsets) > 1


def cvat_coco_of_odd_subsets(root, way):
    cvat_coco(root, way, ("Slides-2024", "val"))
    return None


def cvat_coco_by_split(root, way):
    return cvat_coco(root, way, ("train", "val", "test"))


def roboflow_coco(root, way):
    for split in ("train", "val", "test"):
        names = [(k, way.picture(root / split, k)) for k in range(6) if SPLITS[k] == split]
        content = json.dumps(coco_entries(way, names, root_category=True))
        way.text(root / split / "_annotations.coco.json", content)
    return True


def table(root, way, columns, delimiter=",", header=True, files=("labels",)):
    for number, file in enumerate(files):
        stream = io.StringIO()
        writer = csv.writer(stream, delimiter=delimiter)
        if header:
            writer.writerow(columns)
        for k in (k for k in range(6) if len(files) == 1 or SPLITS[k] == files[number]):
            name = way.stated(way.picture(root / "images", k))
            for label, (x1, y1, x2, y2) in OBJECTS[k]:
                values = [name, label, x1, y1, x2, y2, WIDTH, HEIGHT]
                cells = dict(zip(_CELLS, values, strict=True))
                writer.writerow([cells[_MEANING.get(column, column)] for column in columns])
        way.text(root / f"{file}.csv", stream.getvalue())
    return len(files) > 1


_CELLS = ["image", "label", "xmin", "ymin", "xmax", "ymax", "width", "height"]
_MEANING = {"image_names": "image", "cell_type": "label", "filename": "image", "class": "label"}
_MEANING |= {"path": "image", "x1": "xmin", "y1": "ymin", "x2": "xmax", "y2": "ymax"}


def csv_plain(root, way):
    return table(root, way, ["image", "xmin", "ymin", "xmax", "ymax", "label"])


def csv_semicolons(root, way):
    return table(root, way, ["image", "label", "xmin", "ymin", "xmax", "ymax"], ";")


def csv_bccd(root, way):
    return table(root, way, ["image_names", "cell_type", "xmin", "xmax", "ymin", "ymax"])


def csv_by_split(root, way):
    columns = ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]
    return table(root, way, columns, files=("train", "val", "test"))


def csv_keras_retinanet(root, way):
    return table(root, way, ["path", "x1", "y1", "x2", "y2", "class"], header=False)


LAYOUTS = [
    voc, voc_ybat, voc_lists, voc_lists_without_main, voc_lists_with_endings, voc_lists_with_paths,
    voc_lists_of_classes, xml_flat_and_images_by_split, xml_by_split_and_images_flat, beside,
    coco_and_images_by_split, darknet_beside_empty_annotations,
    xml_in_a_folder_of_its_own, xml_of_other_names, voc_in_folders_of_splits, ultralytics, roboflow_yolo,
    cvat_yolo, cvat_yolo_without_lists, darknet, darknet_without_lists, labelimg, labelimg_all_in_one,
    labelimg_images_above, labelimg_by_split, make_sense, coco, coco_with_ids_as_text,
    coco_with_ids_as_floats, coco_runs, coco_packed_runs, coco_polygons, coco_keypoints, livecell, cvat_coco,
    cvat_coco_of_odd_subsets, cvat_coco_by_split, roboflow_coco, csv_plain, csv_semicolons, csv_bccd,
    csv_by_split, csv_keras_retinanet,
]  # fmt: skip


def check(root: Path, with_splits: bool) -> None:
    """The folder is read, nothing is odd about it, and every image has its own objects."""
    folder = layouts.read_folder(root)
    assert folder is not None
    findings = [*folder.findings, *(finding for image in folder.images for finding in image.findings)]
    assert [str(finding) for finding in findings if finding.kind != "unused_class"] == []
    numbers = {picture(k, ".png"): k for k in range(6)}
    read = {}
    for image in folder.images:
        k = numbers[image.path.read_bytes()]
        boxes = [tuple(round(value, 1) for value in o.box) for o in image.objects]
        read[k] = sorted(zip([o.name for o in image.objects], boxes, strict=True))
        if with_splits:
            assert [split for split in set(SPLITS) if image.image_id in folder.splits[split]] == [SPLITS[k]]
    assert read == {k: sorted(OBJECTS[k]) for k in range(6)}
    assert len(folder.images) == 6 and folder.class_names == tuple(CLASSES)
    listed = [image_id for split in ("train", "val", "test") for image_id in folder.splits[split]]
    assert sorted(listed) == sorted(folder.by_id) and len(folder.by_id) == 6
    assert bool(folder.notice) != with_splits


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_the_same_labels_are_read(tmp_path, layout, way):
    way = replace(WAYS[way], written=[])
    with_splits = layout(tmp_path / "mine", way)
    way.finish()
    check(tmp_path / "mine", bool(with_splits))


# --- what is odd in such a folder -------------------------------------------------------------------------

PLAIN = WAYS["plain"]


def write(tmp_path, layout, **options) -> Path:
    layout(tmp_path / "mine", replace(PLAIN, written=[], **options))
    return tmp_path / "mine"


def read(root: Path) -> dict[str, list[tuple]]:
    """(class, box) of the objects of each image, by its file's path below the root."""
    folder = layouts.read_folder(root)
    return {
        image.path.relative_to(root).as_posix(): [(o.name, tuple(map(round, o.box))) for o in image.objects]
        for image in folder.images
    }


def findings(root: Path) -> list[tuple[str, str, str]]:
    folder = layouts.read_folder(root)
    every = [*folder.findings, *(finding for image in folder.images for finding in image.findings)]
    return [(f.kind, f.severity, str(f)) for f in every if f.kind != "unused_class"]


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("layout", "file"),
    [
        (labelimg, "labels/classes.txt"),
        (darknet, "data/train.txt"),
        (ultralytics, "data.yaml"),
        (cvat_coco, "annotations/instances_default.json"),
        (csv_plain, "labels.csv"),
        (voc_lists, "ImageSets/Main/train.txt"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.parametrize("content", ["Lymphozyt groß\n".encode("cp1252"), "RBC\n".encode("utf-16-le")])
def test_other_encodings_are_refused_by_name(tmp_path, layout, file, content):
    root = write(tmp_path, layout)
    (root / file).write_bytes(content)
    with pytest.raises(DataError, match=rf"{Path(file).name} is not .*UTF-8 text.*Save it as UTF-8"):
        open_folder(root).split_ids("train")


def test_labels_go_to_the_image_that_the_annotation_names(tmp_path):
    for layout in (voc, beside):
        root = write(tmp_path / layout.__name__, layout)
        place = root if layout is beside else root / "JPEGImages"
        labels = root if layout is beside else root / "Annotations"
        for suffix in (".bmp", ".jpg", ".tif"):  # before and behind it in the alphabet
            Image.new("RGB", (WIDTH, HEIGHT)).save((place / PLAIN.name(0)).with_suffix(suffix))
        (kept,) = [name for name in read(root) if Path(name).stem == PLAIN.name(0)]
        assert kept.endswith(".png") and read(root)[kept] == OBJECTS[0]
        ((kind, severity, said),) = findings(root)
        assert (kind, severity) == ("same_name", "warning") and f"{PLAIN.name(0)}.bmp" in said
        name = f"{PLAIN.name(0)}.tif"
        (labels / f"{PLAIN.name(0)}.xml").write_text(xml(PLAIN, name, OBJECTS[0]), encoding="utf-8")
        assert any(one.endswith(name) and boxes == OBJECTS[0] for one, boxes in read(root).items())


def test_an_annotation_does_not_take_the_image_of_another(tmp_path):
    """Some tools copy the name of the first image into all annotations."""
    for layout in (voc, beside):
        root = write(tmp_path / layout.__name__, layout)
        (missing,) = root.rglob(f"{PLAIN.name(1)}.png")
        missing.unlink()
        (file,) = root.rglob(f"{PLAIN.name(1)}.xml")
        file.write_text(xml(PLAIN, f"{PLAIN.name(0)}.png", OBJECTS[1]), encoding="utf-8")
        assert [boxes for name, boxes in read(root).items() if PLAIN.name(0) in name] == [OBJECTS[0]]
        assert [kind for kind, *_ in findings(root)] == ["annotation_without_image"]


def test_annotations_in_sub_folders_alone(tmp_path):
    for change in (lambda name: f"task 1/{name}", str.upper):
        root = write(tmp_path / change("x"), voc_lists)
        for k in range(6):
            file = root / "Annotations" / f"{change(PLAIN.name(k))}.xml"
            file.parent.mkdir(exist_ok=True)
            (root / "Annotations" / f"{PLAIN.name(k)}.xml").rename(file)
            file.write_text(xml(PLAIN, "", OBJECTS[k]))
        folder = layouts.read_folder(root)
        assert list(read(root).values()) == OBJECTS and findings(root) == []
        assert [len(folder.splits[split]) for split in ("train", "val", "test")] == [4, 1, 1]


@pytest.mark.parametrize(
    "layout", [voc, beside, xml_in_a_folder_of_its_own, labelimg, darknet, coco, csv_plain]
)
def test_names_in_other_letters(tmp_path, layout):
    """A folder that went through macOS (accents apart) and Windows (any case)."""
    root = write(tmp_path, layout)
    for file in root.rglob("*.png"):
        file.rename(file.with_name(unicodedata.normalize("NFD", file.name.replace("Zelle", "ZELLE"))))
    check(root, layout is darknet)


def listed_twice(spelled):
    def change(content):
        first, second = content["images"][0], {**content["images"][0], "id": 77}
        content["images"].append({**second, "file_name": spelled.format(first["file_name"])})
        content["annotations"][1]["image_id"] = 77
        content["annotations"].append({**content["annotations"][0], "image_id": 77, "id": 99})  # once more

    return change


@pytest.mark.parametrize("spelled", ["{}", "./{}", "images/{}", "C:\\slides\\images\\{}"])
def test_an_image_that_coco_lists_twice_is_one(tmp_path, spelled):
    root = write(tmp_path, coco)
    edit(root / "result.json", listed_twice(spelled))
    found = read(root)
    assert len(found) == 6 and sorted(found[f"images/{PLAIN.name(0)}.png"]) == sorted(OBJECTS[0])
    ((kind, severity, said),) = findings(root)
    assert (kind, severity) == ("listed_twice", "warning") and "joined" in said


def test_an_image_of_two_splits_is_in_one(tmp_path):
    root = write(tmp_path, coco)
    (root / "result.json").rename(root / "train.json")
    (root / "test.json").write_text(json.dumps(coco_entries(PLAIN, [(5, f"{PLAIN.name(5)}.png")])))
    ((kind, severity, said),) = findings(root)
    assert (kind, severity) == ("listed_twice", "warning") and "now for train, but it stays in test" in said
    splits = layouts.read_folder(root).splits
    assert splits["test"] == [PLAIN.name(5)] and PLAIN.name(5) not in splits["trainval"]
    assert list(read(root).values()) == OBJECTS  # what is written twice counts once


def test_a_missing_image_does_not_take_another_of_its_base_name(tmp_path):
    root = write(tmp_path, coco, folders=True)
    (root / "images" / "slide 1" / "frame_000000.png").unlink()
    found = read(root)
    assert found["images/slide 0/frame_000000.png"] == OBJECTS[0] and len(found) == 6
    assert [kind for kind, *_ in findings(root)] == ["missing_image"]


def test_an_image_of_another_split_is_not_taken(tmp_path):
    """Both have frames of one name, and that of val is missing."""
    for layout, label in ((cvat_coco_by_split, "annotations/*.json"), (xml_flat_and_images_by_split, None)):
        way = replace(PLAIN, written=[])
        way.name = lambda k: f"frame_{SPLITS[:k].count(SPLITS[k])}"
        root = tmp_path / layout.__name__
        if label is None:
            for k, split in enumerate(SPLITS):
                name = way.picture(root / "images" / split, k)
                way.text(root / "labels" / split / f"{way.name(k)}.xml", xml(way, name, OBJECTS[k]))
        else:
            layout(root, way)
        check(root, True)
        (root / "images" / "val" / "frame_0.png").unlink()
        found = read(root)
        assert (
            found["images/train/frame_0.png"] == OBJECTS[0] and found["images/test/frame_0.png"] == OBJECTS[5]
        )
        assert [kind for kind, *_ in findings(root)] in (["missing_image"], ["annotation_without_image"])


def test_same_names_in_each_subset(tmp_path):
    root = tmp_path / "mine"
    for k, subset in enumerate(("train", "val", "slides")):
        place = root / "images" / subset
        place.mkdir(parents=True)
        (place / "frame_000000.PNG").write_bytes(picture(k, ".png"))
        file = root / "annotations" / f"instances_{subset}.json"
        PLAIN.text(file, json.dumps(coco_entries(PLAIN, [(k, "frame_000000.PNG")])))
    assert list(read(root).values()) == [OBJECTS[2], OBJECTS[0], OBJECTS[1]]
    (root / "annotations" / "instances_slides.json").rename(root / "annotations" / "labels.json")
    (finding,) = findings(root)
    assert finding[0] == "missing_image"  # nobody can say which of the three is meant


@pytest.mark.parametrize("content", ["RBC\n\nWBC\n", "\nRBC\nWBC", "RBC\n  \t\nWBC\n\n"])
@pytest.mark.parametrize(("layout", "file"), [(labelimg_all_in_one, "classes.txt"), (cvat_yolo, "obj.names")])
def test_an_empty_line_among_the_class_names(tmp_path, layout, file, content):
    root = write(tmp_path, layout)
    (root / file).write_text(content)
    line = content.split("RBC")[0].count("\n") or 2
    with pytest.raises(DataError, match=rf"{file}, line {line} is empty"):
        layouts.read_folder(root)


def test_lists_of_classes_that_differ(tmp_path):
    root = write(tmp_path, labelimg_by_split)
    (root / "labels" / "val" / "classes.txt").write_text("RBC\n")  # as far as LabelImg had come
    check(root, True)
    (root / "labels" / "val" / "classes.txt").write_text("WBC\nRBC\n")
    with pytest.raises(DataError, match=r"classes\.txt and .*classes\.txt name different classes"):
        layouts.read_folder(root)


def fractions(box):
    return tuple(round(value / side, 4) for value, side in zip(box, 2 * (WIDTH, HEIGHT), strict=True))


@pytest.mark.parametrize("layout", [voc, beside, coco, csv_plain], ids=lambda layout: layout.__name__)
def test_fractions_where_pixels_are_meant(tmp_path, monkeypatch, layout):
    of_fractions = [[(name, fractions(box)) for name, box in objects] for objects in OBJECTS]
    monkeypatch.setattr(sys.modules[__name__], "OBJECTS", of_fractions)
    root = write(tmp_path, layout)
    ((kind, severity, said),) = findings(root)
    assert (kind, severity) == ("fractions", "error")
    assert "pixels are expected" in said and "18 boxes of 6 images" in said
    with pytest.raises(DataError, match="pixels are expected"):
        open_folder(root).dataset("train")


def test_small_boxes_are_no_fractions(tmp_path, monkeypatch):
    """Some tools write 0, 0, 1, 1 for an image without objects."""
    corner = [[("RBC", (0, 0, 1, 1))], [("WBC", (5.2, 5, 5.9, 8))], *OBJECTS[2:]]
    monkeypatch.setattr(sys.modules[__name__], "OBJECTS", corner)
    root = write(tmp_path, csv_plain)
    assert findings(root) == []
    (finding,) = audit(open_folder(root)).of_kind("tiny_box")
    assert finding.severity == "warning" and "1 box " in finding.message


@pytest.mark.parametrize("size", [None, 0, "160", 160.0])
def test_a_size_that_is_not_stated_is_no_wrong_one(tmp_path, size):
    root = write(tmp_path, coco)
    edit(root / "result.json", lambda content: [e.update(width=size) for e in content["images"]])
    assert findings(root) == []


def test_a_change_behind_a_linked_folder_is_seen(tmp_path):
    store, root = write(tmp_path, labelimg), tmp_path / "set"
    (store / "labels" / "classes.txt").rename(store / "classes.txt")
    root.mkdir()
    (root / "classes.txt").write_text("RBC\nWBC\n")
    for name in ("images", "labels"):
        (store / name / "inner").mkdir()
        for file in sorted(one for one in (store / name).iterdir() if one.is_file())[:3]:
            file.rename(store / name / "inner" / file.name)
        (tmp_path / f"{name}-inner").symlink_to((store / name / "inner").rename(tmp_path / f"inner-{name}"))
        (store / name / "inner").symlink_to(tmp_path / f"{name}-inner")  # a link to a link
        (store / name / "loop").symlink_to(store)
        (root / name).symlink_to(store / name)
    check(root, False)
    before = open_folder(root).fingerprint
    for file in store.parent.rglob("*.txt"):
        if file.name != "classes.txt":
            file.write_text("".join(f"1{line[1:]}" for line in file.read_text().splitlines(True)))
    after = open_folder(root)
    assert {o.name for image in after.labels.images for o in image.objects} == {"WBC"}
    assert after.fingerprint != before


def test_one_object_with_several_boxes_is_several_objects(tmp_path):
    root = write(tmp_path, voc_ybat)
    file = root / "Annotations" / f"{PLAIN.name(0)}.xml"
    assert [read_objects(file)[k] for k in range(3)] == OBJECTS[0]
    assert [len(node.findall("bndbox")) for node in read_tree(file).findall("object")] == [1, 1, 1]


# --- what is said ----------------------------------------------------------------------------------------


def all_crowd(content):
    for entry in content["annotations"]:
        entry["iscrowd"] = 1


def other_ids(content):
    for entry in content["annotations"]:
        entry["image_id"] += 1000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (all_crowd, r"none of the 18 annotations in .*result\.json is of use: 18 are crowd regions"),
        (other_ids, r"none of the 18 .*: 18 have an image_id that no image has \(the images have 1, 2, 3"),
        (lambda content: content.update(annotations=[]), r"Label some images first: there are 6 without"),
        (lambda content: content["images"].clear(), r"no image is listed"),
    ],
)
def test_why_no_label_is_of_use(tmp_path, change, said):
    root = write(tmp_path, coco)
    edit(root / "result.json", change)
    with pytest.raises(DataError, match=said) as error:
        open_folder(root)
    assert ("Label some" in str(error.value)) == ("Label some" in said)


def test_labels_whose_images_are_gone(tmp_path):
    root = write(tmp_path, voc)
    shutil.rmtree(root / "JPEGImages")
    (root / "JPEGImages").mkdir()
    with pytest.raises(DataError, match=r"no image .*can be used: .*\.xml has no image.*with 5 more"):
        open_folder(root).split_ids("all")
    (root / "JPEGImages").rmdir()
    with pytest.raises(DataError, match=r"mine is not a dataset: it holds 6 \.xml files and no image"):
        open_folder(root)


def test_a_folder_that_holds_the_data_further_below(tmp_path):
    for layout in (voc_lists, ultralytics, cvat_coco, csv_plain):
        root = write(tmp_path / layout.__name__ / "data", layout)
        shutil.copytree(root, tmp_path / "several" / layout.__name__)
        for given in (root.parent, root.parent.parent):
            with pytest.raises(DataError, match="is not a dataset: the data are further below") as error:
                open_folder(given)
            assert str(error.value).endswith(f"Give {root}.")
        for part in ("JPEGImages", "Annotations", "images", "annotations"):
            if layout not in (cvat_coco, csv_plain) and (root / part).is_dir():
                with pytest.raises(DataError, match=rf"it is a part of one. Give {root}\."):
                    open_folder(root / part)
    with pytest.raises(DataError, match=r"or several of them with commas between: .*csv_plain.*voc_lists"):
        open_folder(tmp_path / "several")


@pytest.mark.parametrize(
    ("layout", "file"),
    [
        (ultralytics, "data.yaml"),
        (cvat_coco, "annotations/instances_default.json"),
        (coco, "result.json"),
        (csv_plain, "labels.csv"),
        (cvat_yolo, "obj.data"),
        (cvat_yolo, "obj.names"),
        (labelimg, "labels/classes.txt"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_file_that_stands_for_its_folder(tmp_path, layout, file):
    root = write(tmp_path, layout)
    source = open_folder(root / file)
    assert source.folder == root and source.fingerprint == open_folder(root).fingerprint
    (root / file).rename(tmp_path / "elsewhere")
    (root / file).symlink_to(tmp_path / "elsewhere")
    assert open_folder(root / file).folder == root


@pytest.mark.parametrize(
    ("layout", "file", "said"),
    [
        (cvat_coco_by_split, "annotations/instances_train.json", r"one of several files .*give .*mine\."),
        (coco, "images/Zelle ä 0.png", r"is a file: give the folder"),
        (voc, "Annotations/Zelle ä 0.xml", r"is a file: give the folder"),
        (coco, "cells.zip", r"cells\.zip is an archive. Unpack it, and give the folder"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_file_that_does_not(tmp_path, layout, file, said):
    root = write(tmp_path, layout)
    (root / "cells.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=said):
        open_folder(root / file)


def test_a_folder_that_is_not_there_is_named_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"cells is not a dataset: there is no {tmp_path}/cells and no"):
        open_folder("cells")
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "a.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"cells is not a dataset: it holds a\.zip: unpack it"):
        open_folder("cells")
    root = write(tmp_path, labelimg)
    (root / "labels" / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"6 images and 6 \.txt files, and no list of class names"):
        open_folder(root)


def test_files_that_are_no_labels_of_a_known_kind(tmp_path):
    root = write(tmp_path, coco)
    (root / "result.json").write_text('{"shapes": []}')
    with pytest.raises(DataError, match=r"it holds 6 images and 1 \.json file, in no layout that is known"):
        open_folder(root)
    (root / "annotations.xml").write_text("<annotations><image/></annotations>")  # CVAT's own
    with pytest.raises(DataError, match=r"1 \.xml file, .*annotations\.xml is not a Pascal VOC annotation"):
        open_folder(root)
    (root / "annotations.xml").write_text(xml(PLAIN, "other.png", OBJECTS[0]))
    with pytest.raises(DataError, match=r"1 \.xml file, .*which belong to none of the images"):
        open_folder(root)


def test_the_part_of_a_coco_folder_with_the_labels_alone(tmp_path):
    root = write(tmp_path, cvat_coco)
    with pytest.raises(DataError, match=r"no label in .*annotations is of use.*no image .*annotations"):
        open_folder(root / "annotations")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 0,156 0,266 0,175 0,233", "'0 0,156 0,266 0,175 0,233' (decimals are written with a point"),
        ("0,0.156,0.266,0.175,0.233", "'0,0.156,0.266,0.175,0.233' (decimals are written with a point"),
        ("0 25 32 28 28", "expected, not 25 32 28 28 (these look like pixels)"),
        ("0 0.156250 0.266667 0.175000 0.233333 0.9 17", "from 0 to 1 are expected, not 17."),
        ("RBC 0.1 0.1 0.1 0.1", "numbers are expected, not 'RBC 0.1 0.1 0.1 0.1'."),
    ],
)
def test_what_is_said_of_a_line_of_yolo(tmp_path, line, said):
    root = write(tmp_path, labelimg)
    (root / "labels" / f"{PLAIN.name(0)}.txt").write_text(f"{line}\n")
    ((kind, severity, text),) = findings(root)
    assert (kind, severity) == ("damaged_labels", "error")
    assert text.startswith(f"labels/{PLAIN.name(0)}.txt, line 1: ") and said in text


# --- CSV --------------------------------------------------------------------------------------------------


def rows(tmp_path, content: str, name: str = "labels.csv") -> Path:
    for k in range(6):
        PLAIN.picture(tmp_path / "mine", k)
    (tmp_path / "mine" / name).write_text(content)
    return tmp_path / "mine"


HEADER = "image,xmin,ymin,xmax,ymax,label"


def test_lines_of_a_csv_file(tmp_path):
    first, second, third = (PLAIN.name(k) for k in range(3))  # one of them without its ending
    content = f"{HEADER}\n{first}.png,1,2,30,40,RBC\n{second}.png,,,,,\n\n{third},5,5,9,9,WBC\n"
    root = rows(tmp_path, content)
    assert list(read(root).values()) == [[("RBC", (1, 2, 30, 40))], [], [("WBC", (5, 5, 9, 9))]]
    assert findings(root) == []
    (root / "labels.csv").write_text(content.replace(",", ";").replace(";30;", ";30,5;"))
    assert layouts.read_folder(root).images[0].objects[0].box == (1, 2, 30.5, 40)


@pytest.mark.parametrize("line", ["1,2,x,40,RBC", "1,2,30,,RBC", "1,2,30,40,", "1,2,nan,40,RBC", "1,2,30"])
def test_a_damaged_line_of_a_csv_file(tmp_path, line):
    root = rows(tmp_path, f"{HEADER}\n{PLAIN.name(1)}.png,5,5,9,9,WBC\n{PLAIN.name(0)}.png,{line}\n")
    ((kind, severity, said),) = findings(root)
    assert (kind, severity) == ("damaged_labels", "error") and "labels.csv, line 3: a box of four" in said
    with pytest.raises(DataError, match="line 3"):
        open_folder(root).dataset("all")


def test_a_csv_file_that_names_no_image(tmp_path):
    with pytest.raises(DataError, match=r"labels\.csv, line 2 names no image"):
        layouts.read_folder(rows(tmp_path, f"{HEADER}\n,1,2,30,40,RBC\n"))


def test_detections_are_not_taken_for_labels_without_a_word(tmp_path):
    """The cells.csv that `detect` writes."""
    header = "image,class,score,xmin,ymin,xmax,ymax,width,height"
    root = rows(tmp_path, f"{header}\n{PLAIN.name(0)}.png,RBC,0.93,1,2,30,40,29,38\n", "cells.csv")
    ((kind, severity, said),) = findings(root)
    assert (kind, severity) == ("scored_label", "warning") and "as predictions have" in said


def test_detections_beside_labels_are_not_used(tmp_path):
    root = write(tmp_path, csv_plain)
    (root / "cells.csv").write_text(
        f"image,class,score,xmin,ymin,xmax,ymax\n{PLAIN.name(0)}.png,RBC,0.9,1,1,9,9"
    )
    assert [(kind, severity) for kind, severity, _ in findings(root)] == [("scored_label", "info")]
    assert list(read(root).values()) == OBJECTS


@pytest.mark.parametrize(
    "content", ["", "\n", "image,WBC,RBC\na.png,1,2\n", "a,b,c,d,e,f\n", "a.png,1,2,3,x,RBC\n", "x\n" * 9]
)
def test_other_tables_are_no_labels(tmp_path, content):
    assert layouts.read_folder(rows(tmp_path, content, "images.csv")) is None


def test_a_list_of_classes_beside_labels_of_another_kind(tmp_path):
    """LabelImg keeps its classes.txt also where it writes XML."""
    for layout in (beside, xml_in_a_folder_of_its_own, coco, livecell, csv_plain):
        root = write(tmp_path / layout.__name__, layout)
        (root / "classes.txt").write_text("WBC\nRBC\n")
        check(root, False)


# --- damage ----------------------------------------------------------------------------------------------

ODD = [
    b"",
    b"-1",
    b"1e999",
    b"nan",
    b"null",
    b"[]",
    b"{}",
    b'""',
    b"1" * 30,
    b"\xff",
    b"\0",
    b"../../x",
    b"<a>",
    b"\n",
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_damaged_files_are_found_or_refused(tmp_path, layout):
    """Any other error than a DataError is a fault of ours."""
    root, rng = write(tmp_path, layout), random.Random(layout.__name__)
    files = sorted(file for file in root.rglob("*") if file.is_file() and file.suffix != ".png")
    for _ in range(4):
        file = rng.choice(files)
        content = file.read_bytes()
        start = rng.randrange(len(content))
        end = min(len(content), start + rng.choice([0, 1, 3, 9, 99999]))
        file.write_bytes(content[:start] + rng.choice(ODD) + content[end:])
        with contextlib.suppress(DataError):
            open_folder(root).dataset("all")
        file.write_bytes(content)
