"""Pages of label errors and of detected images, and model cards: drawn names and notes stay text."""

import re
from dataclasses import asdict

import mistune
import numpy as np
import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st

from ssdlib.common.errors import SsdError
from ssdlib.config import ModelConfig
from ssdlib.data.dataset import DetectionDataset, Sample
from ssdlib.data.images import write_image
from ssdlib.detector.model_file import save_model
from ssdlib.detector.weights import build_model
from ssdlib.inference import report
from ssdlib.inference.inputs import ImageTask
from ssdlib.inference.slides import slides_of
from ssdlib.runs import model_card
from ssdlib.tools.label_errors.pages import contact_sheet, write_page
from ssdlib.tools.label_errors.rank import KINDS, LabelIssue
from tests.fuzz.cases import NAMES, NUMBERS, attempt, fuzzed, nothing_changed
from tests.fuzz.pages import assert_harmless, markup
from tests.inference.test_slides import record

TEXT = st.sampled_from(NAMES) | markup()


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "a.png"
    write_image(path, np.full((48, 64, 3), 200, np.uint8))
    return path


@fuzzed(25)
@given(st.data())
def test_pages_of_label_errors(tmp_path_factory, image, data):
    number = (
        st.sampled_from([0.0, 5.0, 30.0, *NUMBERS])
        if data.draw(st.booleans())
        else st.sampled_from([5.0, 30.0])
    )
    text = data.draw(TEXT)
    issue = LabelIssue(
        "id", text, data.draw(st.sampled_from(list(KINDS))), data.draw(TEXT), (5.0, 5.0, 20.0, 20.0), 0.9,
        data.draw(st.sampled_from([None, 1])), data.draw(TEXT | st.none()), None, data.draw(TEXT), 0.5, 0.5,
    )  # fmt: skip
    box = st.tuples(number, number, number, number)
    drawn = asdict(issue) | {"box": data.draw(box), "proposed_box": data.draw(box | st.none())}
    read = attempt(LabelIssue.from_dict, drawn)
    if isinstance(read, SsdError):
        read = issue
    boxes, labels = np.array([read.box], float), np.array([1])
    known = DetectionDataset([Sample(text, image, 64, 48, boxes, labels)], (read.class_name, "b"))
    folder = tmp_path_factory.getbasetemp() / "label-errors"
    (folder / "out").mkdir(parents=True, exist_ok=True)
    with nothing_changed(folder):
        file = folder / "out/page.html"
        assert not isinstance(
            attempt(write_page, [read], known, file, title=text, notice=data.draw(TEXT)), SsdError
        )
        assert_harmless(file)
    assert attempt(contact_sheet, [read], known, text).ndim == 3


@fuzzed(25)
@given(st.data())
def test_reports_of_detected_images(tmp_path_factory, image, data):
    classes = ("RBC", *data.draw(st.lists(TEXT, min_size=1, max_size=2, unique=True)))
    name, message = data.draw(TEXT), data.draw(TEXT)
    one = record(name, rbc=2, quality=["too dark"])
    one["counts"] = dict.fromkeys(classes, 1)
    one["detections"] = [{**one["detections"][0], "label": label} for label in classes]
    bad = {"image": data.draw(TEXT), "state": "unreadable", "message": message}
    pairs = [(ImageTask(image, name), one), (ImageTask(image, "b"), bad)]
    slides, together = slides_of([one, bad], classes)
    folder = tmp_path_factory.getbasetemp() / "detected"
    (folder / "out").mkdir(parents=True, exist_ok=True)
    with nothing_changed(folder):
        settings = {data.draw(TEXT): data.draw(TEXT)}
        attempt(report.write_report, folder / "out", lambda: pairs, slides, together, settings)
        assert_harmless(folder / "out/report.html")


@fuzzed(10)
@given(st.data())
def test_model_cards(tmp_path_factory, smears_source, data):
    folder = tmp_path_factory.getbasetemp() / "card"
    (folder / "out").mkdir(parents=True, exist_ok=True)
    classes = tuple(data.draw(st.lists(TEXT.filter(bool), min_size=1, max_size=2, unique=True)))
    config = attempt(lambda: ModelConfig(class_names=classes, width=0.0625, batch_norm=True))
    weights = folder / "out/w.safetensors"
    about = {name: data.draw(TEXT) for name in ("training", "seed", "precision", "epoch")}
    recipe = {name: data.draw(TEXT) for name in ("name", "optimizer", "augment", "initial_weights")}
    described = {"fingerprint": data.draw(TEXT)}
    saved = attempt(save_model, build_model(config), weights, recipe=recipe, data=described, **about)
    if isinstance(saved, SsdError):
        return
    one = {"value": 0.5, "low": 0.4, "high": 0.6}
    judged = {
        "images": 1,
        "map_50": 0.5,
        "per_class": {name: {"ap_50": 0.5} for name in classes},
        "data": {},
        "intervals": {"samples": 1, "per_class": dict.fromkeys(classes, one), "classes": {}, "map_50": one},
    }
    with nothing_changed(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssdlib.evaluation.evaluate.evaluate_split", lambda *_, **__: judged)
        attempt(model_card.write_card, weights, [(smears_source, data.draw(TEXT), ["val"])], device="cpu")
        card = weights.with_suffix(".md")
        if card.exists():
            page = BeautifulSoup(
                mistune.create_markdown(escape=False, plugins=["table"])(card.read_text()), "lxml"
            )
            assert not page.find_all(
                ["script", "img", "iframe", "object", "embed", "form", "style", "svg", "meta"]
            )
            for element in page.find_all(True):
                assert not [name for name in element.attrs if name.startswith("on")], element
                assert not re.match(
                    r"\s*(javascript|data|vbscript):", str(element.get("href", "")), re.IGNORECASE
                )
            card.unlink()
