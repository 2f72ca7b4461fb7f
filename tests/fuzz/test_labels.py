"""A folder of labels, whatever it holds, opens with findings or is refused in a sentence."""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssdlib.common.errors import SsdError
from ssdlib.data.audit import audit
from ssdlib.data.images import encode_image
from ssdlib.data.source import open_folder
from tests.fuzz.cases import (
    NAMES,
    NUMBERS,
    attempt,
    damaged,
    fuzzed,
    json_bytes,
    misspelled,
    nothing_changed,
    reshaped,
)

WIDTH, HEIGHT = 64, 48
PICTURES = [encode_image(np.full((HEIGHT, WIDTH, 3), 60 * k, np.uint8), ".png") for k in range(4)]
STEMS = ("a", "b", "c", "d")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Without the notices of each folder."""
    monkeypatch.setattr("ssdlib.data.source._say_once", lambda message: None)


@contextlib.contextmanager
def new_folder(files):
    """A folder `data` of these files, bytes by path, in an empty one of its own."""
    with tempfile.TemporaryDirectory() as place:
        for name, content in files.items():
            file = Path(place, "data", name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        yield Path(place, "data")


def check(root):
    """The data source of a folder, or None where it is refused; what is promised of both."""
    with nothing_changed(root.parent):
        source = attempt(open_folder, root)
        if isinstance(source, SsdError):
            return None
        found = attempt(audit, source)
    assert not isinstance(found, SsdError), found  # what is wrong is a finding
    json.dumps(found.to_dict(), allow_nan=False)
    assert len(found.to_text()) < 10_000_000
    dataset = attempt(source.dataset, "all")
    for sample in () if isinstance(dataset, SsdError) else dataset.samples:
        assert np.isfinite(sample.boxes).all()
        assert (sample.boxes >= 0).all()
        assert (sample.boxes <= [sample.width, sample.height] * 2).all()
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
    assert isinstance(dataset, SsdError) or found.errors or attempt(source.dataset, "train").samples
    return source


def pictures(place):
    return {f"{place}{stem}.png": content for stem, content in zip(STEMS, PICTURES, strict=True)}


# --- Pascal VOC ------------------------------------------------------------------------------------------

XML = """<?xml version="1.0" encoding="utf-8"?>
<annotation>
  <folder>JPEGImages</folder><filename>a.png</filename><path>C:\\x\\a.png</path>
  <size><width>64</width><height>48</height><depth>3</depth></size>
  <object><name>RBC</name><pose>Unspecified</pose><bndbox>
    <xmin>3</xmin><ymin>4</ymin><xmax>20.5</xmax><ymax>30</ymax></bndbox></object>
  <object><name>WBC</name><bndbox><xmin>30</xmin><ymin>4</ymin><xmax>60</xmax><ymax>40</ymax></bndbox>
    <bndbox><xmin>1</xmin><ymin>40</ymin><xmax>9</xmax><ymax>47</ymax></bndbox></object>
