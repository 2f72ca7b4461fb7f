"""The judge of completed copies, on one whose truth is known."""

import pytest

from ssdlib.common.errors import DataError
from ssdlib.data.formats.yolo import label_lines
from ssdlib.data.source import open_folder
from ssdlib.tools.label_errors.complete import write_copy
from ssdlib.tools.label_errors.rank import LabelIssue
from tests.benchmarks.complete import complete_labels, judge, judged_table
from tests.tools.label_cases import HEIGHT, WIDTH, A, B, C, folder_of

D = (10, 100, 50, 140)


def added(name, box, image="field"):
    """A find of an object without a label."""
    return LabelIssue(f"{image}/{box}", image, "unlabeled", name, box, 0.9, None, name, box, name, 0.8, 0.0)


@pytest.fixture
def copy(tmp_path):
    """Two fields: one label each; of what is added one is right, one of another class, one nothing."""
    source = folder_of(tmp_path / "data", {"field": [("RBC", A)], "other": [("WBC", A)]})
    finds = [added("RBC", B), added("RBC", D), added("RBC", (150, 100, 190, 140)), added("RBC", B, "other")]
    write_copy(source, tmp_path / "copy", finds)
    return open_folder(tmp_path / "copy")


def test_a_copy_is_judged_by_complete_labels_of_some_images(copy, tmp_path):
    truth = tmp_path / "truth"
    truth.mkdir()
    # WBC 0, RBC 1, Platelets 2; the image `other` has no truth and does not count.
    lines = label_lines([A, B, C, D], [1, 1, 1, 0], WIDTH, HEIGHT)
    (truth / "field.txt").write_text(lines)
    result = judge(copy, complete_labels(truth, copy))
    red, white = result["RBC"], result["WBC"]
    assert (red["complete"], red["removed"], red["issues"], red["right"]) == (3, 2, 3, 1)
    assert (red["precision"], red["recall"]) == (pytest.approx(1 / 3), 0.5)
    assert (white["removed"], white["issues"], white["recall"]) == (1, 0, 0)
    assert "0.333" in judged_table(result).to_text()


def test_complete_labels_may_be_another_data_set(copy, tmp_path):
    whole = folder_of(tmp_path / "whole", {"field": [("RBC", A), ("RBC", B)], "other": [("WBC", A)]})
    result = judge(copy, complete_labels(whole.folder, copy))
    assert (result["RBC"]["removed"], result["RBC"]["issues"], result["RBC"]["right"]) == (1, 4, 1)
    (tmp_path / "none").mkdir()
    (tmp_path / "none/stranger.txt").write_text("1 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match="no labels of an image"):
        complete_labels(tmp_path / "none", copy)
