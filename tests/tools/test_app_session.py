"""The page without a browser: what comes in, what is shown, what goes out, who has to wait."""

import asyncio
import io
import json
import os
import sys
import threading
import time
from functools import partial
from urllib.request import urlopen

import cv2
import numpy as np
import pytest

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.config import ModelConfig
from ssdlib.data.images import encode_image
from ssdlib.inference.detections import Detections
from ssdlib.inference.fields import Seen, detect_image
from ssdlib.inference.tiling import Tiling
from ssdlib.tools.app import launch, markup
from ssdlib.tools.app.session import Session
from ssdlib.tools.app.uploads import Limits
from ssdlib.tools.app.visitors import Sessions, SharedPredictor

NAMES = ("WBC", "RBC")
CONFIG = ModelConfig(class_names=NAMES)
BOXES = [[10, 10, 30, 50], [40, 40, 60, 60], [5, 60, 25, 70]]


def seen(found, tiling=None):
    """The detections as of an image that is one tile."""
    um = tiling.um_per_pixel if tiling else None
    return Seen(found, 1, found.image_size, "given" if um else "assumed", um)


def three(image, tiling=None, um_in_file=None, on_tiles=None):
    """Stands for `detect_image`: a sure WBC, a doubtful RBC and one below what is kept."""
    height, width = image.shape[:2]
    return seen(Detections(BOXES, [0.9, 0.3, 0.04], [1, 2, 2], (width, height), NAMES), tiling)


def nothing(image, tiling=None, um_in_file=None, on_tiles=None):
    return seen(Detections.empty((image.shape[1], image.shape[0]), NAMES))


class OneEach:
    """A predictor that finds one cell in each tile, and keeps how many it was given at a time."""

    config = CONFIG
    class_names = NAMES
    batch_size = 8

    def __init__(self):
        self.batches = []

    def stream(self, images):
        images = list(images)
        self.batches.append(len(images))
        for image in images:
            yield Detections([[200, 200, 300, 300]], [0.9], [2], (image.shape[1], image.shape[0]), NAMES)


def add(session, path, detect, name=None):
    """Bring a file and detect its cells at once; what is refused is raised."""
    session.add(path, name)
    session.run(detect)
    if refused := session.next_refused():
        raise DataError(refused[0])


def photograph_of(path, height, width):
    path.write_bytes(encode_image(np.full((height, width, 3), 200, np.uint8), path.suffix))
    return path


@pytest.fixture
def photograph(tmp_path):
    return photograph_of(tmp_path / "field.png", 80, 100)


@pytest.fixture
def large(tmp_path):
    return photograph_of(tmp_path / "large.jpg", 1200, 3200)


@pytest.fixture
def session(photograph):
    session = Session(CONFIG)
    add(session, photograph, three)
    return session


def names_of(session):
    return [field.detections.image for field in session.fields]


def test_no_more_than_the_limits(photograph):
    session = Session(CONFIG, Limits(fields=2))
    for _ in range(2):
        add(session, photograph, nothing)
    with pytest.raises(DataError, match="2 images are on the page"):
        add(session, photograph, nothing)
    session.clear()
    add(session, photograph, nothing)
    session = Session(CONFIG, Limits(total_bytes=2 * photograph.stat().st_size - 1))
    session.add(photograph)
    for _ in range(2):  # while the first waits, and later
        with pytest.raises(DataError, match="all images together"):
            add(session, photograph, nothing)


def test_damaged_files_are_named_and_the_rest_is_done(photograph, tmp_path):
    (tmp_path / "half.png").write_bytes(photograph.read_bytes()[:60])
    session = Session(CONFIG)
    for name in ("half.png", "gone.png", "field.png"):
        session.add(tmp_path / name)
    session.run(nothing)
    refused = session.next_refused()
    assert [line.split()[0] for line in refused] == ["gone.png", "half.png"]
    assert names_of(session) == ["field.png"] and session.next_refused() == []


def test_thresholds_act_on_what_was_kept(session):
    assert session.shown[0].counts() == {"WBC": 1, "RBC": 0}
    session.set_thresholds({"WBC": 0.95, "RBC": 0.05})
    assert session.shown[0].counts() == {"WBC": 0, "RBC": 1}
    session.clear()
    assert session.shown == [] and session.thresholds["WBC"] == 0.95


