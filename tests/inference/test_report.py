"""The report of detect: what it shows, hostile names, its limits, and a run of the command line."""

from __future__ import annotations

import csv
import io
import re
from urllib.parse import unquote

import numpy as np
import pytest
from bs4 import BeautifulSoup

from ssdlib.__main__ import main
from ssdlib.common.paths import project_root
from ssdlib.data.images import write_image
from ssdlib.inference import report
from ssdlib.inference.inputs import find_images
from ssdlib.inference.report import REPORT, write_report
from ssdlib.inference.slides import parse_group, slides_of
from tests.inference.test_slides import NAMES, record

SAMPLES = project_root() / "data/samples/JPEGImages"


def written(out, folder, records, group=None, **more) -> BeautifulSoup:
    """The report on the images in `folder`, whose records are `records` in order of their names."""
    tasks = find_images([folder])
    records = [{**one, "image": task.shown} for task, one in zip(tasks, records, strict=True)]
    slides, together = slides_of(records, NAMES, group=group)
    read = lambda: zip(tasks, records, strict=True)  # noqa: E731
    write_report(out, read, slides, together, {"Weights": "w<1>"}, group=group, **more)
    return BeautifulSoup((out / REPORT).read_text(encoding="utf-8"), "html.parser")


def images(folder, *names):
    for name in names:
        write_image(folder / name, np.full((48, 64, 3), 200, np.uint8))


def test_hostile_names_are_text_and_links_lead_to_the_picture(tmp_path):
    names = ["<script>alert(1)<", "a#b?c=%41&d", "ä ' \" x"]
    names = [f"{folder}/1.png" for folder in names[:1]] + [f"f/{name}.png" for name in names[1:]]
    names = [name.replace("?", "+") for name in names]
    images(tmp_path / "in", *names)
    page = written(tmp_path, tmp_path / "in", [record(rbc=1, quality=["too dark"])] * 3)
    assert not page.find_all("script")
    assert [h.text for h in page.select("h2[id]")] == [
        (tmp_path / "in" / folder).as_posix() for folder in ("<script>alert(1)<", "f")
    ]
    expected = [f"pictures/{task.name}.png" for task in find_images([tmp_path / "in"])]
    links = [a["href"] for a in page.select(".fields a")]
    assert sorted(map(unquote, links)) == sorted(expected)
    assert not any(re.search(r"[\s#?<>\"']", link) for link in links)
    assert page.find(string="w<1>")


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    images(tmp_path / "in", "a/1.png", "b/1.png")
    page = written(tmp_path, tmp_path / "in", [record(rbc=3), record(rbc=5)])
    assert all(img["src"].startswith("data:image/jpeg;base64,") for img in page.find_all("img"))
    assert len(page.find_all("img")) == 2 and not page.find_all(["link", "script", "iframe"])
    assert all(a["href"].startswith(("#slide-", "pictures/")) for a in page.find_all("a"))


def test_figures_of_slides_and_of_all(tmp_path):
    images(tmp_path / "in", "S1_a.png", "S1_b.png", "S2_a.png")
    given = [record(wbc=1, rbc=20), record(wbc=1, rbc=24), record(rbc=6, quality=["unsure"])]
    page = written(tmp_path, tmp_path / "in", given, parse_group(r"(S\d)_"))
    rows = [[cell.text for cell in row.find_all("td")] for row in page.find("table").select("tbody tr")]
    assert [row[:4] for row in rows] == [
        ["S1", "2", "2", "44"], ["S2", "1", "0", "6"], ["all", "3", "2", "50"],
    ]  # fmt: skip
    assert [row[-1] for row in rows] == ["", "1", "1"]
    assert page.select_one("svg.histogram") and "1 of 3 fields have notes" in page.select_one(".notice").text
    assert [note.text for note in page.select(".quality")] == ["unsure"]


def test_the_page_has_limits_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MOST_SLIDES", 2)
    monkeypatch.setattr(report, "MOST_THUMBNAILS", 4)
    images(tmp_path / "in", *(f"{slide}/{n}.png" for slide in "abc" for n in range(4)))
    given = [record(rbc=1, quality=["too dark"] if n == 3 else []) for _ in "abc" for n in range(4)]
    page = written(tmp_path, tmp_path / "in", given, pictures=False)
    assert len(page.select("section")) == 2 and len(page.find_all("img")) == 4
    assert page.text.count("2 more fields of this slide are not shown") == 2
    assert "1 more slide" in page.text and not page.select(".fields a")
    assert "too dark" in page.select("section")[0].text, "the last field is shown, since it has a note"
    assert page.find("table").select("tbody tr")[-1].text.split()[:2] == ["all", "12"]


def test_images_that_are_gone_or_could_not_be_read_are_named(tmp_path):
    images(tmp_path / "in", "1.png", "2.png")
    tasks = find_images([tmp_path / "in"])
    bad = {"image": tasks[1].shown, "state": "unreadable", "message": "damaged <b>"}
    records = [{**record(rbc=1), "image": tasks[0].shown}, bad]
    tasks[0].path.unlink()
    slides, together = slides_of(records, NAMES)
    write_report(tmp_path, lambda: zip(tasks, records, strict=True), slides, together, {})
    page = BeautifulSoup((tmp_path / REPORT).read_text(encoding="utf-8"), "html.parser")
    assert page.select_one(".missing") and "damaged <b>" in page.text


@pytest.fixture(scope="module")
def detected(tmp_path_factory):
    """What the command line makes of the samples."""
    out = tmp_path_factory.mktemp("detected")
    words = ["detect", str(SAMPLES), "--out", str(out), "--quiet", "--device", "cpu"]
    assert main([*words, "--um-per-pixel", "0.072", "--group", r"(Smear)Image"]) == 0
    return out


def test_detect_writes_slides_and_a_report(detected):
    (slide,) = csv.DictReader(io.StringIO((detected / "slides.csv").read_text("utf-8-sig")))
    cells = list(csv.DictReader(io.StringIO((detected / "cells.csv").read_text("utf-8-sig"))))
    red = [row for row in cells if row["class"] == "RBC"]
    assert slide["slide"] == "Smear" and slide["fields"] == "6" and slide["border"] == "all"
    assert int(slide["RBC"]) == len(red) and slide["diameter_unit"] == "µm"
    assert 6 < float(slide["diameter_median"]) < 9 and float(slide["WBC_per_100_RBC"]) > 0
    page = BeautifulSoup((detected / REPORT).read_text(encoding="utf-8"), "html.parser")
    links = [unquote(a["href"]) for a in page.select(".fields a")]
    assert len(links) == 6 and all((detected / link).is_file() for link in links)
    assert "0.072 µm per pixel" in page.text and "(Smear)Image" in page.text


def test_a_pattern_without_a_group_is_refused_before_anything_is_done(tmp_path, capsys):
    assert main(["detect", str(SAMPLES), "--out", str(tmp_path / "out"), "--group", "Smear"]) == 1
    assert "has 0 groups" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_another_pattern_needs_no_new_detection(detected, capsys):
    words = ["detect", str(SAMPLES), "--out", str(detected), "--quiet", "--device", "cpu"]
    assert main([*words, "--um-per-pixel", "0.072", "--group", r"_0000(\d)"]) == 0
    assert "6 images had been done before" in capsys.readouterr().err
    assert len((detected / "slides.csv").read_text().splitlines()) == 7
