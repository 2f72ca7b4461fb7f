"""Decisions: kept through anything, clicked in a widget, applied to a copy."""

import json

import numpy as np
import pytest
from PIL import ImageColor

from ssdlib.common.errors import ConfigError, DataError, SsdError
from ssdlib.data import source as bccd
from ssdlib.data.formats.voc import read_objects, read_tree
from ssdlib.inference.detections import Detections
from ssdlib.tools.label_errors import pages, review
from ssdlib.tools.label_errors.correct import PROPOSED, apply_decisions, write_overlay
from ssdlib.tools.label_errors.pages import MOST_OF_A_KIND, contact_sheet, crop_of, write_page
from ssdlib.tools.label_errors.rank import KINDS, find_label_issues
from ssdlib.tools.label_errors.review import ReviewSession, ReviewWidget, read_decisions, write_decisions
from tests.tools.label_cases import A, B, C, folder_of, found

MOVED = (30, 10, 70, 50)
PLATELET = (150, 100, 165, 115)


@pytest.fixture
def source(tmp_path):
    labels = [("RBC", A), ("RBC", B), ("RBC", C)]
    return folder_of(tmp_path / "data", {"field": labels, "other": []})


@pytest.fixture
def issues(source):
    """One to add, one to move, one to rename, one to remove, in the order of KINDS."""
    detections = found(("RBC", 0.9, MOVED), ("WBC", 0.8, B), ("Platelets", 0.7, PLATELET))
    return find_label_issues(source.dataset("all"), [detections, found(image="other")])


@pytest.fixture
def decisions(tmp_path, source, issues):
    write_decisions(tmp_path / "decisions.json", source, issues)
    return tmp_path / "decisions.json"


def on_disk(path):
    return [decision for _, decision in read_decisions(path)]


def test_a_session_saves_each_decision_and_resumes(decisions):
    session = ReviewSession(decisions)
    assert (len(session), session.position, session.current.action) == (4, 0, "add")
    assert session.decide("accept").action == "remove"
    assert on_disk(decisions) == ["accept", None, None, None]
    session.decide("refuse")
    session.back()
    assert session.decision(session.position) == "refuse"
    session.decide("skip")
    resumed = ReviewSession(decisions)
    assert resumed.position == 2
    assert resumed.counts() == {"accept": 1, "refuse": 0, "skip": 1, "open": 2}
    assert resumed.decide("accept").action == "rename"
    assert resumed.decide("accept") is None
    assert resumed.decide("refuse") is None
    assert on_disk(decisions) == ["accept", "skip", "accept", "accept"]
    assert resumed.back().action == "rename"


def test_a_session_of_some_kinds_leaves_the_others_alone(decisions):
    session = ReviewSession(decisions, kinds=["other_class"])
    assert len(session) == 1
    session.decide("accept")
    assert on_disk(decisions) == [None, None, None, "accept"]
    assert ReviewSession(decisions, kinds=[]).current is None


def test_what_is_no_decision_is_refused(decisions):
    with pytest.raises(ConfigError, match="no decision 'maybe'"):
        ReviewSession(decisions).decide("maybe")
    assert on_disk(decisions) == [None] * 4


def test_a_full_disk_takes_no_decision(decisions, monkeypatch):
    session = ReviewSession(decisions)

    def full(path, content):
        raise SsdError("cannot write: no space left")

    monkeypatch.setattr(review, "write_json", full)
    with pytest.raises(SsdError, match="no space"):
        session.decide("accept")
    assert session.position == 0
    assert session.decision(0) is None
    assert on_disk(decisions) == [None] * 4


def test_a_new_ranking_keeps_decisions(decisions, source, issues):
    session = ReviewSession(decisions)
    session.decide("refuse")
    session.decide("accept")
    # Found again in another order, and the second one not at all.
    assert write_decisions(decisions, source, [issues[3], issues[0]]) == 2
    assert [(s.action, d) for s, d in read_decisions(decisions)] == [
        ("rename", None),
        ("add", "refuse"),
        ("remove", "accept"),
    ]