@pytest.mark.parametrize("wrong", [{}, {"WBC": 0.5}, {"WBC": 0.5, "RBC": 0.01}, {"WBC": 2, "RBC": 0.5}])
def test_impossible_thresholds(session, wrong):
    with pytest.raises(ConfigError):
        session.set_thresholds(wrong)
    assert session.thresholds == {"WBC": 0.5, "RBC": 0.5}


def test_sizes_in_pixels_and_micrometers(session):
    session.set_thresholds({"WBC": 0.05, "RBC": 0.05})
    assert session.unit(0) == "px" and session.sizes(0)["WBC"].tolist() == [30]
    assert session.sizes(0)["RBC"].tolist() == [20]
    session.set_scale(0.1)
    assert session.unit(0) == "µm" and session.sizes(0)["WBC"] == pytest.approx([3])
    session.set_scale(0)
    assert session.unit(0) == "px"
    with pytest.raises(ConfigError, match="micrometers per pixel"):
        session.set_scale(-1)


@pytest.mark.parametrize("scale", [None, 0.1])
def test_csv_is_read_as_that_of_the_command_line(photograph, scale):
    pandas = pytest.importorskip("pandas")
    session = Session(CONFIG)
    session.set_scale(scale)
    for name, detect in [("none.png", nothing), ("=HYPERLINK(1).png", three), ("field.png", three)]:
        add(session, photograph, detect, name)
    frame = pandas.read_csv(io.StringIO(session.to_csv()))
    assert frame["image"][0].startswith("'=")  # no formula for a spreadsheet
    assert frame["width_um"].tolist() == ([2.0, 2.0] if scale else pytest.approx([np.nan] * 2, nan_ok=True))
    read = Detections.from_frame(frame, (100, 80), NAMES, "field.png")
    assert read.boxes.tolist() == [BOXES[0]] and read.names == ["WBC"]
    assert read.scores.tolist() == session.shown[2].scores.tolist()


def test_json_is_what_detect_writes(session, photograph):
    add(session, photograph, nothing)
    records = json.loads(session.to_json())
    read = Detections.from_dict(records[0])
    assert read.boxes.tolist() == [BOXES[0]] and read.image == "field.png"
    assert records[1]["counts"] == {"WBC": 0, "RBC": 0} and records[1]["thresholds"]["RBC"] == 0.5
    assert json.loads(Session(CONFIG).to_json()) == []


def test_large_fields_are_shown_small_and_saved_whole(large):
    session = Session(CONFIG)
    add(session, large, three)
    assert session.preview(0).shape == (600, 1600, 3)
    saved = cv2.imdecode(np.frombuffer(session.picture(0), np.uint8), cv2.IMREAD_COLOR)
    assert saved.shape == (1200, 3200, 3)
    # The outline is where the cell is: at half the size on screen.
    assert np.abs(session.preview(0)[25, 5:8].astype(int) - 200).max() > 50


def test_large_fields_are_seen_in_tiles_a_batch_at_a_time(photograph, large):
    predictor, session, heard = OneEach(), Session(CONFIG), []
    session.add(large)
    session.add(photograph)
    session.run(partial(detect_image, predictor), lambda *progress: heard.append(progress))
    tiles = session.fields[0].seen.tiles
    assert sum(predictor.batches) == tiles + 1 > 2 * predictor.batch_size
    assert max(predictor.batches) == predictor.batch_size
    assert heard[0] == ("large.jpg", 0, 0, tiles) and ("large.jpg", 0, tiles, tiles) in heard
    assert heard[-1] == ("field.png", 1, 1, 1) and session.fields[1].seen.tiles == 1


def test_a_run_can_be_stopped_at_a_tile(session, photograph):
    heard = []
    for name in ("a.png", "b.png", "c.png"):
        session.add(photograph, name)

    def slow(image, tiling, um_in_file, on_tiles):
        for done in range(4):
            on_tiles(done, 4)
            heard.append(done)
            if done == 1 and len(session.waiting) == 2:
                session.stop()
        return nothing(image)

    session.run(slow)
    assert heard == [0, 1, 2, 3, 0, 1] and names_of(session) == ["field.png", "a.png"]
    assert session.next_refused() == ["b.png and 1 more: stopped, not looked at."]
    add(session, photograph, nothing, "d.png")
    assert names_of(session)[-1] == "d.png" and session.waiting == []


def test_clearing_while_a_field_is_detected(photograph):
    session = Session(CONFIG)

    def cleared(image, tiling, um_in_file, on_tiles):
        session.clear()
        return nothing(image)

    add(session, photograph, cleared)
    assert session.fields == session.waiting == []


