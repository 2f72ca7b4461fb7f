"""What a visitor does: upload, slide, save, bring broken and huge files, on a screen and on a phone."""

import base64
import csv
import gc
import io
import json
import re
import socket
import threading
import time
import weakref
from pathlib import Path
from uuid import uuid4

import cv2
import numpy as np
import pytest

from ssdlib.common.paths import project_root
from ssdlib.config import ModelConfig
from ssdlib.data.images import encode_image, read_image
from ssdlib.inference.detections import Detections
from tests.tools.test_app_uploads import png

pytestmark = pytest.mark.browser

SMEARS = sorted((project_root() / "data/samples/JPEGImages").glob("*.jpg"))


def sent(name, content):
    """A file of the visitor's that is on no disk here."""
    return {"name": name, "mimeType": "image/png", "buffer": content}


def upload(page, *files):
    page.locator("#ssd-upload input[type=file]").set_input_files(list(files))


def counts(page):
    tiles = page.locator(".ssd-tile")
    return {tile.get_attribute("data-class"): int(tile.locator("b").inner_text()) for tile in tiles.all()}


def wait_for_image(page, name):
    page.locator(".ssd-picture figcaption b", has_text=name).wait_for()


def set_threshold(page, number, value):
    page.locator(f"#ssd-threshold-{number} input[type=range]").fill(str(value))


def wait_until(condition):
    """The page is told of a change a moment later."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "the page did not follow"
        time.sleep(0.05)


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def saved(page, kind):
    with page.expect_download() as download:
        page.get_by_role("button", name=f"Save {kind}").click()
    return download.value.suggested_filename, download.value.path().read_bytes()


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_upload_slide_and_save(open_page, shots, temporary, scheme):
    page = open_page(scheme=scheme)
    page.screenshot(path=shots / f"start-{scheme}.png")
    upload(page, SMEARS[0], SMEARS[2])
    wait_for_image(page, SMEARS[2].name)
    found = counts(page)
    assert found["RBC"] > 5 and found["WBC"] >= 1
    assert page.locator(".ssd-each tbody tr").count() == 3  # with their sum
    page.screenshot(path=shots / f"two-images-{scheme}.png", full_page=True)
    # The uploads are gone from the disk as soon as they have been read.
    assert files_in(temporary) == []

    set_threshold(page, 2, 1)
    wait_until(lambda: counts(page)["RBC"] < found["RBC"])
    assert counts(page)["WBC"] == found["WBC"]
    set_threshold(page, 2, 0.05)
    wait_until(lambda: counts(page)["RBC"] >= found["RBC"])
    set_threshold(page, 2, 0.5)
    wait_until(lambda: counts(page) == found)

    page.locator("#ssd-scale input").fill("0.1")
    wait_until(lambda: "micrometers" in page.locator(".ssd-sizes").inner_text())
    name, content = saved(page, "CSV")
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))
    assert name == "cells.csv" and {row["image"] for row in rows} == {SMEARS[0].name, SMEARS[2].name}
    shown = [row for row in rows if row["image"] == SMEARS[2].name]
    assert len(shown) == sum(found.values()) and float(shown[0]["width_um"]) > 1
    records = json.loads(saved(page, "JSON")[1])
    assert records[1]["counts"] == found and records[0]["um_per_pixel"] == 0.1
    name, content = saved(page, "picture")
    assert name == f"{SMEARS[2].stem}-cells.jpg"
    assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape == (480, 640, 3)

    page.get_by_role("button", name="Clear the page").click()
    page.locator(".ssd-picture").wait_for(state="hidden")


def test_broken_files_are_named_and_the_rest_is_done(open_page, shots):
    page = open_page()
    script = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
    files = [
        sent("text.png", b"not an image"),
        sent("half.jpg", SMEARS[1].read_bytes()[:9000]),
        sent("bomb.png", png(60_000, 60_000)),
        sent("<img src=x onerror=alert(1)>.png", script),
        sent("empty.png", b""),
        sent("good.jpg", SMEARS[0].read_bytes()),
    ]
    page.on("dialog", lambda dialog: pytest.fail("a script of an upload ran"))
    upload(page, *files)
    wait_for_image(page, "good.jpg")
    refused = page.locator(".ssd-refused li")
    assert refused.count() == 5
    text = page.locator(".ssd-refused").inner_text()
    for words in (
        "text.png is not",
        "half.jpg is truncated",
        "bomb.png is too large",
        "<img src=x",
        "empty.png is",
    ):
        assert words in text
    assert page.locator(".ssd-each").count() == 0
    page.screenshot(path=shots / "broken.png", full_page=True)


def test_a_file_beyond_the_limit_is_refused_before_it_is_read(open_page, tmp_path, temporary):
    page = open_page()
    large = tmp_path / "large.png"
    large.write_bytes(b"\x89PNG" + bytes(21_000_000))
    upload(page, large)
    page.get_by_text(re.compile("maximum allowed size", re.I)).first.wait_for()
    upload(page, SMEARS[0])
    wait_for_image(page, SMEARS[0].name)
    assert files_in(temporary) == []


def test_uploads_in_quick_succession_all_arrive(open_page, own_server):
    """Gradio's box changes its input several times an upload; what is chosen meanwhile must not be lost."""
    page = open_page(address=own_server(Scripted()))
    content = encode_image(np.full((90, 120, 3), 210, np.uint8), ".png")
    names = [f"{number:02}.png" for number in range(20)]
    for name in names:
        upload(page, sent(name, content))
        page.wait_for_timeout(60)
    rows = page.locator(".ssd-each tbody td:first-child")
    wait_until(lambda: rows.all_inner_texts() == [*names, "all 20"])
    assert page.locator(".ssd-refused").count() == 0