</annotation>
"""
TAGS = (
    "annotation", "object", "name", "bndbox", "xmin", "ymin", "xmax", "ymax", "size", "width", "height",
    "filename", "part", "polygon",
)  # fmt: skip
TEXTS = (
    *NAMES,
    *map(str, NUMBERS),
    "RBC",
    "WBC",
    "a.png",
    "3",
    "40",
    "&#0;",
    "&#7;",
    "&e;",
    "<!-- -->",
    "<?p?>",
)


@st.composite
def elements(draw, depth=0):
    """An XML element as text, of tags in places where they do not belong, too."""
    tag = draw(st.sampled_from(TAGS if depth else (*TAGS[:1] * 9, *TAGS)))
    prefix = draw(st.sampled_from([""] * 9 + ["n:"]))
    space = ' xmlns:n="urn:n"' if prefix and draw(st.booleans()) else ""
    attributes = draw(st.sampled_from([""] * 9 + [' xmlns="urn:n"', " a='1' a='2'", f' a="{"x" * 9000}"']))
    many = draw(st.sampled_from([1] * 20 + [300, 25_000]))
    inner = [draw(elements(depth + 1)) for _ in range(draw(st.integers(0, 4)))] if depth < 3 else []
    text = draw(st.sampled_from(TEXTS)) if not inner or draw(st.integers(0, 5)) == 0 else ""
    one = f"<{prefix}{tag}{space}{attributes}>{text}{''.join(inner)}</{prefix}{tag}>"
    return one * (min(many, 1 + 3_000_000 // len(one)) if depth == 1 else 1)


HEADS = (
    *[""] * 8, '<?xml version="1.0" encoding="utf-8"?>', '<?xml version="1.0" encoding="nonsense"?>',
    '<?xml version="9" standalone="x"?>', '<!DOCTYPE annotation [<!ENTITY e "x">]>',
    '<!DOCTYPE annotation SYSTEM "file:///etc/passwd">', "<" * 5000, "<a>" * 5000,
)  # fmt: skip


@st.composite
def annotations(draw):
    """The bytes of an XML file that is more or less an annotation."""
    match draw(st.sampled_from(["text", "bytes", "drawn"])):
        case "text":
            return draw(misspelled(XML))
        case "bytes":
            return draw(damaged(XML.encode()))
    text = (draw(st.sampled_from(HEADS)) + draw(elements()))[:10_000_000]
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "utf-16-le", "utf-32", "cp037"]))
    return text.encode(encoding, "replace")


@fuzzed(50)
@given(st.data())
def test_pascal_voc(data):
    beside = data.draw(st.booleans())
    places = ("", "") if beside else ("Annotations/", "JPEGImages/")
    files = pictures(places[1]) | {
        f"{places[0]}{stem}.xml": XML.replace("a.png", f"{stem}.png").encode() for stem in STEMS
    }
    for stem in data.draw(st.lists(st.sampled_from(STEMS), min_size=1, max_size=2)):
        files[f"{places[0]}{stem}.xml"] = data.draw(annotations())
    if data.draw(st.booleans()):
        text = "a\nb\nc 1\nsub/d.png\n"
        split = data.draw(st.sampled_from(["train", "val", "test", "trainval", "RBC_train", "other"]))
        files["ImageSets/Main/train.txt"] = b"a\nb\n"
        files[f"ImageSets/Main/{split}.txt"] = data.draw(misspelled(text) | damaged(text.encode()))
    with new_folder(files) as root:
        check(root)


# --- COCO ------------------------------------------------------------------------------------------------

RUNS = [9, 5, 3058]
COCO = {
    "info": {"description": "x"},
    "images": [
        {"id": k, "file_name": f"{stem}.png", "width": 64, "height": 48} for k, stem in enumerate(STEMS)
    ],
    "categories": [{"id": 1, "name": "RBC"}, {"id": 2, "name": "WBC"}],
    "annotations": [
        {"id": 1, "image_id": 0, "category_id": 1, "bbox": [3, 4, 20.5, 30], "iscrowd": 0, "area": 1},
        {"id": 2, "image_id": 1, "category_id": 2, "segmentation": [[1, 1, 9, 1, 9, 9], [3, 3, 5, 5, 5, 9]]},
        {"id": 3, "image_id": 2, "category_id": 1, "segmentation": {"size": [48, 64], "counts": RUNS}},
        {"id": 4, "image_id": 3, "category_id": 2, "segmentation": {"size": [48, 64], "counts": "T35fl2"}},
        {"id": 5, "image_id": 3, "category_id": 2, "keypoints": [1, 1, 2, 20, 30, 1, 0, 0, 0]},
        {"id": 6, "image_id": "3", "category_id": 2.0, "bbox": ["1", "2", "3", "4"], "segmentation": []},
    ],
}  # fmt: skip
JSON_PLACES = (
    "annotations/instances_train.json", "annotations/instances_val2017.json", "_annotations.coco.json",
    "valid/_annotations.coco.json", "annotations/captions_train.json", "result.json", "train/labels.json",
)  # fmt: skip


@st.composite
def outlines(draw):
    """A segmentation: polygons, or runs as numbers or in COCO's text."""
    number = st.sampled_from([*NUMBERS, 48, 64, 3, "x", None])
    text = st.text("0123456789OPQo~^`\x00é", max_size=30) | st.sampled_from(["o" * 300_000, "n" * 300_000])
    size = st.lists(number, max_size=3)
    runs = st.fixed_dictionaries({}, optional={"size": size, "counts": text | st.lists(number, max_size=6)})
    return draw(runs | st.lists(st.lists(number, max_size=8), max_size=3) | st.lists(number, max_size=8))


