"""Pages: every value is escaped, a missing one is an error, and pictures lie inside the page."""

import base64

import jinja2
import pytest
from markupsafe import Markup

from ssdlib.common.pages import data_uri, duration, render, size

PAGE = "common/page.html"


@pytest.mark.parametrize(
    ("title", "shown"),
    [("<script>&\"'", "&lt;script&gt;&amp;"), (Markup("<b>bold</b>"), "<b>bold</b>")],
    ids=["text", "markup"],
)
def test_values_are_escaped_unless_they_are_markup(title, shown):
    text = render(PAGE, title=title)
    assert shown in text and "<script>" not in text
    assert text.lower().startswith("<!doctype html>")


def test_a_name_without_a_value_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        render(PAGE)


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".png", "png"), (".JPG", "jpeg"), (".jpeg", "jpeg"), (".svg", "svg+xml")]
)
def test_data_uri(suffix, kind):
    head, _, body = data_uri(b"\x00pixels", suffix).partition(",")
    assert head == f"data:image/{kind};base64" and base64.b64decode(body) == b"\x00pixels"


@pytest.mark.parametrize(
    ("words", "value", "text"),
    [
        (duration, 0, "0.0 s"),
        (duration, 60, "1 min 00 s"),
        (duration, 187.4, "3 min 07 s"),
        (duration, 3720, "1 h 02 min"),
        (size, 0, "0 bytes"),
        (size, 1000, "1.0 kB"),
        (size, 1.4e6, "1.4 MB"),
        (size, 5e12, "5000.0 GB"),
    ],
)
def test_durations_and_sizes_in_words(words, value, text):
    assert words(value) == text
