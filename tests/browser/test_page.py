"""What a visitor does: upload, slide, save, bring broken and huge files, on a screen and on a phone."""

import csv
import io
import json
import re
import struct
import time
import zlib

import cv2
import numpy as np
import pytest

from ssdlib.app.session import Sessions
from ssdlib.data.images import encode_image, read_image
from ssdlib.detections import Detections
from ssdlib.runs import project_root

pytestmark = pytest.mark.browser

SMEARS = sorted((project_root() / "data/samples/JPEGImages").glob("*.jpg"))


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


def saved(page, kind):
    with page.expect_download() as download:
        page.get_by_role("button", name=f"Save {kind}").click()
    return download.value.suggested_filename, download.value.path().read_bytes()


def test_upload_slide_and_save(open_page, shots, temporary):
    page = open_page()
    page.screenshot(path=shots / "start.png")
    upload(page, SMEARS[0], SMEARS[2])
    wait_for_image(page, SMEARS[2].name)
    found = counts(page)
    assert found["RBC"] > 5 and found["WBC"] >= 1
    assert page.locator(".ssd-all tbody tr").count() == 2
    page.screenshot(path=shots / "two-images.png", full_page=True)
    # The uploads are gone from the disk as soon as they have been read.
    assert [path for path in temporary.rglob("*") if path.is_file()] == []

    set_threshold(page, 2, 1)
    wait_until(lambda: counts(page)["RBC"] < found["RBC"])
    assert counts(page)["WBC"] == found["WBC"]
    set_threshold(page, 2, 0.05)
    wait_until(lambda: counts(page)["RBC"] >= found["RBC"])
    set_threshold(page, 2, 0.5)
    wait_until(lambda: counts(page) == found)

    page.locator("#ssd-scale input").fill("0.1")
    wait_until(lambda: "µm" in page.locator(".ssd-ticks").inner_text())
    name, content = saved(page, "CSV")
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert name == "cells.csv" and {row["image"] for row in rows} == {SMEARS[0].name, SMEARS[2].name}
    shown = [row for row in rows if row["image"] == SMEARS[2].name]
    assert len(shown) == sum(found.values()) and float(shown[0]["size_um"]) > 1
    records = json.loads(saved(page, "JSON")[1])
    assert records[1]["counts"] == found and records[0]["um_per_pixel"] == 0.1
    name, content = saved(page, "picture")
    assert name == f"{SMEARS[2].stem}-cells.jpg"
    assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape == (480, 640, 3)

    page.get_by_role("button", name="Clear the page").click()
    page.locator(".ssd-picture").wait_for(state="hidden")


def png_bomb(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6)))


def test_broken_files_are_named_and_the_rest_is_done(open_page, shots):
    page = open_page()
    script = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
    files = [
        {"name": "text.png", "mimeType": "image/png", "buffer": b"not an image"},
        {"name": "half.jpg", "mimeType": "image/jpeg", "buffer": SMEARS[1].read_bytes()[:9000]},
        {"name": "bomb.png", "mimeType": "image/png", "buffer": png_bomb(60_000, 60_000)},
        {"name": "<img src=x onerror=alert(1)>.png", "mimeType": "image/png", "buffer": script},
        {"name": "good.jpg", "mimeType": "image/jpeg", "buffer": SMEARS[0].read_bytes()},
    ]
    page.on("dialog", lambda dialog: pytest.fail("a script of an upload ran"))
    upload(page, *files)
    wait_for_image(page, "good.jpg")
    refused = page.locator(".ssd-refused li")
    assert refused.count() == 4
    text = page.locator(".ssd-refused").inner_text()
    for words in ("text.png is not an image", "half.jpg is truncated", "bomb.png claims", "<img src=x"):
        assert words in text
    assert page.locator(".ssd-all").count() == 0
    page.screenshot(path=shots / "broken.png", full_page=True)


def test_a_file_beyond_the_limit_is_refused_before_it_is_read(open_page, tmp_path, temporary):
    page = open_page()
    large = tmp_path / "large.png"
    large.write_bytes(b"\x89PNG" + bytes(21_000_000))
    upload(page, large)
    page.get_by_text(re.compile("maximum allowed size", re.I)).first.wait_for()
    upload(page, SMEARS[0])
    wait_for_image(page, SMEARS[0].name)
    assert [path for path in temporary.rglob("*") if path.is_file()] == []


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
    page.get_by_role("button", name="Smear 3", exact=True).tap()
    wait_for_image(page, SMEARS[2].name)
    page.wait_for_timeout(500)  # until the page has settled
    page.screenshot(path=shots / f"phone-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.get_by_text("Not a medical device").is_visible()
    if scheme == "dark":
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", colour)[:3])) < 60


def test_visitors_do_not_see_each_other(open_page):
    first, second = open_page(), open_page()
    first.get_by_role("button", name="Smear 1", exact=True).click()
    second.get_by_role("button", name="Smear 6", exact=True).click()
    wait_for_image(first, SMEARS[0].name)
    wait_for_image(second, SMEARS[5].name)
    assert first.locator(".ssd-all").count() == second.locator(".ssd-all").count() == 0


def test_a_closed_page_is_forgotten(browser, monkeypatch, tmp_path):
    pytest.importorskip("gradio", reason="needs the extra app")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    from ssdlib.app import page as app_page

    opened = []

    class Watched(Sessions):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            opened.append(self)

    class Blind:
        class_names = ("WBC", "RBC")

        def stream(self, images):
            for image in images:
                yield Detections.empty((image.shape[1], image.shape[0]), self.class_names)

    monkeypatch.setattr(app_page, "Sessions", Watched)
    blocks = app_page.build_page(Blind())
    _, address, _ = blocks.launch(**app_page.launch_options(), server_name="127.0.0.1", share=False)
    try:
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(address)
        page.get_by_role("button", name="Smear 1", exact=True).click()
        wait_for_image(page, SMEARS[0].name)
        assert len(opened[0]) == 1
        page.close()
        wait_until(lambda: len(opened[0]) == 0)
    finally:
        blocks.close(verbose=False)