@fuzzed(50)
@given(st.data())
def test_coco(data):
    files = pictures(data.draw(st.sampled_from(["", "images/", "train/"])))
    for place in data.draw(st.lists(st.sampled_from(JSON_PLACES), min_size=1, max_size=2, unique=True)):
        match data.draw(st.sampled_from(["shape", "shape", "shape", "outline", "text", "sound"])):
            case "shape":
                content = json_bytes(data.draw(reshaped(COCO)))
            case "outline":
                odd = [
                    {**one, "bbox": None, "segmentation": data.draw(outlines())}
                    for one in COCO["annotations"][:3]
                ]
                content = json_bytes({**COCO, "annotations": odd})
            case "text":
                content = data.draw(damaged(json_bytes(COCO)) | misspelled(json.dumps(COCO)))
            case _:
                content = json_bytes(COCO)
        files[place] = content
    with new_folder(files) as root:
        check(root)


# --- YOLO ------------------------------------------------------------------------------------------------

LINES = "0 0.5 0.5 0.25 0.5\n1 0.2 0.2 0.1 0.1 0.9\n0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2\n"
YAML = "path: .\ntrain: images/train\nval: images/val\nnc: 2\nnames: [RBC, WBC]\n"
SCALARS = (
    "RBC", "WBC", "images", "images/train", "train.txt", "../images/val", "/dev/zero", "pipe", ".", "..", "",
    "~", "!!int abc", "!!float abc", "!!bool abc", "!!python/object:os.system x", "!!binary =", "!!null x",
    "!!set {a, b}", "!!omap [a: 1]", "!x y", "2001-02-30", "2001-12-14t21:59:43.10-25:99", "0o9", "1:99:99",
    "*a", "&a x", "&a [*a]", "<<", "{<<: *a}", "{<<: [*a, *a]}", "? [a]\n", '"\\ud800"', '"\\0"', "'\\0'",
    "|\n  x", "[[[[", "9" * 5000, "x" * 5000, "[" * 3000 + "]" * 3000, "{a: " * 300 + "}" * 300, "- " * 300,
    "%TAG ! x", "--- ", "...", "\t", "1e999", ".nan", "true", "=",
)  # fmt: skip
KEYS = (
    "path",
    "train",
    "val",
    "test",
    "names",
    "nc",
    "download",
    "<<",
    "0",
    "date",
    "&a names",
    "!!int train",
)


@st.composite
def yaml_texts(draw):
    """A data.yaml of drawn keys and values, in flow or block style."""
    value = st.sampled_from(SCALARS) | st.lists(st.sampled_from(SCALARS), max_size=4).map(
        lambda values: f"[{', '.join(values)}]"
    )
    numbered = st.dictionaries(
        st.sampled_from(["0", "1", "2", "a", "~"]), st.sampled_from(SCALARS), max_size=3
    )
    value |= numbered.map(lambda one: "".join(f"\n  {key}: {inner}" for key, inner in one.items()))
    lines = [f"{draw(st.sampled_from(KEYS))}: {draw(value)}\n" for _ in range(draw(st.integers(1, 5)))]
    if draw(st.booleans()):
        lines += [line + "\n" for line in YAML.splitlines()[1 if draw(st.booleans()) else 4 :]]
    if draw(st.integers(0, 5)) == 0:
        lines.insert(0, "".join(f"k{n}: &k{n} [*k{n - 1}, *k{n - 1}]\n" for n in range(1, 30)))
    return "".join(draw(st.permutations(lines))).encode("utf-8", "replace")


@fuzzed(50)
@given(st.data())
def test_yolo(data):
    files = pictures("images/train/") | pictures("images/val/")
    files |= {f"labels/{part}/{stem}.txt": LINES.encode() for part in ("train", "val") for stem in STEMS}
    kind = data.draw(st.sampled_from(["yaml", "yaml", "yaml text", "labels", "labels", "lists"]))
    files["data.yaml"] = YAML.encode()
    if kind == "yaml":
        files["data.yaml"] = data.draw(yaml_texts())
    elif kind == "yaml text":
        files["data.yaml"] = data.draw(misspelled(YAML) | damaged(YAML.encode()))
    elif kind == "labels":
        for stem in data.draw(st.lists(st.sampled_from(STEMS), min_size=1, max_size=3)):
            files[f"labels/train/{stem}.txt"] = data.draw(misspelled(LINES, 8) | damaged(LINES.encode()))
    else:
        text = "data/images/train/a.png\n./images/train/b.png\nimages/val/c.png\n"
        settings = "classes = 2\ntrain = data/train.txt\nvalid = val.txt\nnames = data/obj.names\n"
        files.pop("data.yaml")
        files |= {
            "data/train.txt": text.encode(),
            "data/obj.data": settings.encode(),
            "data/obj.names": b"RBC\nWBC\n",
        }
        odd = data.draw(st.sampled_from(["data/train.txt", "data/obj.data", "data/obj.names"]))
        files[odd] = data.draw(misspelled(files[odd].decode()) | damaged(files[odd]))
        if data.draw(st.booleans()):
            files[data.draw(st.sampled_from(["classes.txt", "labels/labels.txt", "train.txt"]))] = data.draw(
                misspelled("RBC\nWBC\nimages/a.png\n")
            )
    with new_folder(files) as root:
        os.mkfifo(root / "pipe")
        check(root)