def test_a_drop_with_a_hidden_and_a_huge_file(open_page, own_server):
    page = open_page(address=own_server(Scripted()))
    page.locator("#ssd-upload").evaluate(
        """(box, content) => {
          const data = new DataTransfer();
          const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
          for (const [name, part] of [['a.png', bytes], ['._a.png', 'x'], ['huge.png', new Uint8Array(21e6)]])
            data.items.add(new File([part], name, {type: 'image/png'}));
          const drop = new DragEvent('drop', {dataTransfer: data, bubbles: true});
          box.querySelector('button').dispatchEvent(drop);
        }""",
        base64.b64encode(encode_image(np.full((90, 120, 3), 210, np.uint8), ".png")).decode(),
    )
    wait_for_image(page, "a.png")
    page.get_by_text("._a.png is a hidden file").wait_for()
    page.get_by_text(re.compile("maximum allowed size", re.I)).first.wait_for()


def test_who_waits_sees_it(open_page, own_server, shots):
    detector = Scripted(holds=True)
    address = own_server(detector)
    pages = [open_page(address=address) for _ in range(4)]  # three are looked at at a time
    for page in pages:
        upload(page, large_field())
        page.get_by_text(re.compile(r"large\.jpg|queue: \d")).first.wait_for()
    pages[-1].get_by_text(re.compile(r"queue: 1/1")).wait_for()
    pages[-1].screenshot(path=shots / "waits.png")
    detector.free.release(500)
    for page in pages:
        wait_for_image(page, "large.jpg")


