"""Atomic writes (the old file or the whole new one, and nothing beside it), text in any encoding, folders."""

from __future__ import annotations

import codecs
import errno
import json
import os
import shutil
import stat
import tempfile
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest

from ssdlib.common.errors import DataError, SsdError
from ssdlib.common.files import (
    atomic_open,
    decode_text,
    files_below,
    is_hidden,
    new_folder,
    read_json,
    read_limited,
    tidy,
    write_bytes,
    write_json,
    write_text,
)

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


def test_a_folder_that_could_not_be_copied_is_said_in_a_sentence(tmp_path):
    full = [(f"from/{number}", f"to/{number}", "[Errno 28] No space left on device") for number in range(99)]
    with pytest.raises(SsdError) as caught, new_folder(tmp_path / "data"):
        raise shutil.Error(full)
    assert "data: [Errno 28] No space left on device. Free" in str(caught.value) and not names(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="there a file that is open cannot be removed")
def test_what_a_kill_left_goes_when_the_same_is_written_again(tmp_path):
    file, folder = tmp_path / "a.json", tmp_path / "data"
    with atomic_open(file):
        (half_file,) = tmp_path.glob(".a.json.*.tmp")
    with new_folder(folder):
        (half_folder,) = tmp_path.glob(".data.*.partial")
    folder.rmdir()
    half_file.write_bytes(b"half")
    half_folder.mkdir()
    (half_folder / "half").touch()
    write_bytes(file, b"whole")
    with new_folder(folder) as new:
        assert not names(new)
        (new / "whole").touch()
    assert names(tmp_path) == ["a.json", "data"] and file.read_bytes() == b"whole"
    assert names(folder) == ["whole"]


def test_two_that_write_the_same_at_once_do_not_meet(tmp_path):
    path = tmp_path / "a.json"
    with atomic_open(path) as first:
        first.write(b"first")
        write_bytes(path, b"second")
        assert len(names(tmp_path)) == 2, "the first is still being written"
    assert names(tmp_path) == ["a.json"] and path.read_bytes() == b"first"
    folder = tmp_path / "data"
    with pytest.raises(SsdError, match="cannot write"), new_folder(folder), new_folder(folder) as second:
        assert len(names(tmp_path)) == 3
        (second / "second").touch()
    assert names(tmp_path) == ["a.json", "data"] and names(folder) == ["second"]


@pytest.mark.parametrize("text", ["", "RBC\n", "Müller 中 😀\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_text_is_decoded_by_its_mark(tmp_path, text, encoding):
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    assert decode_text(mark + text.encode(encoding), "a.txt") == text
    write_bytes(tmp_path / "a.json", mark + json.dumps(text, ensure_ascii=False).encode(encoding))
    assert read_json(tmp_path / "a.json") == text


@pytest.mark.parametrize(
    "content",
    ["groß".encode("cp1252"), "红细胞".encode("gbk"), "RBC".encode("utf-16-le"), b"\xff\xfeR", b"\0"],
)
def test_other_text_is_refused_by_name(tmp_path, content):
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 text .*Save it as UTF-8"):
        decode_text(content, "a.txt")
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(SsdError, match=r"a\.json is not UTF-8.* Export it anew\."):
        read_json(tmp_path / "a.json", hint="Export it anew.")


@pytest.mark.parametrize(
    "name", [".a.jpg", "._a.jpg", ".DS_Store", "__MACOSX", "@eaDir", "Thumbs.db", ".git"]
)
def test_hidden(name):
    assert is_hidden(name) and is_hidden(f"/data/cells/{name}")
    assert not is_hidden(f"/home/me/{name}/cells/a.jpg")  # a folder above is the user's choice
    assert not is_hidden(f"a{name}") and not is_hidden("_a.jpg")


def test_files_below(tmp_path):
    root = tmp_path / ".cache" / "root"
    for name in ("b/a.txt", "a.txt", "b.txt", "b/c/d.txt", "._a.txt", "__MACOSX/a.txt", "b/.hidden/a.txt"):
        write_text(root / name, "")
    write_text(tmp_path / "other" / "e.txt", "")
    (root / "c").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(root)
    (root / "gone").symlink_to(tmp_path / "nowhere")
    (root / "self").symlink_to(root)

    def below(depth=None):
        return [file.relative_to(root).as_posix() for file in files_below(root, depth)]

    assert below() == ["a.txt", "b/a.txt", "b/c/d.txt", "b.txt", "c/e.txt"]
    assert below(0) == ["a.txt", "b.txt"]
    assert below(1) == ["a.txt", "b/a.txt", "b.txt", "c/e.txt"]
    with pytest.raises(DataError, match=r"cannot read the folder .*nowhere"):
        files_below(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "more than 100 levels"),
        ('{"a": ' * 300 + "1" + "}" * 300, "more than 100 levels"),
        (f'{{"a": {"9" * 5000}}}', "number of 5,000 digits"),
        ('{"a": "\0"}', "zero bytes"),
        ("[1, 2]", "not what its name says .it: input should be a valid dictionary"),
        ('{"a": {"b": [1]}}', r"a\.b: input should be a valid string"),
        ("[" + "{}," * 9_000_000, "more values than fit"),
    ],
)
def test_json_of_a_stranger_is_refused_in_one_sentence(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(SsdError, match=message) as caught:
        read_json(path, hint="Remove it.", shape=dict[str, dict[str, str]])
    assert str(path) in str(caught.value) and "Remove it." in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


def test_json_may_be_deep_and_long_in_reason(tmp_path):
    value = {"a": 10**90, "b": [[[[[1.5]]]]], "c": list(range(200)), "d": [[]] * 300}
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json", shape=dict[str, object]) == value


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "sparse").open("wb") as stream:
        stream.truncate(10**10)
    for name in ("pipe", "zero", "loop", "folder", "sparse", "missing", "a" * 5000, "a\0b"):
        with pytest.raises(DataError, match=r"cannot read|is larger than 20 MB"):
            read_limited(tmp_path / name)
        with pytest.raises(SsdError):
            read_json(tmp_path / name)
    (tmp_path / "file").write_bytes(b"x" * 10)
    assert read_limited(tmp_path / "file", 10) == b"x" * 10
    with pytest.raises(DataError, match="is larger"):
        read_limited(tmp_path / "file", 9)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_a_pipe_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "through")
    assert os.read(reader, 100) == b"through" and pipe.is_fifo() and names(tmp_path) == ["pipe"]
    os.close(reader)
    with pytest.raises(SsdError, match="nothing reads this pipe"):
        write_text(pipe, "for nobody")
    reader, writer = os.pipe()
    write_text(f"/dev/fd/{writer}", "as the shell's >(...)")
    assert os.read(reader, 100) == b"as the shell's >(...)"
    os.close(reader)
    os.close(writer)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no memory that looks like a folder of devices")
