"""Tables: the same rows for a terminal and for Markdown; files for spreadsheets."""

import csv

import pytest

from ssdlib.common.tables import Table, csv_lines, number


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


@pytest.mark.parametrize("decimal_comma", [False, True])
def test_csv_readers_see_the_cells_that_were_written(decimal_comma):
    cells = ["a\rb.jpg", "a\nb", 'a"b', "a;b,c", "", "ü\u2028"]
    (line,) = csv_lines([cells], decimal_comma=decimal_comma)
    assert line.endswith("\n") and not line.endswith("\r\n")
    assert list(csv.reader([line], delimiter=";" if decimal_comma else ",")) == [cells]
