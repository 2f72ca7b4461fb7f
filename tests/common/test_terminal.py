"""What is printed never steers the terminal."""

import errno
import io
import sys

import pytest

from ssdlib.__main__ import main
from ssdlib.common.errors import DataError
from ssdlib.common.tables import Table, from_cell, to_cell
from ssdlib.common.terminal import printable, say

STEERING = "\x1b[2J\x1b]0;title\x07\x9b\u202e\ud800\udce9\r\x00"


def test_what_steers_is_shown_as_text_and_the_rest_stays():
    shown = printable(f"a{STEERING}b")
    assert shown == r"a\x1b[2J\x1b]0;title\x07\x9b\u202e\ud800\udce9\r\x00b"
    kept = "größer\n\tµm 赤血球 |&<\\"
    assert printable(kept) == kept and printable("a\nb", keep="") == r"a\nb"
    assert printable("x" * 4096) == "x" * 4096, "as long as a path can be"
    assert printable(f"no {'x' * 10**6}.") == f"no {'x' * 200}... (1,000,001 characters)"


@pytest.mark.parametrize(("encoding", "text"), [("utf-8", "µ"), ("ascii", r"\xb5"), ("latin-1", "µ")])
def test_any_stream_takes_what_is_said(encoding, text):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    say("µ", STEERING, file=stream, flush=True)
    assert raw.getvalue().decode(encoding) == f"{text} {printable(STEERING)}\n"


def test_a_closed_stream_takes_nothing(capsys):
    say("into a closed standard error", file=None)
    assert capsys.readouterr() == ("", "")


def test_no_job_ends_because_standard_error_is_full(monkeypatch):
    class Full(io.StringIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("sys.stderr", Full())
    say("a note", file=sys.stderr)
    with pytest.raises(OSError, match="full"):
        say("a result", file=Full())


def test_errors_and_tables_are_printed_so(capsys, tmp_path, monkeypatch):
    table = Table(["image", "RBC"], [[f"{STEERING}\n", "1"], ["b", "22"]]).to_text()
    assert "\x1b" not in table and len(table.splitlines()) == 4
    assert len({len(line) for line in table.splitlines()}) == 1

    def fail(*_, **__):
        raise DataError(f"{STEERING} is damaged")

    monkeypatch.setattr("ssdlib.data.source.resolve", fail)
    assert main(["data", "check", "--data", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"error: {printable(STEERING)} is damaged\n"


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "\t=1", " -1", "'=1", "plain", "'", ""])
def test_no_cell_runs_as_a_formula(text):
    cell = to_cell(text)
    assert from_cell(cell) == text
    assert cell.lstrip("\t\r\n ")[:1] not in ("=", "+", "-", "@")


def test_an_error_never_quotes_a_whole_file():
    assert str(DataError("a.jpg is damaged")) == "a.jpg is damaged"
    assert str(DataError("a.jpg: " + 10**6 * "x")).startswith("a.jpg: xxx")
    assert len(str(DataError(10**6 * "x"))) < 11_000
