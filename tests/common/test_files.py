"""Atomic writes: the old file or the whole new one, and nothing beside it, whatever goes wrong."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest

from ssdlib.common.errors import DataError, SsdError
from ssdlib.common.files import atomic_open, new_folder, read_json, write_bytes, write_json, write_text

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 1000])
def test_write_and_overwrite(tmp_path, content):
    path = tmp_path / "new" / "folders" / "file.bin"
    write_bytes(path, b"before")
    write_bytes(str(path), content)
    assert path.read_bytes() == content and names(path.parent) == ["file.bin"]


@pytest.mark.parametrize("value", [None, [], {}, {"a": [1, 2.5, None, True], "grün": "µ\n"}, "text"])
def test_json_round_trip(tmp_path, value):
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value
    assert (tmp_path / "file.json").read_text(encoding="utf-8").endswith("\n")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), {1, 2}])
def test_json_refuses_what_json_does_not_know(tmp_path, bad):
    path = tmp_path / "metrics.json"
    write_json(path, {"map": 0.5})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, {"map": bad})
    assert read_json(path) == {"map": 0.5}
    assert names(tmp_path) == ["metrics.json"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_new_file_is_as_readable_as_any_other(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(
    ("owner", "function", "error", "expected"),
    [
        (os, "fsync", FULL, SsdError),
        (os, "fsync", KeyboardInterrupt(), KeyboardInterrupt),
        (Path, "replace", OSError(errno.EACCES, "Permission denied"), SsdError),
        (Path, "replace", KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failing_system_keeps_the_old_file(tmp_path, monkeypatch, owner, function, error, expected, exists):
    path = tmp_path / "last.pt"
    if exists:
        path.write_bytes(b"old")
    with monkeypatch.context() as patch, pytest.raises(expected) as caught:
        patch.setattr(owner, function, Mock(side_effect=error))
        write_bytes(path, b"new")
    assert names(tmp_path) == (["last.pt"] if exists else [])
    assert not exists or path.read_bytes() == b"old"
    if expected is SsdError:
        assert f"cannot write {path}: {error.strerror}. Free some space" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"), [(FULL, SsdError), (SystemExit(1), SystemExit), (ValueError("ours"), ValueError)]
)
@pytest.mark.parametrize("what", [atomic_open, new_folder])
def test_an_error_half_way_leaves_nothing_beside(tmp_path, what, error, expected):
    (tmp_path / "other").write_bytes(b"old")
    with pytest.raises(expected), what(tmp_path / "new"):
        assert len(names(tmp_path)) == 2  # built beside
        raise error
    assert names(tmp_path) == ["other"]


@pytest.mark.parametrize("place", ["folder", "file/new", "/proc/nothing/new"])
def test_places_that_cannot_be_written(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    path = tmp_path / place
    with pytest.raises(SsdError, match=str(path)):
        write_text(path, "x")
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize(
    ("content", "message"),
    [
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


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_folder_appears_whole_and_may_replace_an_empty_one(tmp_path, exists):
    path = tmp_path / "deep" / "converted"
    if exists:
        path.mkdir(parents=True)
    with new_folder(path) as folder:
        (folder / "a").write_text("a")
        assert path.exists() == exists and not list(path.glob("*"))
    assert names(path) == ["a"] and names(path.parent) == ["converted"]


@pytest.mark.parametrize("held", ["converted", "converted/a"], ids=["a file", "a full folder"])
def test_a_new_folder_replaces_nothing_else(tmp_path, held):
    (tmp_path / held).parent.mkdir(exist_ok=True)
    (tmp_path / held).write_text("mine")
    with pytest.raises(DataError, match="already holds something"), new_folder(tmp_path / "converted"):
        pytest.fail("nothing is built")
    assert (tmp_path / held).read_text() == "mine" and names(tmp_path) == ["converted"]


@pytest.mark.parametrize(
    ("already", "outcome"), [(True, nullcontext()), (False, pytest.raises(SsdError, match="cannot write"))]
)
def test_of_two_that_build_the_same_folder_the_first_stays(tmp_path, already, outcome):
    path = tmp_path / "data"
    with outcome, new_folder(path, already=lambda: already) as folder:
        (folder / "second").touch()
        path.mkdir()
        (path / "first").touch()
    assert names(tmp_path) == ["data"] and names(path) == ["first"]
