"""The `data` commands, given odd labels and decisions, end with a sentence and write nothing elsewhere."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssdlib.data.audit import audit
from ssdlib.data.source import open_folder
from ssdlib.tools.label_errors.rank import KINDS, LabelIssue
from tests.fuzz.cases import (
    NAMES,
    NUMBERS,
    command,
    fuzzed,
    json_bytes,
    nothing_changed,
    odd_values,
    reshaped,
)
from tests.fuzz.test_labels import LAYOUTS, ODD_NAMES, new_folder, put


@st.composite
def odd_folders(draw):
    """A layout, and what lies in it besides: (path, kind) as `put` takes them."""
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    places = sorted({str(Path(name).parent) for name in LAYOUTS[layout]})
    odd = st.tuples(
        st.sampled_from(places),
        st.sampled_from(ODD_NAMES),
        st.sampled_from(["picture", "picture", "annotation", "nothing", "pipe", "folder", "/dev/zero"]),
    )
    return layout, draw(st.lists(odd, max_size=3))


def laid(root, odd):
    for place, name, kind in odd:
        if (root / place).is_dir():
            put(root, place.encode() + b"/" + name, kind)


@fuzzed(10)
@given(odd_folders())
def test_check_ends_with_one_where_it_finds_errors(drawn):
    layout, odd = drawn
    with new_folder(LAYOUTS[layout]) as root:
        laid(root, odd)
        file = root.parent / "out" / "audit.json"
        with nothing_changed(root.parent):
            code, text = command("data", "check", "--quiet", "--data", root, "--json", file)
        if file.exists():
            found = json.loads(file.read_text())["findings"]
            assert code == any(finding["severity"] == "error" for finding in found)
        else:
            assert code == 1
            assert text.startswith("error: ")


@fuzzed(20)
@given(odd_folders(), st.sampled_from(["voc", "coco", "yolo", "csv"]), st.booleans())
def test_what_is_converted_opens_again(drawn, to, fractions):
    layout, odd = drawn
    with new_folder(LAYOUTS[layout]) as root:
        laid(root, odd)
        out = root.parent / "out"
        with nothing_changed(root.parent):
            code, text = command(
                "data", "convert", out, "--to", to, "--quiet", "--data", root, *["--fractions"] * fractions
            )
        assert code == (0 if out.exists() else 1), text
        if not code:
            before, after = audit(open_folder(root)), audit(open_folder(out))
            assert before.errors or not after.errors, after.errors
            assert fractions or before.errors or after.classes["train"] == before.classes["train"]


ISSUE = LabelIssue(
    "a/no_detection", "a", "no_detection", "RBC", (3.0, 4.0, 20.5, 30.0), 0.9, 1, None, None, None, None, None
)
MOVED, RENAMED = {"proposed_box": [1, 1, 9, 9]}, {"proposed_box": [3, 4, 20.5, 30]}
ISSUES = [
    ISSUE.to_dict(),
    ISSUE.to_dict() | MOVED | {"image": "b", "kind": "unlabeled", "object": None, "proposed_class": "RBC"},
    ISSUE.to_dict() | MOVED | {"image": "c", "kind": "badly_located", "proposed_class": "RBC"},
    ISSUE.to_dict() | RENAMED | {"image": "d", "kind": "other_class", "proposed_class": "WBC"},
]
VALUES = (
    *NAMES,
    *NUMBERS,
    *KINDS,
    "a",
    "b",
    "../../data/Annotations/a",
    [-1e308, 5, 1e308, 5],
    [9, 9, 1, 1],
    None,
    2,
)


@fuzzed(30)
@given(
    st.sampled_from(sorted(LAYOUTS)),
    st.sampled_from(["suspects", "complete"]),
    reshaped(ISSUES, st.sampled_from(VALUES) | odd_values()),
    st.sampled_from([True, True, True, False]),
)
def test_decisions_change_the_copy_alone(layout, verb, issues, sound):
    with new_folder(LAYOUTS[layout]) as root:
        issues = issues if isinstance(issues, list) else [issues]
        if verb == "complete":  # which only adds
            issues = [one for one in issues if not isinstance(one, dict) or one.get("object") is None]
        issues = [{"decision": "accept", **one} if isinstance(one, dict) else one for one in issues]
        about = open_folder(root).describe() if sound else {"fingerprint": "0"}
        before = len(audit(open_folder(root)).errors)
        decisions, out = root.parent / "decisions.json", root.parent / "out"
        decisions.write_bytes(json_bytes({"format": "ssdlib-decisions-2", "data": about, "issues": issues}))
        with nothing_changed(root.parent):
            code, text = command("data", verb, "--quiet", "--data", root, "--apply", decisions, "--out", out)
        assert code == (0 if out.exists() else 1), text
        if not code:
            assert len(audit(open_folder(out)).errors) <= before


RECORD = {
    "image": "a.png", "width": 64, "height": 48, "counts": {"RBC": 1, "WBC": 0},
    "detections": [{"box": [3, 4, 20, 30], "label": "RBC", "score": 0.9}],
}  # fmt: skip


@fuzzed(10)
@given(st.sampled_from(["label-errors", "complete"]), st.data())
def test_predictions_of_another_tool(verb, data):
    records = [{**RECORD, "image": f"{stem}.png"} for stem in "abcd"]
    if data.draw(st.integers(0, 3)):
        records = data.draw(reshaped(records))
    with new_folder(LAYOUTS["voc"]) as root:
        place, out = root.parent / "predictions", root.parent / "out"
        place.mkdir()
        (place / "all.json").write_bytes(json_bytes(records))
        with nothing_changed(root.parent):
            words = ["--split", "all"] if data.draw(st.booleans()) else []
            code, text = command(
                "data", verb, "--quiet", "--data", root, "--predictions", place, "--out", out, *words
            )
        assert code in (0, 1), text


@pytest.mark.parametrize("link", ["overlay", "overlay/Annotations"])
def test_a_link_in_the_output_is_not_followed(link):
    with new_folder(LAYOUTS["voc"]) as root:
        place, out = root.parent / "predictions", root.parent / "out"
        place.mkdir()
        records = [{**RECORD, "image": f"{stem}.png"} for stem in "abcd"]
        (place / "all.json").write_bytes(json_bytes(records))
        (out / link).parent.mkdir(parents=True)
        (out / link).symlink_to(root / "Annotations" if "/" in link else root)
        with nothing_changed(root.parent):
            words = ["--predictions", place, "--out", out]
            code, text = command("data", "label-errors", "--quiet", "--data", root, *words)
        assert code == 1
        assert "is a link" in text
