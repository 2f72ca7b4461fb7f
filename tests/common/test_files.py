"""Atomic writes: the old file or the whole new one, and nothing beside it, whatever goes wrong."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

import pytest

from ssdlib.common.errors import SsdError
from ssdlib.common.files import atomic_open, read_json, write_bytes, write_json, write_text, write_with


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 1000])
def test_write_and_overwrite(tmp_path, content):
    path = tmp_path / "new" / "folders" / "file.bin"
    write_bytes(path, b"before")
    write_bytes(str(path), content)
    assert path.read_bytes() == content
    assert names(path.parent) == ["file.bin"]
    write_with(path, lambda stream: stream.write(content + b"!"))
    assert path.read_bytes() == content + b"!"


@pytest.mark.parametrize("value", [None, [], {}, {"a": [1, 2.5, None, True], "grün": "ü\n"}, "text"])
def test_json_round_trip(tmp_path, value):
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value
    assert (tmp_path / "file.json").read_text(encoding="utf-8").endswith("\n")


def test_json_refuses_what_json_does_not_know(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"map": 0.5})
    for bad in (float("nan"), float("inf"), {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, {"map": bad})
    assert read_json(path) == {"map": 0.5}
    assert names(tmp_path) == ["metrics.json"]


def test_text_is_utf8_on_every_system(tmp_path):
    write_text(tmp_path / "file.txt", "µm\n")
    assert (tmp_path / "file.txt").read_bytes() == b"\xc2\xb5m\n"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path, mask):
    """A temporary file is private; what it becomes must be as readable as any new file."""
    before = os.umask(mask)
    try:
        write_text(tmp_path / "file", "x")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask


def raise_(error: BaseException):
    def call(*_, **__):
        raise error

    return call


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(
    ("function", "error", "expected"),
    [
        ("fsync", FULL, SsdError),
        ("fsync", KeyboardInterrupt(), KeyboardInterrupt),
        ("replace", OSError(errno.EACCES, "Permission denied"), SsdError),
        ("replace", KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failing_system_keeps_the_old_file(tmp_path, monkeypatch, function, error, expected, exists):
    path = tmp_path / "last.pt"
    if exists:
        path.write_bytes(b"old")
    owner = Path if function == "replace" else os
    monkeypatch.setattr(owner, function, raise_(error))
    with pytest.raises(expected) as caught:
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert names(tmp_path) == (["last.pt"] if exists else [])
    assert not exists or path.read_bytes() == b"old"
    if expected is SsdError:
        assert str(path) in str(caught.value)
        assert error.strerror in str(caught.value) and "Free some space" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FULL, SsdError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(1), SystemExit),
        (ValueError("a fault of ours"), ValueError),
    ],
)
def test_an_error_half_way_keeps_the_old_file(tmp_path, error, expected):
    path = tmp_path / "best.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(expected), atomic_open(path) as stream:
        stream.write(b"half of the ")
        stream.flush()
        assert len(names(tmp_path)) == 2  # written beside
        assert path.read_bytes() == b"old"
        raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["best.safetensors"]


def test_a_full_disk_while_writing(tmp_path, monkeypatch):
    """What a real full disk does: the buffered write itself fails."""
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr(os, "fdopen", FullDisk)
    with pytest.raises(SsdError, match=r"report\.html.*No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["report.html"]


class FullDisk(io.FileIO):
    def write(self, _):
        raise FULL


@pytest.mark.parametrize("place", ["a folder", "under a file", "under nothing that may be made"])
def test_places_that_cannot_be_written(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    path = {
        "a folder": tmp_path / "folder",
        "under a file": tmp_path / "file" / "new",
        "under nothing that may be made": Path("/proc/nothing/new"),
    }[place]
    with pytest.raises(SsdError, match=str(path)):
        write_text(path, "x")
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b'{"a": 1', "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (None, "is missing"),
        ("folder", "cannot read"),
    ],
)
def test_unreadable_json_is_named(tmp_path, content, message):
    path = tmp_path / "config.json"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(SsdError, match=rf"config\.json {message}|{message} .*config\.json") as caught:
        read_json(path, hint="Run 04_train first.")
    assert str(caught.value).endswith("Run 04_train first.")
