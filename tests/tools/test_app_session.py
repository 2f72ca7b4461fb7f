"""The page without Gradio: what comes in, what is shown, what goes out."""

import csv
import io
import json
import struct
import sys
import threading
import time
import zlib
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
from PIL import Image

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.data.images import encode_image
from ssdlib.inference.detections import Detections
from ssdlib.tools.app import launch, markup
from ssdlib.tools.app.session import Limits, Session, Sessions, Turns, box_sizes, look, safe_name

NAMES = ("WBC", "RBC")
BOXES = [[10, 10, 30, 50], [40, 40, 60, 60], [5, 60, 25, 70]]


def three(image, um_per_pixel=None, say=None):
    """A detector's answer: a sure WBC, a doubtful RBC and one below what is kept."""
    height, width = image.shape[:2]
    return Detections(BOXES, [0.9, 0.3, 0.04], [1, 2, 2], (width, height), NAMES)


def nothing(image, um_per_pixel=None, say=None):
    return Detections.empty((image.shape[1], image.shape[0]), NAMES)


def add(session, path, detect, name=None):
    """Bring a file and look at it at once; what is refused is raised."""
    session.bring(path, name)
    session.work(detect)
    if refused := session.next_refused():
        raise DataError(refused[0])


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "field.png"
    path.write_bytes(encode_image(np.full((80, 100, 3), 200, np.uint8), ".png"))
    return path


@pytest.fixture
def session(photograph):
    session = Session(NAMES)
    add(session, photograph, three)
    return session


