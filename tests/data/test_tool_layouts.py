"""One small data set as many tools write it, and as many ways as files come: the same labels are read.

Six images with two red cells and a white one each, at places of their own, so that no mix-up goes unseen.
"""

import codecs
import csv
import functools
import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from ssdlib.data.formats import layouts

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
    voc, voc_ybat, voc_lists, voc_lists_with_endings, voc_lists_with_paths, voc_lists_of_classes, beside,
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