def test_decisions_belong_to_their_data(decisions, source, issues):
    (source.folder / "Annotations/other.xml").write_text("<annotation/>")
    with pytest.raises(DataError, match="made for other data"):
        read_decisions(decisions, source)
    with pytest.raises(DataError, match="made for other data"):
        write_decisions(decisions, source, issues)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "input should be a valid dictionary"),
        ('{"format": "ssdlib-decisions-1", "suspects": []}', "find the label errors again"),
        (
            '{"format": "ssdlib-decisions-2", "data": {}, "issues": [{"id": "x", "decision": "perhaps"}]}',
            "'perhaps' is no decision",
        ),
        ('{"format": "ssdlib-decisions-2", "data": {}, "issues": [{"id": "x"}]}', "not an issue"),
        ('{"format": "ssdlib-decisions-2", "data": {}, "issues": [1]}', r"issues\.0: .*valid dictionary"),
        ('{"format": "ssdlib-decisions-2", "data": [], "issues": []}', r"data: .*valid dictionary"),
        ('{"format": "ssdlib-decisions-2"}', "issues: field required|data: field required"),
    ],
)
def test_damaged_decisions(tmp_path, content, message):
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(SsdError, match=message):
        ReviewSession(tmp_path / "d.json")
    with pytest.raises(SsdError, match="is missing"):
        ReviewSession(tmp_path / "nowhere.json")


def test_the_widget_is_clicked_through(decisions, source, monkeypatch):
    widget = ReviewWidget(decisions, source)
    assert widget.buttons["back"].disabled
    assert "1 of 4: unlabeled, Platelets" in widget.text.value
    first = bytes(widget.picture.value)
    assert first.startswith(b"\xff\xd8")
    widget.buttons["accept"].click()
    assert on_disk(decisions)[0] == "accept"
    assert widget.picture.value != first
    widget.buttons["back"].click()
    assert "Decided before: accept" in widget.text.value
    assert widget.picture.value == first
    for name in ("refuse", "skip", "accept", "accept"):
        widget.buttons[name].click()
    assert on_disk(decisions) == ["refuse", "skip", "accept", "accept"]
    assert "All issues have been seen" in widget.text.value
    assert widget.buttons["accept"].disabled
    assert not widget.buttons["back"].disabled
    assert "seen" in ReviewWidget(decisions).text.value
    assert "no issues" in ReviewWidget(decisions, kinds=[]).text.value


def test_the_widget_says_what_went_wrong(decisions, source):
    widget = ReviewWidget(decisions)
    for file in (source.folder / "JPEGImages").iterdir():
        file.write_bytes(b"")
    widget.buttons["accept"].click()
    assert "field.png" in widget.text.value


def test_the_widget_finds_data_that_were_moved(decisions, source, tmp_path):
    moved = source.folder.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="not a dataset"):
        ReviewWidget(decisions)
    assert "1 of 4" in ReviewWidget(decisions, bccd.open_folder(moved)).text.value


# Corrections ----------------------------------------------------------------------------------------------


def test_accepted_issues_are_put_right_in_a_copy(decisions, source, tmp_path):
    before = source.fingerprint
    session = ReviewSession(decisions)
    while session.decide("accept"):
        pass
    counts = apply_decisions(source, decisions, tmp_path / "copy")
    assert counts == {"add": 1, "remove": 1, "move": 1, "rename": 1}
    assert source.fingerprint == before
    copy = bccd.open_folder(tmp_path / "copy")
    assert read_objects(copy.folder / "Annotations/field.xml") == [
        ("RBC", MOVED),
        ("WBC", B),
        ("Platelets", PLATELET),
    ]
    assert len(copy.dataset("all")) == 2
    assert json.loads((copy.folder / "corrections.json").read_text())["changes"] == counts
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".partial")]


def test_only_what_was_accepted_changes(decisions, source, tmp_path):
    session = ReviewSession(decisions)
    for decision in ("refuse", "skip", "accept"):
        session.decide(decision)
    assert apply_decisions(source, decisions, tmp_path / "copy")["move"] == 1
    expected = [("RBC", MOVED), ("RBC", B), ("RBC", C)]
    assert read_objects(tmp_path / "copy/Annotations/field.xml") == expected