def test_one_run_does_all(photograph):
    """A second drop while the first is under way: its images are done, too, and not twice."""
    session, done = Session(CONFIG), []
    session.add(photograph, "first.png")

    def second(image, tiling, um_in_file, on_tiles):
        if not done:
            session.add(photograph, "second.png")
            session.run(second)  # as another thread would
        done.append(image.shape)
        return nothing(image)

    session.run(second)
    assert names_of(session) == ["first.png", "second.png"] and len(done) == 2


def test_detected_again_at_another_scale(large):
    session = Session(CONFIG)
    detect = partial(detect_image, OneEach())
    add(session, large, detect)
    add(session, large, detect, "other.jpg")
    assert session.outdated == [] and session.fields[0].seen.tiles > 8
    session.set_scale(0.014)
    session.waiting += session.outdated
    assert len(session.waiting) == 2 and session.outdated == []  # a double click adds nothing
    session.run(detect)
    assert session.outdated == [] and names_of(session) == ["large.jpg", "other.jpg"]
    assert session.fields[0].seen.tiles == 1
    session.set_scale(None)
    session.waiting += session.outdated
    session.stop()
    assert len(session.fields) == 2  # what there was stays


def visit(sessions, visitor, photograph):
    """An upload of a visitor, looked at; the name tells whose it is."""
    sessions.add(visitor, photograph, f"{visitor}.png")
    sessions[visitor].run(three)


def test_visitors_are_apart_and_forgotten_when_they_leave(photograph):
    sessions = Sessions(lambda: Session(CONFIG), memory_bytes=10**9)
    visitors = [f"visitor-{number}" for number in range(60)]
    for visitor in visitors:
        visit(sessions, visitor, photograph)
    assert [names_of(sessions[visitor]) for visitor in visitors] == [[f"{one}.png"] for one in visitors]
    first = sessions["visitor-0"]
    first.add(photograph)
    sessions.forget("visitor-0")
    assert first.waiting == []  # nobody waits for it
    assert sessions["visitor-0"].fields == []
    sessions.forget("never seen")


def test_the_memory_is_for_those_who_use_their_page(photograph):
    sample = Session(CONFIG)
    add(sample, photograph, three)
    assert photograph.stat().st_size < sample.size < 10_000

    busy = Sessions(lambda: Session(CONFIG), memory_bytes=2 * sample.size)
    for visitor in ("a", "b", "late"):
        visit(busy, visitor, photograph)
    assert names_of(busy["a"]) == ["a.png"] and names_of(busy["b"]) == ["b.png"]
    assert busy["late"].fields == []
    assert busy["late"].next_refused()[0].startswith("late.png: the page has no memory")

    idle = Sessions(lambda: Session(CONFIG), memory_bytes=2 * sample.size + 100, idle_seconds=0)
    for visitor in ("a", "b"):
        visit(idle, visitor, photograph)
    working = idle["c"]
    working.add(photograph, "c.png")  # and waits to be looked at
    assert idle["a"].fields  # "b" is now the one idle for longest
    visit(idle, "d", photograph)
    assert idle["b"].fields == [] and idle["c"] is working and working.waiting
    assert names_of(idle["a"]) == ["a.png"] and names_of(idle["d"]) == ["d.png"]


def test_an_upload_is_taken_once():
    session = Session(CONFIG)
    assert session.take(["a", "b"]) == {"a", "b"} and session.take(["b", "c"]) == {"c"}


def test_a_small_image_is_served_between_the_batches_of_a_large_one():
    started, asked, go = threading.Event(), threading.Event(), threading.Event()

    class Held(OneEach):
        def stream(self, images):
            started.set()
            assert go.wait(60)
            return super().stream(images)

    def one():
        yield np.zeros((480, 640, 3), np.uint8)
        asked.set()

    predictor = Held()
    shared = SharedPredictor(predictor)
    field = np.zeros((1200, 3200, 3), np.uint8)
    threads = [
        threading.Thread(target=detect_image, args=(shared, field, Tiling())),
        threading.Thread(target=shared.stream, args=(one(),)),
    ]
    for thread, event in zip(threads, (started, asked), strict=True):
        thread.start()
        assert event.wait(60)
    time.sleep(0.2)
    go.set()
    for thread in threads:
        thread.join(60)
    assert predictor.batches[:3] == [4, 1, 8], "four tiles tell the scale, and then come all"


def test_an_error_in_a_batch_is_the_callers_and_the_next_is_served():
    shared = SharedPredictor(OneEach())
    with pytest.raises(AttributeError):
        shared.stream(["no image"])
    assert len(list(shared.stream([np.zeros((480, 640, 3), np.uint8)]))) == 1