def test_fifty_megapixels(open_page, shots, tmp_path):
    page = open_page()
    tile = cv2.resize(read_image(SMEARS[2]), None, fx=7, fy=7, interpolation=cv2.INTER_LINEAR)
    image = np.tile(tile, (2, 2, 1))[:5800, :8700]
    assert image.shape[0] * image.shape[1] > 50e6
    path = tmp_path / "field.jpg"
    path.write_bytes(encode_image(image, quality=80))
    # A camera of so many pixels sees finer than the training images: one of theirs is seven of its own.
    page.locator("#ssd-scale input").fill("0.0103")
    upload(page, path)
    wait_for_image(page, "field.jpg")
    assert "8700 × 5800" in page.locator(".ssd-picture figcaption").inner_text()
    assert counts(page)["RBC"] > 20
    page.screenshot(path=shots / "fifty-megapixels.png", full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_cut_off(open_page, shots, scheme):
    page = open_page(390, 844, scheme, has_touch=True, is_mobile=True)
    for number in (1, 3):
        page.get_by_role("button", name=f"Smear {number}", exact=True).tap()
        wait_for_image(page, SMEARS[number - 1].name)
    page.wait_for_timeout(500)  # until the page has settled
    page.screenshot(path=shots / f"phone-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    table = page.locator(".ssd-each .scroll")
    assert table.evaluate("(table) => table.scrollWidth <= table.clientWidth")
    assert page.get_by_text("Not a medical device").is_visible()
    if scheme == "dark":
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", color)[:3])) < 60


class Scripted:
    """A detector that counts its batches, and waits before each for `free` where it `holds`."""

    config = ModelConfig(class_names=("WBC", "RBC"))
    class_names = config.class_names
    batch_size = 8

    def __init__(self, holds=False):
        self.batches, self.holds, self.free = [], holds, threading.Semaphore(0)
        self.held = threading.Event()

    def stream(self, images):
        images = list(images)
        if self.holds and len(images) == self.batch_size:  # large fields only
            self.held.set()
            self.free.acquire(timeout=60)
        self.batches.append(len(images))
        for image in images:
            size = (image.shape[1], image.shape[0])
            yield Detections(
                [[9, 9, 99, 99], [200, 200, 300, 290]], [0.9, 0.3], [1, 2], size, self.class_names
            )


def large_field(side=3000, name="large.jpg"):
    return sent(name, encode_image(np.full((side, side, 3), 210, np.uint8)))


def test_sliders_do_not_run_the_network(open_page, own_server):
    detector = Scripted()
    page = open_page(address=own_server(detector))
    page.get_by_role("button", name="Smear 1", exact=True).click()
    wait_for_image(page, SMEARS[0].name)
    assert counts(page) == {"WBC": 1, "RBC": 0}
    looked = list(detector.batches)
    set_threshold(page, 2, 0.1)
    wait_until(lambda: counts(page) == {"WBC": 1, "RBC": 1})
    set_threshold(page, 1, 0.95)
    wait_until(lambda: counts(page) == {"WBC": 0, "RBC": 1})
    assert detector.batches == looked


def test_a_large_field_shows_how_far_it_is_lets_others_pass_and_stops(open_page, own_server, shots, tmp_path):
    detector = Scripted(holds=True)
    address = own_server(detector)
    page = open_page(address=address)
    upload(page, large_field(5000), large_field(name="next.jpg"))
    detector.free.release()
    page.get_by_text(re.compile(r"large\.jpg, image 1 of 2, 12 of \d+ tiles")).wait_for()
    # What has come is in memory, and nothing on the disk, while it is looked at.
    assert files_in(tmp_path) == []
    stop = page.get_by_role("button", name="Stop")
    page.wait_for_timeout(1000)  # until it has appeared
    page.screenshot(path=shots / "at-work.png")

    other = open_page(address=address)
    other.get_by_role("button", name="Smear 1", exact=True).click()
    for _ in range(15):  # of the 20 batches of the large field
        detector.free.release()
        other.wait_for_timeout(1000)
        if served := other.locator(".ssd-picture").count():
            break
    assert served and 1 in detector.batches
    assert page.locator(".ssd-picture").count() == 0  # what others see is theirs alone

    stop.click()
    detector.free.release(50)
    page.get_by_text("large.jpg and 1 more: stopped, not looked at.").wait_for()
    stop.wait_for(state="hidden")
    assert page.locator(".ssd-picture").count() == 0
    page.get_by_role("button", name="Smear 2", exact=True).click()
    wait_for_image(page, SMEARS[1].name)


def test_looked_at_again_when_the_scale_is_given(open_page, own_server, shots):
    detector = Scripted()
    page = open_page(address=own_server(detector))
    upload(page, large_field(1500))
    wait_for_image(page, "large.jpg")
    page.screenshot(path=shots / "no-scale.png", full_page=True)
    tiles = sum(detector.batches)
    page.locator("#ssd-scale input").fill("0.023")
    page.get_by_role("button", name="Look again").click()
    page.get_by_role("button", name="Look again").wait_for(state="hidden")
    assert 0 < sum(detector.batches) - tiles < tiles


@pytest.mark.parametrize(
    "name",
    [
        "Blutbild µ 名 🔬.png",
        "<img src=x onerror=alert(1)>&quot;.png",
        "${alert(1)} {{value}}.png",  # which Gradio's templates would run
        "x" * 240 + ".png",
        "=1+1.png",
    ],
)
def test_names_are_shown_as_text(open_page, own_server, name):
    page = open_page(390, 844, address=own_server(Scripted()))
    page.on("dialog", lambda dialog: pytest.fail("a script in a name ran"))
    content = encode_image(np.full((90, 120, 3), 210, np.uint8), ".png")
    upload(page, *[sent(name, content)] * 2)
    caption = page.locator(".ssd-picture figcaption b")
    caption.wait_for()
    shown = name if len(name) < 80 else f"{name[:60]}…{name[-19:]}"
    # Gradio keeps a few characters of a name from the disk; what it keeps is text on the page.
    assert caption.inner_text() == page.locator(".ssd-each tbody td").first.inner_text() == shown
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_only_this_computer_can_open_it(server):
    port = int(server.rstrip("/").rsplit(":", 1)[1])
    assert server.startswith("http://127.0.0.1:")
    socket.create_connection(("127.0.0.1", port), 5).close()
    with pytest.raises(OSError):  # another address of the same computer
        socket.create_connection(("127.0.0.2", port), 5)


@pytest.fixture
def program(server):
    """A visitor without a browser: sends an upload's record as it likes, gives what the page would show."""
    httpx = pytest.importorskip("httpx")
    with httpx.Client(base_url=f"{server.rstrip('/')}/gradio_api", timeout=60) as client:
        functions = client.get(f"{server.rstrip('/')}/config").json()["dependencies"]
        begin = next(one for one in functions if one["targets"][0][1] == "upload")["id"]

        def send(record):
            body = {"fn_index": begin, "data": [[record]], "session_hash": uuid4().hex}
            return client.post("/run/predict", json=body)

        client.send_record = send
        yield client


@pytest.mark.parametrize(
    "name", ["../../x.png", "..\\..\\x.png", "/etc/x.png", "a\x00b.png", ".", "x" * 100_000]
)
def test_uploads_stay_in_their_folder(program, temporary, name):
    answer = program.post("/upload", files={"files": (name, SMEARS[0].read_bytes(), "image/png")})
    assert answer.status_code in (200, 400, 413)
    arrived = [Path(path) for path in answer.json()] if answer.status_code == 200 else []
    folder = next(temporary.glob("ssdlib-app-*"))
    assert all(path.resolve().is_relative_to(folder) for path in arrived)
    for path in arrived:
        program.send_record({"path": str(path), "orig_name": name, "meta": {"_type": "gradio.FileData"}})
    assert files_in(temporary) == []


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_files_of_the_server_and_other_hosts_are_out_of_reach(program, tmp_path, meta, stream):
    secret = tmp_path / "secret.png"
    secret.write_bytes(SMEARS[0].read_bytes())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        for path in (str(secret), url, "http://example.invalid/x.png"):
            answer = program.send_record({"path": path, "is_stream": stream, **meta})
            assert answer.status_code == 500 or answer.json()["data"][1]["visible"] is False, answer.text
        with pytest.raises(TimeoutError):
            listener.accept()
    assert secret.is_file()
    assert program.get(f"/file={secret}").status_code in (403, 404)


def test_a_page_sent_as_an_upload_is_not_shown(program):
    answer = program.post("/upload", files={"files": ("x.html", b"<script>alert(1)</script>", "text/html")})
    path = answer.json()[0]
    kept = program.get(f"/file={path}")
    assert kept.status_code in (403, 404) or "attachment" in kept.headers["content-disposition"]
    program.send_record({"path": path, "meta": {"_type": "gradio.FileData"}})
    assert not Path(path).exists()


def test_a_closed_page_is_forgotten(browser, own_server, monkeypatch):
    from ssdlib.tools.app import page as app_page

    opened, new = [], app_page.Session

    def watched(*arguments):
        session = new(*arguments)
        opened.append(weakref.ref(session))
        return session

    monkeypatch.setattr(app_page, "Session", watched)
    detector = Scripted(holds=True)
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(own_server(detector))
    page.get_by_role("button", name="Smear 1", exact=True).click()
    wait_for_image(page, SMEARS[0].name)
    upload(page, large_field())
    assert detector.held.wait(60)
    page.close()
    wait_until(lambda: not opened[0]().waiting)
    detector.free.release(50)
    wait_until(lambda: gc.collect() >= 0 and opened[0]() is None)
    # The small image at three scales, 6 views; of the large one the tiles that tell its scale, and a batch.
    assert sum(detector.batches) <= 6 + 2 * detector.batch_size
