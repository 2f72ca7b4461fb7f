"""The job of `ssdlib detect`: everything it writes, images it cannot read, and stopping at any moment."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
from lxml import etree
from PIL import Image

from ssdlib.__main__ import main
from ssdlib.common.errors import ConfigError, SsdError
from ssdlib.config import BCCD_CLASSES, ModelConfig, Use
from ssdlib.data import source as bccd
from ssdlib.data.images import read_image, write_image
from ssdlib.inference.detections import Detections
from ssdlib.inference.inputs import ImageTask, find_images
from ssdlib.inference.job import DetectJob, parse_thresholds, run_detection
from ssdlib.inference.journal import Journal, open_journal
from ssdlib.inference.results import FORMATS, UNREADABLE, parse_formats
from ssdlib.inference.tiling import Tiling

NAMES = ("WBC", "RBC", "Platelets")
SURE = dict.fromkeys(NAMES, 0.5)
EVERYTHING = ",".join(name for name in FORMATS if name != "imagej" or importlib.util.find_spec("roifile"))


class Blobs:
    """Stands in for a network: each dark block on a light ground is a red cell."""

    config = ModelConfig()
    class_names = NAMES
    batch_size = 3
    score_threshold = 0.0

    def __init__(self) -> None:
        self.seen = 0

    def stream(self, images: Iterable[np.ndarray]) -> Iterator[Detections]:
        for image in images:
            self.seen += 1
            dark = (image.max(axis=2) < 128).astype(np.uint8)
            found = cv2.connectedComponentsWithStats(dark)[2][1:]
            boxes = [[x, y, x + w, y + h] for x, y, w, h, _ in found]
            labels = [2 if w > 30 else 3 for _, _, w, _, _ in found]
            yield Detections(boxes, [0.9] * len(boxes), labels, image.shape[1::-1], NAMES)


def field(cells: int, size: tuple[int, int] = (640, 480), side: int = 100) -> np.ndarray:
    """A light field with so many dark blocks, in rows."""
    image = np.full((*size[::-1], 3), 230, np.uint8)
    columns = (size[0] - 20) // (side + 10)
    for number in range(cells):
        x, y = 12 + number % columns * (side + 10), 12 + number // columns * (side + 10)
        image[y : y + side, x : x + side] = 30
    return image


@pytest.fixture
def fields(tmp_path) -> Path:
    """Three fields with 1, 2 and 3 cells, an empty one, and a damaged one between them."""
    folder = tmp_path / "fields"
    for number, name in enumerate(("empty.png", "one.png", "deep/two.bmp", "three.tif")):
        write_image(folder / name, field(number))
    (folder / "none.jpg").write_bytes(b"no image")
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"))))


def contents(folder: Path) -> dict[str, bytes]:
    """All files but those about the job itself."""
    files = (path for path in folder.rglob("*") if path.is_file() and "job" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def run(
    folder: Path, out: Path, formats: str = EVERYTHING, *, restart: bool = False, **more
) -> tuple[list[str], int]:
    """What could not be read, and how many views the network was shown."""
    blobs = Blobs()
    job = DetectJob(find_images([folder], out), SURE, out=out, formats=parse_formats(formats), **more)
    return run_detection(blobs, job, restart=restart, progress=False).failures, blobs.seen


def test_everything_that_is_written(fields, tmp_path):
    out = tmp_path / "out"
    failures, seen = run(fields, out, tiling=Tiling(um_per_pixel=0.072))
    assert seen == 4 and len(failures) == 1 and "none.jpg" in failures[0]
    images = rows(out / "images.csv")
    assert [(Path(row["image"]).name, row["state"], row["RBC"]) for row in images] == [
        ("two.bmp", "done", "2"), ("empty.png", "done", "0"), ("none.jpg", "unreadable", ""),
        ("one.png", "done", "1"), ("three.tif", "done", "3"),
    ]  # fmt: skip
    assert [row["quality"] for row in images] == ["ok", "almost blank", "", "ok", "ok"]
    slides = [(Path(row["slide"]).name, row["fields"], row["unreadable"], row["RBC"], row["notes"])
              for row in rows(out / "slides.csv")]  # fmt: skip
    assert slides == [("deep", "1", "0", "2", ""), ("fields", "3", "1", "4", "almost blank 1")]
    cells = rows(out / "cells.csv")
    assert len(cells) == 6 and cells[2]["image"].endswith("one.png")
    del cells[2]["image"]
    assert cells[2] == {
        "class": "RBC", "score": "0.9", "xmin": "12.0", "ymin": "12.0", "xmax": "112.0", "ymax": "112.0",
        "width": "100.0", "height": "100.0", "width_um": "7.2", "height_um": "7.2",
    }  # fmt: skip
    entries = json.loads((out / "cells.json").read_text())
    assert (out / "cells.json").read_text() == json.dumps(entries, indent=2) + "\n"
    assert [Detections.from_dict(entry).counts()["RBC"] for entry in entries] == [2, 0, 1, 3]
    assert sorted(contents(out / "pictures")) == ["deep/two.png", "empty.png", "one.png", "three.png"]
    assert (read_image(out / "pictures/one.png") != field(1)).any()
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_what_is_found_can_be_trained_on(fields, tmp_path, layout):
    out = tmp_path / "out"
    run(fields, out, layout)
    source = bccd.open_folder(out / layout)
    dataset, names = source.dataset("all"), source.class_names
    samples = {sample.image_id: sample for sample in dataset.samples}
    assert set(samples) == {"deep--two", "empty", "one", "three"}
    assert [len(samples[name].boxes) for name in sorted(samples)] == [2, 0, 1, 3]
    assert samples["one"].boxes.tolist() == [[12, 12, 112, 112]] and not samples["one"].repairs
    assert names[samples["one"].labels[0] - 1] == "RBC"
    for name, number in (("deep--two", 2), ("three", 3)):
        assert np.array_equal(read_image(samples[name].image_path), field(number)), "byte for byte"


def save(path: Path, rgb: np.ndarray, turned: bool) -> None:
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    Image.fromarray(np.rot90(rgb) if turned else rgb).save(path, exif=exif, quality=95)


def save_deep(path: Path, rgb: np.ndarray) -> None:
    cv2.imwrite(str(path), np.ascontiguousarray(rgb[..., ::-1]).astype(np.uint16) * 257)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.tif", "a.webp"])
@pytest.mark.parametrize("kind", ["plain", "gray", "deep", "turned"])
def test_every_format_gives_the_same_cells(tmp_path, name, kind):
    if (kind == "deep" and name not in ("a.png", "a.tif")) or (kind == "turned" and name == "a.bmp"):
        pytest.skip("this format has none")
    path, image = tmp_path / "in" / name, field(3, (320, 240), 60)
    path.parent.mkdir()
    if kind == "deep":
        save_deep(path, image)
    else:
        save(path, image[..., 0] if kind == "gray" else image, kind == "turned")
    run(path.parent, tmp_path / "out", "json,voc")
    (entry,) = json.loads((tmp_path / "out/cells.json").read_text())
    assert (entry["width"], entry["height"], entry["counts"]["RBC"]) == (320, 240, 3)
    boxes = sorted(item["box"] for item in entry["detections"])
    assert np.abs(np.array(boxes[0]) - [12, 12, 72, 72]).max() <= 2
    (sample,) = bccd.open_folder(tmp_path / "out/voc").dataset("all").samples
    assert (sample.width, sample.height) == (320, 240)
    assert sample.image_path.suffix == (".png" if kind == "turned" else path.suffix)
    with Image.open(sample.image_path) as copy:
        assert copy.size == (320, 240), "upright also for tools that do not heed EXIF"


def test_large_fields_are_tiled_and_the_others_are_not(tmp_path):
    write_image(tmp_path / "in/large.png", field(40, (1600, 1200)))
    write_image(tmp_path / "in/small.png", field(3))
    _, seen = run(tmp_path / "in", tmp_path / "out", "csv")
    assert seen == 1 + 4 + 1 + 12, "of the small one, too, an octave closer and one further away"
    assert [(row["tiles"], row["RBC"]) for row in rows(tmp_path / "out/images.csv")] == [
        ("12", "40"),
        ("1", "3"),
    ]


def test_thresholds_are_those_of_the_class(tmp_path):
    write_image(tmp_path / "in/a.png", field(2))
    tasks = find_images([tmp_path / "in"])
    for thresholds, count in (({"RBC": 0.95}, 0), ({"WBC": 0.95}, 2)):
        summary = run_detection(Blobs(), DetectJob(tasks, {**SURE, **thresholds}), progress=False)
        assert summary.rows == [(str(tmp_path / "in/a.png"), (0, count, 0))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.3", (0.3, 0.3, 0.3)),
        ("WBC=0.4,RBC=0.6", (0.4, 0.6, 0.5)),
        ("0.3, WBC = 0.4", (0.4, 0.3, 0.3)),
    ],
)
def test_thresholds_as_written(text, expected):
    assert parse_thresholds(text, ModelConfig()) == dict(zip(NAMES, expected, strict=True))


def test_without_a_threshold_the_weights_say_it():
    config = ModelConfig(use=Use(thresholds={"WBC": 0.6, "RBC": 0.31, "Platelets": 0.4}))
    assert parse_thresholds(None, config) == {"WBC": 0.6, "RBC": 0.31, "Platelets": 0.4}
    assert parse_thresholds("RBC=0.5", config) == {"WBC": 0.6, "RBC": 0.5, "Platelets": 0.4}
    assert parse_thresholds(None, ModelConfig()) == SURE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "--threshold takes") for text in ("", "x", "=0.5", "WBC=", "0.1,0.2", "WBC=1,WBC=0")),
        *((text, r"must be in \[0, 1\]") for text in ("2", "-0.1", "nan", "WBC=7")),
        ("Giraffe=0.6", "one for each of WBC, RBC, Platelets"),
    ],
)
def test_thresholds_that_cannot_be(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_thresholds(text, ModelConfig())


@pytest.mark.parametrize("text", ["", ",", "csv,pdf"])
def test_unknown_formats_are_refused(text):
    with pytest.raises(ConfigError, match="pictures, csv, json, report, coco, voc, geojson, imagej"):
        parse_formats(text)


def test_going_on_does_only_what_is_left(fields, tmp_path):
    out, off = tmp_path / "out", {"tiling": Tiling("off")}  # one view an image, so that they can be counted
    run(fields, out, **off)
    before = contents(out)
    failures, seen = run(fields, out, **off)
    assert (len(failures), seen) == (1, 0), "nothing is left to do, and the damaged one is still named"
    assert contents(out) == before
    write_image(fields / "one.png", field(4))  # repaired by its owner
    write_image(fields / "zebra.png", field(2))
    assert run(fields, out, **off)[1] == 3, "the group of three that holds the changed and the new image"
    assert [row["RBC"] for row in rows(out / "images.csv")] == ["2", "0", "", "4", "3", "2"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"identity": {"weights": "b"}}, "weights was 'a', is 'b'"),
        ({"tiling": Tiling(um_per_pixel=0.1)}, "um_per_pixel was None, is 0.1"),
        ({"tiling": Tiling("off")}, "tile was 'auto', is 'off'"),
        ({"border": "two-sides"}, "border was 'all', is 'two-sides'"),
        ({"fractions": True}, "voc was 'whole pixels', is 'fractions'"),
    ],
)
def test_other_settings_are_refused_until_told_to_start_anew(fields, tmp_path, change, what):
    out, same = tmp_path / "out", {"identity": {"weights": "a"}}
    run(fields, out, "csv,voc", **same)
    with pytest.raises(ConfigError, match=f"{what}.*--restart"):
        run(fields, out, "csv,voc", **{**same, **change})
    assert run(fields, out, "json,voc", **same)[1] == 0, "tables are made again from what is known"
    assert run(fields, out, "csv,voc", **{**same, **change}, restart=True)[1] > 0


def test_tables_open_in_a_spreadsheet_and_a_decimal_comma_needs_no_new_detection(tmp_path):
    write_image(tmp_path / "in/Müller; Ä.png", field(1))
    out = tmp_path / "out"
    run(tmp_path / "in", out, "csv")
    before = contents(out)
    assert before.keys() == {"cells.csv", "images.csv", "slides.csv"}
    assert all(content.startswith(b"\xef\xbb\xbf") for content in before.values())
    assert run(tmp_path / "in", out, "csv", decimal_comma=True)[1] == 0
    text = (out / "cells.csv").read_text("utf-8-sig")
    (cell,) = csv.DictReader(io.StringIO(text), delimiter=";")
    assert cell["image"].endswith("Müller; Ä.png") and (cell["score"], cell["xmax"]) == ("0,9", "112,0")
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(out / "cells.csv", sep=";", decimal=",")
    assert Detections.from_frame(table, (640, 480), NAMES).boxes.tolist() == [[12, 12, 112, 112]]
    assert run(tmp_path / "in", out, "csv")[1] == 0 and contents(out) == before


class Fractions(Blobs):
    """Boxes with fractions of pixels."""

    def stream(self, images: Iterable[np.ndarray]) -> Iterator[Detections]:
        for image in images:
            boxes, labels = [[171.42, 12.5, 200.6, 80], [5.2, 6, 5.4, 9]], [2, 3]
            yield Detections(boxes, [0.9, 0.8], labels, image.shape[1::-1], NAMES)


@pytest.fixture
def shapes(tmp_path) -> Callable[..., Path]:
    """The output folder, with the files of the formats asked for, of a field with fractions and its twin,
    which EXIF turns."""

    def detect(formats: str, **more: bool) -> Path:
        (tmp_path / "in").mkdir()
        for name, turned in (("plain.png", False), ("turned.jpg", True)):
            save(tmp_path / "in" / name, field(1, (240, 320)), turned)
        job = DetectJob(find_images([tmp_path / "in"]), SURE, out=tmp_path / "out",
                        formats=parse_formats(formats), **more)  # fmt: skip
        run_detection(Fractions(), job, progress=False)
        return tmp_path / "out"

    return detect


@pytest.mark.parametrize("fractions", [False, True])
def test_voc_has_whole_pixels_unless_fractions_are_asked_for(shapes, fractions):
    tree = etree.parse(shapes("voc", fractions=fractions) / "voc/Annotations/plain.xml")
    boxes = [[corner.text for corner in box] for box in tree.iterfind("object/bndbox")]
    if fractions:
        assert boxes == [["171.42", "12.5", "200.6", "80"], ["5.2", "6", "5.4", "9"]]
    else:
        assert boxes == [["171", "12", "201", "80"], ["5", "6", "6", "9"]]


def test_geojson_holds_detections_of_qupath(shapes):
    out = shapes("geojson") / "geojson"
    assert {file.name for file in out.iterdir()} == {"plain.geojson", "turned.geojson", "turned.png"}
    assert read_image(out / "turned.png").shape == (320, 240, 3), "QuPath does not heed EXIF"
    content = json.loads((out / "plain.geojson").read_text("utf-8"))
    first, second = content["features"]
    assert content["type"] == "FeatureCollection" and first["type"] == second["type"] == "Feature"
    (ring,) = first["geometry"]["coordinates"]
    assert first["geometry"]["type"] == "Polygon" and ring[0] == ring[-1] == [171.42, 12.5]
    assert ring[1:4] == [[200.6, 12.5], [200.6, 80], [171.42, 80]]
    assert first["properties"] == {
        "objectType": "detection",
        "classification": {"name": "RBC", "color": [214, 40, 57]},
        "measurements": {"Score": 0.9},
    }
    assert second["properties"]["classification"]["name"] == "Platelets"


def test_imagej_reads_the_rectangles(shapes):
    roifile = pytest.importorskip("roifile")
    out = shapes("imagej") / "imagej"
    assert {file.name for file in out.iterdir()} == {"plain.zip", "turned.zip", "turned.png"}
    first, second = roifile.roiread(out / "plain.zip")
    assert [first.left, first.top, first.right, first.bottom] == [171, 12, 201, 80]
    assert [second.left, second.top, second.right, second.bottom] == [5, 6, 6, 9]
    assert first.roitype == roifile.ROI_TYPE.RECT and (first.name, first.group) == ("0001 RBC", 2)
    assert (second.name, second.group) == ("0002 Platelets", 3)
    assert first.hexcolor(first.stroke_color) == "#d62839" and first.properties == {"Score": 0.9}
    with zipfile.ZipFile(out / "plain.zip") as archive:
        assert archive.namelist() == ["0001 RBC.roi", "0002 Platelets.roi"] and archive.testzip() is None


def test_imagej_without_its_extra_is_refused_before_anything_is_done(monkeypatch):
    monkeypatch.setitem(sys.modules, "roifile", None)
    with pytest.raises(ConfigError, match=r"ssdlib\[imagej\]"):
        parse_formats("csv,imagej")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "{out}", "--fractions"], "--fractions is for voc"),
        (["--out", "{out}", "--format", "json", "--decimal-comma"], "--decimal-comma is for csv"),
        (["--decimal-comma"], "--decimal-comma is for csv"),
    ],
)
def test_options_of_files_that_are_not_written_are_refused(fields, tmp_path, capsys, words, message):
    given = [word.format(out=tmp_path / "out") for word in words]
    assert main(["detect", str(fields), *given]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["touch", "replace", "remove"])
def test_an_image_that_changes_meanwhile_keeps_its_row_and_is_done_anew(fields, tmp_path, change):
    first = sorted(fields.glob("*.png"))[0]

    class Changing(Blobs):
        def stream(self, images):
            yield from super().stream(images)
            if change == "touch":
                os.utime(first, ns=(1, 1))
            elif change == "replace":
                write_image(first, field(3))
            else:
                first.unlink(missing_ok=True)

    job = DetectJob(find_images([fields]), SURE, out=tmp_path / "out", formats=("csv",))
    run_detection(Changing(), job, progress=False)
    rows = list(csv.DictReader((tmp_path / "out/images.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert len(rows) == len(job.tasks)
    again = DetectJob(find_images([fields]), SURE, out=tmp_path / "out", formats=("csv",))
    network = Blobs()
    run_detection(network, again, progress=False)
    assert (network.seen > 0) == (change != "remove")


def noted(task: ImageTask, number: int) -> dict[str, str]:
    """A record that says nothing but a number."""
    return {"image": task.shown, "state": UNREADABLE, "message": str(number)}


def numbers(journal: Journal, tasks: Iterable[ImageTask]) -> list[int]:
    return [int(record["message"]) for record in journal.read(tasks)]


@pytest.fixture
def journal_of_three(fields, tmp_path) -> tuple[Path, list[ImageTask]]:
    """The journal of three images, and these."""
    tasks = find_images([fields])[:3]
    with Journal(tmp_path / "journal.jsonl", NAMES) as journal:
        assert list(journal.read(tasks)) == []
        for number, task in enumerate(tasks):
            journal.append(task, noted(task, number))
    return tmp_path / "journal.jsonl", tasks


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99, 1.0])
def test_half_a_line_of_the_journal_is_forgotten(journal_of_three, share):
    path, tasks = journal_of_three
    content = path.read_bytes()
    start = content.rstrip().rfind(b"\n") + 1
    path.write_bytes(content[: start + int(share * (len(content) - start))])
    with Journal(path, NAMES) as journal:
        assert numbers(journal, tasks) == list(range(3 if share == 1 else 2))
        journal.append(tasks[2], noted(tasks[2], 7))
        assert numbers(journal, tasks) == [0, 1, 7]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"message": "1"', '"message": 1'),
        ('"message": "1"', '"message": "' + "[" * 9 + '"]'),
        ('"message": "1"', '"message": ' + "1" * 5000),
        ('"message": "1"', '"message": ' + "[" * 5000 + "]" * 5000),
        ('"state": "unreadable", "message": "1"', '"state": "done", "message": "1"'),
        ('{"key": [', '{"key": [[], '),
        ('{"key": [', '{"other": ['),
        ('], "image": "', '], "image": "x'),
    ],
)
def test_a_damaged_line_of_the_journal_is_forgotten_alone(journal_of_three, old, new):
    path, tasks = journal_of_three
    lines = path.read_text().splitlines(keepends=True)
    assert old in lines[1]
    path.write_text(lines[0] + lines[1].replace(old, new) + lines[2])
    with Journal(path, NAMES) as journal:
        assert numbers(journal, tasks) == [0, 2]
        path.write_bytes(b"x" * path.stat().st_size)  # by another program
        with pytest.raises(SsdError, match="changed meanwhile"):
            numbers(journal, tasks)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("counts", "RBC"), 3),
        (("counts", "Giraffe"), 0),
        (("detections", 0, "label"), "Giraffe"),
        (("detections", 0, "box"), [1, 2, 3]),
        (("detections", 0, "box"), [9, 9, 8, 9]),
        (("detections", 0, "box", 0), float("nan")),
        (("view",), [0, 0]),
        (("width",), 10**30),
        (("quality",), ["unheard of"]),
        (("um_per_pixel",), float("inf")),
    ],
)
def test_a_record_that_cannot_be_is_made_anew(tmp_path, place, value):
    write_image(tmp_path / "in/a.png", field(2))
    run(tmp_path / "in", tmp_path / "out", "csv,json,report")
    journal, before = tmp_path / "out/job/journal.jsonl", contents(tmp_path / "out")
    content = json.loads(journal.read_text())
    parent = content
    for step in place[:-1]:
        parent = parent[step]
    parent[place[-1]] = value
    journal.write_text(json.dumps(content) + "\n")
    assert run(tmp_path / "in", tmp_path / "out", "csv,json,report")[1] > 0
    assert contents(tmp_path / "out") == before


@pytest.mark.skipif(os.name != "posix", reason="links and named pipes")
@pytest.mark.parametrize("kind", ["link", "loop", "pipe", "device", "folder"])
@pytest.mark.parametrize("restart", [False, True])
def test_the_journal_is_a_file_and_nothing_else(tmp_path, kind, restart):
    path, victim = tmp_path / "job/journal.jsonl", tmp_path / "victim"
    victim.write_text("mine\n")
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        (path / "inside").mkdir(parents=True)
    else:
        path.symlink_to({"link": victim, "loop": path, "device": "/dev/null"}[kind])
    with (
        pytest.raises(SsdError, match=r"journal\.jsonl") if kind == "folder" or not restart else nullcontext()
    ):
        open_journal(path.parent, {}, NAMES, restart=restart).__exit__()
    assert victim.read_text() == "mine\n" and path.is_file() == (
        kind == "link" or (restart and kind != "folder")
    )


def test_where_nothing_can_be_written_it_is_said(fields, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SsdError, match="cannot write"):
        run(fields, tmp_path / "out")


def test_another_scale_is_found_and_said(tmp_path):
    for name, side in (("right", 100), ("small", 40)):
        write_image(tmp_path / name / "a.png", field(20, (800, 600), side))
    notes = {}
    for name in ("right", "small"):
        job = DetectJob(find_images([tmp_path / name]), SURE)
        notes[name] = run_detection(Blobs(), job, progress=False).scale_note
    assert notes["right"] == ""
    assert "of 1 by their red cells" in notes["small"] and "0.187 um per pixel" in notes["small"]


def test_cells_cut_by_the_border_are_counted_by_the_rule(tmp_path):
    image = np.full((480, 640, 3), 230, np.uint8)
    for x, y in ((-40, 100), (250, -50), (590, 300), (300, 430), (-30, 440), (300, 200)):
        image[max(y, 0) : y + 90, max(x, 0) : x + 90] = 30
    write_image(tmp_path / "a.png", image)
    tasks = find_images([tmp_path / "a.png"])
    for border, count in (("all", 6), ("two-sides", 3)):
        summary = run_detection(Blobs(), DetectJob(tasks, SURE, border=border), progress=False)
        assert summary.counts == [0, count, 0]


def test_an_unknown_border_rule_is_refused():
    with pytest.raises(ConfigError, match="--border takes all or two-sides, not 'three-sides'"):
        DetectJob([], SURE, border="three-sides")


def test_a_crowded_field_is_counted_whole(tmp_path):
    write_image(tmp_path / "a.png", field(420, (1400, 1400), 55))
    job = DetectJob(find_images([tmp_path / "a.png"]), SURE)
    assert run_detection(Blobs(), job, progress=False).counts == [0, 420, 0]


def test_two_that_write_into_one_journal_read_what_each_wrote(fields, tmp_path):
    def record(task, message):
        return {"image": task.shown, "state": "unreadable", "message": message}

    def opened():
        return Journal(tmp_path / "journal.jsonl", BCCD_CLASSES)

    tasks = find_images([fields])
    with opened() as one, opened() as two:
        for task in tasks:
            for who, journal in (("one", one), ("two", two)):
                journal.append(task, record(task, who))
        with opened() as third:
            one.append(tasks[0], record(tasks[0], "again"))
            assert all(task in third for task in tasks)
        for who, journal in (("one", one), ("two", two)):
            assert list(journal.read(tasks[1:])) == [record(task, who) for task in tasks[1:]]
        assert next(one.read(tasks)) == record(tasks[0], "again")


def test_memory_stays_flat(tmp_path):
    """Eight times the images need the same memory, but for a few numbers each."""
    peaks, few, many = [], 8, 64
    for count in (few, many):
        for number in range(count):
            write_image(tmp_path / f"{count}/{number:03}.png", field(20, (160, 120), 18))
        tracemalloc.start()
        run(tmp_path / str(count), tmp_path / f"out{count}", "csv,json")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Keeping the pixels would cost 58 kB an image, and 20 cells as Python's objects more than 10 kB.
    assert peaks[1] < peaks[0] + (many - few) * 5000