# --- CSV -------------------------------------------------------------------------------------------------

TABLE = (
    "image,xmin,ymin,xmax,ymax,label,score\na.png,3,4,20.5,30,RBC,\nb.png,30,4,60,40,WBC,\n"
    "c.png,,,,,,\nd.png,1,1,9,9,RBC,\n"
)


@fuzzed(30)
@given(st.data())
def test_tables(data):
    plain = "\n".join(line.rpartition(",")[0] for line in TABLE.splitlines()[1:])
    text = data.draw(st.sampled_from([TABLE, TABLE.replace(",", ";"), TABLE.replace(",", "\t"), plain]))
    files = pictures(data.draw(st.sampled_from(["", "images/"])))
    for name in data.draw(
        st.lists(st.sampled_from(["train.csv", "labels/val.csv", "x.csv"]), min_size=1, unique=True)
    ):
        files[name] = data.draw(misspelled(text, 8) | damaged(text.encode(), 8))
    with new_folder(files) as root:
        check(root)


# --- what lies in a folder -------------------------------------------------------------------------------

LAYOUTS = {
    "voc": {**pictures("JPEGImages/"), **{f"Annotations/{stem}.xml": XML.encode() for stem in STEMS},
            "ImageSets/Main/train.txt": b"a\nb\n", "ImageSets/Main/val.txt": b"c\n"},
    "beside": pictures("train/") | {f"train/{stem}.xml": XML.encode() for stem in STEMS},
    "coco": pictures("images/") | {"annotations/instances_train.json": json_bytes(COCO)},
    "yolo": pictures("images/train/") | {f"labels/train/{stem}.txt": LINES.encode() for stem in STEMS}
    | {"data.yaml": b"train: images/train\nnames: [RBC, WBC]\n"},
    "csv": pictures("") | {"train.csv": TABLE.encode()},
}  # fmt: skip
ODD_NAMES = (
    b"b.xml", b"b.png", b"b.txt", b"train.txt", b"data.yaml", b"x.csv", b"x.json", b"obj.data",
    b"caf\xe9.png", b"caf\xe9.xml", b"x" * 251 + b".png", b"x" * 251 + b".xml", b".. ", b" .png", b"\x1b.png",
    b"a\nb.png", b"~.xml", b"?d=a.png", b"%00.png", b"Annotations", b"labels", b"train", b"BCCD",
)  # fmt: skip


def put(root, name, kind):
    """Lay something odd where a file is expected; what is there before goes."""
    place = Path(os.fsdecode(name))
    place = root / place
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif place.exists():
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    match kind:
        case "pipe":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case "itself":
            place.symlink_to(place)
        case "picture":
            place.write_bytes(PICTURES[0])
        case "annotation":
            place.write_bytes(XML.encode())
        case "nothing":
            place.write_bytes(b"")
        case target:
            place.symlink_to(target)


KINDS = (
    "pipe", "folder", "itself", "picture", "picture", "annotation", "nothing", "/dev/zero", "/dev/full",
    "/missing", ".", "..",
)  # fmt: skip


@fuzzed(60)
@given(st.data())
def test_what_lies_in_a_folder(data):
    files = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))]
    with new_folder(files) as root:
        places = sorted({file.parent for file in root.rglob("*")} - {root.parent})
        own = [os.fsencode(name) for name in files]
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.sampled_from(places))
            name = os.fsencode(place.relative_to(root)) + b"/" + data.draw(st.sampled_from(ODD_NAMES))
            if data.draw(st.integers(0, 3)) == 0:
                name = data.draw(st.sampled_from(own))
            if (root / os.fsdecode(name)).parent.is_dir():
                put(root, name, data.draw(st.sampled_from(KINDS)))
        check(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_may_not_be_read(layout):
    with new_folder(LAYOUTS[layout]) as root:
        for place in sorted(root.rglob("*")):
            mode = place.stat().st_mode
            place.chmod(0)
            try:
                source = attempt(open_folder, root)
                assert isinstance(source, SsdError) or attempt(audit, source).errors
            finally:
                place.chmod(mode)
