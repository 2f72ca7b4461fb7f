"""Tables: the same rows for a terminal and for Markdown."""

import pytest

from ssdlib.common.tables import Table, number


@pytest.mark.parametrize(
    ("value", "form", "text"), [(None, ".3f", "n/a"), (0.12345, ".3f", "0.123"), (0.5, ".0%", "50%")]
)
def test_number(value, form, text):
    assert number(value, form) == text


@pytest.mark.parametrize(
    ("rows", "total", "lines"),
    [
        ([], False, ["class  n", "-----  -"]),
        ([["a", "10"], ["bb", "9"]], False, ["class   n", "-----  --", "a      10", "bb      9"]),
        ([["a", "1"], ["all", "1"]], True, ["class  n", "-----  -", "a      1", "-----  -", "all    1"]),
        ([["all", "0"]], True, ["class  n", "-----  -", "all    0"]),
    ],
    ids=["empty", "aligned", "total", "nothing but the total"],
)
def test_text(rows, total, lines):
    assert Table(["class", "n"], rows, total).to_text().splitlines() == lines


def test_markdown_escapes_what_would_end_a_cell():
    lines = Table(["a|b", "n"], [["x", "1"]]).to_markdown().splitlines()
    assert lines == [r"| a\|b | n |", "| --- | --- |", "| x | 1 |"]


def test_a_row_of_another_length_is_an_error():
    with pytest.raises(ValueError):
        Table(["a", "b"], [["x"]]).to_text()