def png(width, height, rows=b""):
    """A PNG that claims a size and holds the compressed rows given."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def gif():
    stream = io.BytesIO()
    Image.new("RGB", (20, 20)).save(stream, "GIF")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"not an image", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "not an image"),
        (b"<!DOCTYPE html><script>alert(1)</script>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (gif(), "not an image"),  # harmless, but a format that no camera writes
        (encode_image(np.zeros((900, 900, 3), np.uint8))[:1500], "truncated or damaged"),
        (b"\xff\xd8\xff\xe0" + bytes(500), "not an image"),
        (png(7000, 9000, zlib.compress(bytes(10**6))), "7000 x 9000"),
        (png(60_000, 60_000), "megapixels"),
        (png(2**31 - 1, 2**31 - 1), "megapixels"),
        (png(300, 300, zlib.compress(bytes(1000))), "truncated or damaged"),
        (png(0, 0), "hostile"),
        (b"II*\x00" + struct.pack("<I", 2**32 - 1), "hostile"),
        (b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(60), "hostile"),
        (bytes(2001), "larger than"),
    ],
)
def test_hostile_files_are_refused_in_words(tmp_path, content, said):
    path = tmp_path / "arrived"
    path.write_bytes(content)
    session = Session(NAMES, Limits(file_bytes=2000))
    with pytest.raises(DataError, match=said) as refused:
        add(session, path, nothing, "hostile.png")
    assert str(refused.value).startswith("hostile.png") and str(tmp_path) not in str(refused.value)
    assert session.fields == []


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("", "image"),
        ("..", "image"),
        ("../../etc/passwd.png", "passwd.png"),
        ("C:\\Users\\me\\smear.jpg", "smear.jpg"),
        ("a\x00b\x1b[31m\u202egnp.exe", "ab[31mgnp.exe"),
        ("Blutbild µ 1.tif", "Blutbild µ 1.tif"),
        ("x" * 300 + ".png", "x" * 60 + "…" + "x" * 15 + ".png"),
    ],
)
def test_names_are_harmless(name, safe):
    assert safe_name(name) == safe


def test_a_file_that_never_arrived(tmp_path):
    with pytest.raises(DataError, match="has not arrived"):
        add(Session(NAMES), tmp_path / "gone.png", nothing)


def test_no_more_than_the_limits(photograph):
    session = Session(NAMES, Limits(fields=2))
    add(session, photograph, nothing)
    add(session, photograph, nothing)
    with pytest.raises(DataError, match="2 images are on the page"):
        add(session, photograph, nothing)
    session.clear()
    add(session, photograph, nothing)
    size = photograph.stat().st_size
    session = Session(NAMES, Limits(total_bytes=2 * size - 1))
    add(session, photograph, nothing)
    with pytest.raises(DataError, match="all images together"):
        add(session, photograph, nothing)


def test_thresholds_act_on_what_was_kept(session):
    assert session.shown(0).counts() == {"WBC": 1, "RBC": 0}
    session.set_thresholds({"WBC": 0.95, "RBC": 0.05})
    assert session.shown(0).counts() == {"WBC": 0, "RBC": 1}
    session.clear()
    assert session.all_shown() == [] and session.thresholds["WBC"] == 0.95


@pytest.mark.parametrize("wrong", [{}, {"WBC": 0.5}, {"WBC": 0.5, "RBC": 0.01}, {"WBC": 2, "RBC": 0.5}])
def test_impossible_thresholds(session, wrong):
    with pytest.raises(ConfigError):
        session.set_thresholds(wrong)
    assert session.thresholds == {"WBC": 0.5, "RBC": 0.5}


def test_sizes_in_pixels_and_micrometers(session):
    session.set_thresholds({"WBC": 0.05, "RBC": 0.05})
    assert box_sizes(session.shown(0)).tolist() == [30, 20]
    assert session.unit == "px" and session.sizes()["RBC"].tolist() == [20]
    session.set_scale(0.1)
    assert session.unit == "µm" and session.sizes(0)["WBC"] == pytest.approx([3])
    session.set_scale(0)
    assert session.unit == "px"
    with pytest.raises(ConfigError, match="micrometers per pixel"):
        session.set_scale(-1)


@pytest.mark.parametrize("scale", [None, 0.1])
def test_csv_has_one_row_a_cell(photograph, scale):
    session = Session(NAMES)
    session.set_scale(scale)
    add(session, photograph, nothing)
    add(session, photograph, three, "=HYPERLINK(1).png")
    rows = list(csv.DictReader(io.StringIO(session.to_csv())))
    assert len(rows) == 1 and rows[0]["label"] == "WBC" and float(rows[0]["size_px"]) == 30
    assert rows[0].get("size_um") == ("3.000" if scale else None)
    assert rows[0]["image"].startswith("'=")  # no formula for a spreadsheet


def test_json_is_what_detect_writes(session, photograph):
    add(session, photograph, nothing)
    records = json.loads(session.to_json())
    read = Detections.from_dict(records[0])
    assert read.boxes.tolist() == [BOXES[0]] and read.image == "field.png"
    assert records[1]["counts"] == {"WBC": 0, "RBC": 0} and records[1]["thresholds"]["RBC"] == 0.5
    assert json.loads(Session(NAMES).to_json()) == []


def test_large_fields_are_shown_small_and_saved_whole(tmp_path):
    path = tmp_path / "large.jpg"
    path.write_bytes(encode_image(np.full((1200, 3200, 3), 200, np.uint8)))
    session = Session(NAMES)
    add(session, path, three)
    assert session.preview(0).shape == (600, 1600, 3)
    saved = cv2.imdecode(np.frombuffer(session.picture(0), np.uint8), cv2.IMREAD_COLOR)
    assert saved.shape == (1200, 3200, 3)
    # The outline is where the cell is: at half the size on screen.
    assert np.abs(session.preview(0)[25, 5:8].astype(int) - 200).max() > 50


class Blind:
    """A detector that sees one cell in each view."""

    class_names = NAMES
    batch_size = 8

    def stream(self, images):
        for image in images:
            yield Detections([[200, 200, 300, 300]], [0.9], [2], (image.shape[1], image.shape[0]), NAMES)


@pytest.mark.parametrize(("size", "most"), [((480, 640), 1), ((1000, 2000), 20)])
def test_large_fields_are_seen_in_tiles(size, most):
    heard = []
    found = look(Blind(), np.zeros((*size, 3), np.uint8), None, lambda *tiles: heard.append(tiles))
    tiles = heard[0][1]
    assert heard[0] == (0, tiles) and heard[-1] == (tiles, tiles) and 1 <= len(found) <= most
    assert (tiles == 1) == (most == 1) and found.image_size == size[::-1]


def test_the_network_takes_a_batch_at_a_time():
    """So that between two batches of a large field another visitor has a turn."""
    seen, turns = [], []

    @contextmanager
    def turn():
        turns.append("taken")
        yield

    detector = Blind()
    detector.stream = lambda images: [nothing(image) for image in counted(images, seen)]
    look(detector, np.zeros((2000, 3000, 3), np.uint8), None, lambda *_: None, turn)
    assert max(seen) == detector.batch_size and len(turns) == len(seen) > 2


def counted(images, seen):
    images = list(images)
    seen.append(len(images))
    return images


def test_turns_are_given_in_the_order_of_asking():
    turns, order, threads = Turns(), [], []

    def worker(number):
        with turns():
            order.append(number)

    with turns():
        for number in range(5):
            threads.append(threading.Thread(target=worker, args=(number,)))
            threads[-1].start()
            while turns._asked < number + 2:
                time.sleep(0.001)
        assert order == []
    for thread in threads:
        thread.join(5)
    assert order == [0, 1, 2, 3, 4]
    with pytest.raises(ZeroDivisionError), turns():
        _ = 1 / 0
    with turns():  # an error gives the turn on
        pass


def test_work_can_be_stopped_at_a_tile(photograph):
    session, heard = Session(NAMES), []
    add(session, photograph, nothing)
    for name in ("a.png", "b.png", "c.png"):
        session.bring(photograph, name)

    def slow(image, um_per_pixel, say):
        for done in range(4):
            say(done, 4)
            heard.append(done)
            if done == 1 and len(session.waiting) == 2:
                session.stop()
        return nothing(image)

    session.work(slow)
    assert heard == [0, 1, 2, 3, 0, 1] and [field.name for field in session.fields] == ["field.png", "a.png"]
    assert session.next_refused() == ["b.png and 1 more: stopped, not looked at."]
    assert session.waiting == [] and not session.working
    session.bring(photograph, "d.png")
    session.work(nothing)
    assert session.fields[-1].name == "d.png" and session.next_refused() == []


def test_what_is_forgotten_is_not_worked_on(photograph):
    sessions = Sessions(lambda: Session(NAMES), capacity=1)
    calls = []
    for leave in (lambda: sessions.forget("a"), lambda: sessions["b"]):
        session = sessions["a"]
        session.bring(photograph)
        leave()
        session.work(lambda *_: calls.append(1))
        assert session.waiting == session.fields == calls == []


def test_clearing_while_a_field_is_looked_at(photograph):
    session = Session(NAMES)
    session.bring(photograph)

    def cleared(image, um_per_pixel, say):
        session.clear()
        say(1, 1)

    session.work(cleared)
    assert session.fields == session.waiting == session.next_refused() == []


def test_one_call_works_for_all(photograph):
    """A second drop while the first is looked at: its images are done, too, and not twice."""
    session, names = Session(NAMES), []
    session.bring(photograph, "first.png")

    def second(image, um_per_pixel, say):
        if not names:
            session.bring(photograph, "second.png")
            session.work(second)  # as another thread would
            assert session.working
        names.append(image.shape)
        return nothing(image)

    session.work(second)
    assert [field.name for field in session.fields] == ["first.png", "second.png"] and len(names) == 2


def test_a_field_is_looked_at_again_at_another_scale(tmp_path):
    path = tmp_path / "large.jpg"
    path.write_bytes(encode_image(np.full((1000, 2000, 3), 200, np.uint8)))
    session, scales = Session(NAMES), []

    def noted(image, um_per_pixel, say):
        scales.append(um_per_pixel)
        return nothing(image)

    add(session, path, noted)
    add(session, path, noted, "other.jpg")
    assert not session.outdated and session.fields[0].tiles > 1
    assert "scale of this image is not known" in markup.picture(session, 0)
    session.set_scale(0.023)
    assert session.outdated
    session.bring_again()
    session.bring_again()  # a double click
    session.work(noted)
    assert scales == [None, None, 0.023, 0.023] and not session.outdated
    assert [field.name for field in session.fields] == ["large.jpg", "other.jpg"]
    assert session.fields[0].tiles == 1 and "not known" not in markup.picture(session, 0)
    session.set_scale(None)
    session.bring_again()
    session.stop()
    assert len(session.fields) == 2  # what there was stays


def test_thresholds_do_not_run_the_network(photograph):
    session, calls = Session(NAMES), []
    add(session, photograph, lambda image, *_: calls.append(1) or three(image))
    for value in (0.05, 0.5, 0.95):
        session.set_thresholds({"WBC": value, "RBC": value})
        session.preview(0), session.picture(0), session.sizes(), session.to_csv(), session.to_json()
    assert calls == [1]


def test_visitors_are_apart_and_the_oldest_is_forgotten(photograph):
    sessions = Sessions(lambda: Session(NAMES), capacity=2)
    add(sessions["a"], photograph, three)
    assert len(sessions["a"].fields) == 1 and sessions["b"].fields == []
    assert sessions["a"] is sessions["a"]
    assert sessions["c"].fields == [] and len(sessions) == 2  # b was unused for longest
    assert len(sessions["a"].fields) == 1
    sessions.forget("a")
    sessions.forget("never seen")
    assert sessions["a"].fields == []


def test_markup_escapes_what_visitors_send(photograph):
    names = ("<b>", "RBC")
    session = Session(names)
    for _ in range(2):
        add(session, photograph, lambda *_: Detections.empty((100, 80), names), "<img src=x onerror=1>.png")
    parts = [markup.picture(session, 0), markup.tiles(session, 0), markup.table(session)]
    parts += [markup.messages(["<script>"]), markup.header(session.class_names, local=True)]
    for part in parts:
        assert "<img src=x" not in part and "<script>" not in part and "<b>," not in part
    assert "n/a" in markup.tiles(session, 0) and "n/a" in markup.histogram(session, 0)
    assert markup.messages([]) == "" and "not validated for diagnosis" in parts[-1]


@pytest.mark.parametrize("largest", [0.0, 0.3, 7.5, 99.9, 100.0, 249.0, 5000.0])
def test_bins_cover_the_sizes(largest):
    edges = markup.bin_edges(np.array([0.0, largest]))
    assert edges[0] == 0 and edges[-1] > largest and 5 <= len(edges) - 1 <= 25 and (len(edges) - 1) % 5 == 0


def test_the_histogram_counts_every_cell(session):
    session.set_thresholds({"WBC": 0.05, "RBC": 0.05})
    assert markup.histogram(session, 0).count("<i ") == 2
    assert "micrometers" not in markup.histogram(session, 0)


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match=r"ssdlib\[app\]"):
        launch.serve(Blind())