def test_markup_escapes_what_visitors_send(photograph):
    names = ("<b>", "RBC")
    session = Session(ModelConfig(class_names=names))
    for _ in range(2):
        add(
            session,
            photograph,
            lambda *_, **__: seen(Detections.empty((100, 80), names)),
            "<img src=x onerror=1>.png",
        )
    parts = [markup.picture(session, 0), markup.counts(session, 0), markup.all_images(session)]
    parts += [markup.refused(["<script>"]), markup.header(session.class_names, local=True)]
    for part in parts:
        assert "<img src=x" not in part and "<script>" not in part and "<b>," not in part
    assert "n/a" in markup.counts(session, 0) and "n/a" in markup.histogram(session, 0)
    assert markup.refused([]).strip() == "" and "not validated for diagnosis" in parts[-1]


@pytest.mark.parametrize("largest", [0.0, 0.3, 7.5, 99.9, 100.0, 249.0, 5000.0])
def test_bins_cover_the_sizes(largest):
    edges = markup.bin_edges(np.array([0.0, largest]))
    assert edges[0] == 0 and edges[-1] > largest and 5 <= len(edges) - 1 <= 25 and (len(edges) - 1) % 5 == 0


def test_the_histogram_counts_every_cell(session):
    session.set_thresholds({"WBC": 0.05, "RBC": 0.05})
    html = markup.histogram(session, 0)
    assert html.count("<i ") == 2 and "20 to 22 px: 1 RBC" in html and "micrometers" not in html


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match=r"ssdlib\[app\]"):
        launch.serve(OneEach())


def test_the_old_gradio_of_colab_is_named(monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: name)
    monkeypatch.setattr(launch, "version", lambda name: "5.50.0")
    with pytest.raises(ConfigError, match=r"Gradio 5\.50\.0 is too old.*ssdlib\[app\]"):
        launch.open_inline(OneEach())


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_page_asks_for_itself_past_a_proxy(monkeypatch, host):
    pytest.importorskip("gradio")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: nobody answers
    monkeypatch.setenv("no_proxy", "intra.example")
    monkeypatch.setenv("NO_PROXY", "")
    blocks, address = launch._page(host).launch_page(OneEach(), server_name=host)
    try:
        assert urlopen(address.replace("0.0.0.0", "127.0.0.1"), timeout=10).status == 200
    finally:
        blocks.close(verbose=False)
    assert os.environ["no_proxy"].split(",")[:2] == ["intra.example", "127.0.0.1"]


def test_without_a_proxy_the_environment_is_left_alone(monkeypatch):
    monkeypatch.setattr(launch, "getproxies_environment", dict)
    monkeypatch.delenv("no_proxy", raising=False)
    launch._spare_proxies(["a.example"])
    assert "no_proxy" not in os.environ


def test_the_steps_of_gradio_that_are_replaced(tmp_path, monkeypatch):
    """As of Gradio 6.31. If this fails with another version, see `upload_box`."""
    gradio = pytest.importorskip("gradio")
    from gradio.processing_utils import async_move_files_to_cache

    from ssdlib.tools.app.page import upload_box

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    path = photograph_of(tmp_path / "uploads.png", 80, 100)
    box = upload_box(Limits())

    def arrive(sent):
        file = {"path": sent, "orig_name": "µ.png", "meta": {"_type": "gradio.FileData"}}
        return box.preprocess(box.data_model(asyncio.run(async_move_files_to_cache([file], box))))

    (file,) = arrive(str(path))
    assert (file.path, file.orig_name) == (str(path), "µ.png")
    assert list(tmp_path.rglob("*.*")) == [path]  # neither copied nor marked by an empty file
    with pytest.raises(gradio.Error, match="Send the image itself"):
        arrive("http://127.0.0.1:1/x.png")


def test_all_fields_are_one_slide_with_notes_on_quality(session, tmp_path):
    add(session, photograph_of(tmp_path / "blank.png", 80, 100), nothing)
    slide = session.slide()
    assert (slide.fields, slide.counts, slide.noted) == (2, {"WBC": 1, "RBC": 0}, 2)
    assert "As one slide: 2 fields" in markup.all_images(session)
    assert [field.quality for field in session.fields] == [("out of focus",), ("almost blank",)]
    assert "almost blank" in markup.picture(session, 1) and "almost blank" not in markup.picture(session, 0)