def test_files_in_memory_are_files():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for content in ("first", "second"):
            write_text(f"{folder}/a.txt", content)
        assert Path(folder, "a.txt").read_text() == "second"


def test_a_link_is_neither_followed_nor_replaced(tmp_path):
    (tmp_path / "victim").write_text("precious")
    for target in ("victim", "missing", "link"):
        link = tmp_path / "link"
        link.symlink_to(tmp_path / target)
        with pytest.raises(SsdError, match="is a link"):
            write_text(link, "x")
        assert link.is_symlink() and names(tmp_path) == ["link", "victim"]
        link.unlink()
    assert (tmp_path / "victim").read_text() == "precious"


def test_text_that_no_encoding_has_is_written(tmp_path):
    write_json(tmp_path / "a.json", {"caf\udce9": "\ud800"})
    assert read_json(tmp_path / "a.json") == {"caf\udce9": "\ud800"}


def test_leftovers_of_killed_writers_are_removed_and_no_others(tmp_path):
    (tmp_path / "parts" / "inner").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    old = [".a.json.0123abcd.tmp", "parts/.b.jpg.0123abcd.tmp", "parts/inner/..c.0123abcd.tmp"]
    kept = ["a.tmp", ".a.0123abcd", ".a.0123abcg.tmp", "other/.a.0123abcd.tmp", "parts/b.jpg"]
    for name in (*old, *kept):
        (tmp_path / name).write_text("x")
    with atomic_open(tmp_path / "parts" / "running") as stream:
        tidy(tmp_path, ["parts", "missing"])
        stream.write(b"whole")
    assert not any((tmp_path / name).exists() for name in old)
    assert all((tmp_path / name).exists() for name in kept)
    assert (tmp_path / "parts" / "running").read_bytes() == b"whole"


@pytest.mark.parametrize("place", ["parts", "parts/inner", "parts/file"])
def test_a_link_in_the_results_is_refused(tmp_path, place):
    out, link = tmp_path / "out", tmp_path / "out" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path)
    with pytest.raises(SsdError, match=r"is a link.*remove it"):
        tidy(out, ["parts"])
    (out / "mine").symlink_to(tmp_path)
    link.unlink()
    tidy(out, ["parts"])


def test_folders_linked_to_each_other_are_not_walked_on_every_way(tmp_path):
    for one in range(9):
        (tmp_path / f"{one}").mkdir()
        for other in range(9):
            (tmp_path / f"{one}" / f"to-{other}").symlink_to(tmp_path / f"{other}")
    with pytest.raises(DataError, match="lead to the same places again and again"):
        files_below(tmp_path)


@pytest.mark.parametrize("name", ["x" * 255, "\u00fc" * 127])
def test_a_name_may_be_as_long_as_the_system_lets_it(tmp_path, name):
    write_bytes(tmp_path / name, b"1")
    assert (tmp_path / name).read_bytes() == b"1"