def test_nothing_accepted_makes_no_copy(decisions, source, tmp_path):
    with pytest.raises(DataError, match="nothing is accepted"):
        apply_decisions(source, decisions, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_corrected_copy_keeps_splits_and_notice(smears_source, smears_copy, tmp_path):
    source = bccd.open_folder(smears_copy)
    dataset = source.dataset("val")
    detections = [
        Detections.empty((s.width, s.height), dataset.class_names, s.image_id) for s in dataset.samples
    ]
    issues = find_label_issues(dataset, detections)
    write_decisions(tmp_path / "d.json", source, issues)
    ReviewSession(tmp_path / "d.json").decide("accept")
    assert apply_decisions(source, tmp_path / "d.json", tmp_path / "corrected")["remove"] == 1
    copy = bccd.open_folder(tmp_path / "corrected")
    assert copy.synthetic
    assert copy.split_ids("val") == source.split_ids("val")
    assert sum(copy.dataset("val").class_counts().values()) == len(issues) - 1


def test_the_overlay_marks_what_is_proposed(issues, source, tmp_path):
    assert write_overlay(issues, source.dataset("all"), tmp_path / "overlay") == 1
    tree = read_tree(tmp_path / "overlay/Annotations/field.xml")
    objects = [(node.findtext("name"), node.findtext("pose")) for node in tree.iterfind("object")]
    assert objects[:3] == [("RBC", "Unspecified")] * 3
    assert objects[3:] == [("Platelets", PROPOSED), ("RBC", PROPOSED), ("WBC", PROPOSED)]
    assert write_overlay([], source.dataset("all"), tmp_path / "overlay") == 0
    assert not list((tmp_path / "overlay/Annotations").iterdir())


# Pictures -------------------------------------------------------------------------------------------------


def test_crops_show_the_box_and_gray_beyond_the_image(issues, source):
    crop = crop_of(issues[0], source.dataset("all"), side=120)
    assert crop.shape == (120, 120, 3)
    assert crop.dtype == np.uint8
    assert (crop == ImageColor.getrgb(pages.PROPOSED)).all(axis=2).any()
    assert (crop[-1, 0] == 235).all()  # the platelet lies near the lower right corner


def test_the_page_shows_each_kind_and_escapes_what_it_is_given(issues, source, tmp_path):
    dataset, many = source.dataset("all"), issues[:1] * (MOST_OF_A_KIND + 4) + issues[1:]
    write_page(many, dataset, tmp_path / "s.html", title="A & B", notice="drawn <cells>")
    text = (tmp_path / "s.html").read_text()
    assert "A &amp; B" in text
    assert "drawn &lt;cells&gt;" in text
    assert "unlabeled: 100</h2>" in text
    assert text.count("<figure>") == text.count("data:image/jpeg") == MOST_OF_A_KIND + 3
    assert [kind for kind in KINDS if f"<h2>{kind.replace('_', ' ')}: " in text] == [s.kind for s in issues]


def test_a_contact_sheet_has_a_crop_for_each_issue(issues, source):
    dataset = source.dataset("all")
    empty, sheet = contact_sheet([], dataset, "none"), contact_sheet(issues, dataset, "some")
    assert empty.shape == sheet.shape
    amber, green = ((sheet == ImageColor.getrgb(c)).all(axis=2) for c in (pages.DOUBTED, pages.PROPOSED))
    marked = (amber | green).any(axis=0)
    assert [k for k in range(pages.COLUMNS) if marked[k * 212 + 12 : (k + 1) * 212].any()] == [0, 1, 2, 3]
    assert contact_sheet(issues * 2, dataset, "more").shape[0] > sheet.shape[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": "../../victim"}, "there is no image '../../victim'"),
        ({"image": "/tmp/victim"}, "there is no image '/tmp/victim'"),
        ({"image": [1]}, "image: input should be a valid string"),
        ({"box": ["a"]}, "box"),
        ({"box": [1, 2, 3, float("nan")]}, "finite numbers"),
        ({"proposed_box": ["a", "b", "c", "d"]}, "proposed_box"),
        ({"proposed_box": None}, "a class and a box"),
        ({"proposed_class": "R\0C"}, "a class and a box"),
        ({"object": "first"}, "object"),
        ({"kind": ["unlabeled"]}, "kind"),
    ],
)
def test_decisions_of_a_stranger_write_nothing(decisions, source, tmp_path, changes, message):
    victim, outside = tmp_path / "victim.xml", tmp_path / "out" / "copy"
    outside.parent.mkdir()
    victim.write_text("<annotation/>")
    content = json.loads(decisions.read_text())
    content["issues"] = [{**content["issues"][0], **changes, "decision": "accept"}]
    decisions.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        apply_decisions(source, decisions, outside)
    assert "\n" not in str(caught.value)
    assert victim.read_text() == "<annotation/>" and not outside.exists()


def test_decisions_about_damaged_labels_are_refused(decisions, tmp_path):
    file = tmp_path / "data/Annotations/field.xml"
    file.write_text(file.read_text().replace("<name>RBC</name>", "", 1))
    source = folder_of(tmp_path / "data", {"other": [("RBC", A)]})
    content = json.loads(decisions.read_text())
    content["data"]["fingerprint"] = source.fingerprint
    content["issues"] = [{**issue, "decision": "accept"} for issue in content["issues"]]
    decisions.write_text(json.dumps(content))
    with pytest.raises(DataError, match="no image 'field' with sound labels"):
        apply_decisions(source, decisions, tmp_path / "out")
