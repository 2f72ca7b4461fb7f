"""Which images are meant, and what is written about each is called."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tifffile
from pyarrow import parquet

from ssdlib.common.errors import DataError
from ssdlib.data.images import read_image, write_image
from ssdlib.inference.inputs import PassedOver, find_images, listed_paths, pixels_of, read_ahead, stamp_of


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("x/a.png", "x/deep/a.JPG", "x/deep/b.tif", "y/a.png", "y/notes.txt", "y/odd[1].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([], {}),
        (["x/a.png"], {"x/a.png": "a"}),
        (["x"], {"x/a.png": "a", "x/deep/a.JPG": "deep/a", "x/deep/b.tif": "deep/b"}),
        (["x/deep", "x/deep/b.tif"], {"x/deep/a.JPG": "a", "x/deep/b.tif": "b"}),
        (["x/a.png", "y/a.png"], {"x/a.png": "a", "y/a.png": "a-2"}),
        (["*/a.*"], {"x/a.png": "a", "y/a.png": "a-2"}),
        (["x/**/*.tif"], {"x/deep/b.tif": "b"}),
        ([f"x/{'**/' * 30}*.tif"], {"x/deep/b.tif": "b"}),
        (["y/*"], {"y/a.png": "a", "y/odd[1].png": "odd_1_"}),
        (["y/odd[1].png"], {"y/odd[1].png": "odd_1_"}),
        (["y/notes.txt"], {"y/notes.txt": "notes"}),  # a file given is tried, whatever it is called
        (["x/d*"], {"x/deep/a.JPG": "a", "x/deep/b.tif": "b"}),
    ],
)
def test_files_folders_and_patterns(folder, given, found):
    assert {str(task.path): task.name for task in find_images(given)} == found


@pytest.mark.parametrize("given", ["nowhere.png", "nowhere", "z/*.png", "*.txt", "empty", "n" * 256])
def test_what_is_not_there_is_refused(folder, given):
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=given.replace("*", r"\*")):
        find_images([given])


def test_a_list_of_paths(folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("x/a.png\n\ngone.png\r\ny\nx/a.png"))
    found = find_images(["x/deep/b.tif"], listed=listed_paths(["-"]))
    assert [str(task.path) for task in found] == [
        "x/deep/b.tif", "x/a.png", "gone.png", "y/a.png", "y/odd[1].png"
    ]  # fmt: skip


@pytest.mark.parametrize("column", ["path", "image"])
def test_a_parquet_list_of_paths(folder, column):
    table = pa.table({"other": [1, 2, 3], column: ["x/a.png", None, "y"]})
    parquet.write_table(table, "list.parquet")
    found = find_images([], listed=listed_paths(["list.parquet"]))
    assert [str(task.path) for task in found] == ["x/a.png", "y/a.png", "y/odd[1].png"]


@pytest.mark.parametrize(
    ("content", "told"), [(None, "cannot be read"), ("text", "cannot be read"), ({}, "path")]
)
def test_what_is_no_parquet_list_is_refused(tmp_path, content, told):
    file = tmp_path / "list.parquet"
    if content == "text":
        file.write_text(content)
    elif content is not None:
        parquet.write_table(pa.table({"file": ["a.png"]}), file)
    with pytest.raises(DataError, match=rf"list\.parquet.*{told}"):
        list(listed_paths([str(file)]))


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_what_a_folder_holds_besides_is_said_with_its_number(folder):
    for name in (
        "x/._a.jpg",
        "x/.DS_Store",
        "x/__MACOSX/._a.png",
        "x/b.czi",
        "x/c.CZI",
        "x/LIESMICH",
        "x/d.jfif",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "x/linked").symlink_to(folder / "y")
    passed = PassedOver()
    names = [task.name for task in find_images(["x"], passed_over=passed)]
    assert names == ["a", "d", "deep/a", "deep/b"]
    assert str(passed) == (
        "3 files with other endings (.czi, no ending); 3 hidden files or folders; "
        "1 link to a folder: name it to have it looked at"
    )
    assert [task.name for task in find_images(["x/linked"])] == ["a", "odd_1_"]
    only_others = folder / "others"
    only_others.mkdir()
    (only_others / "field.czi").touch()
    with pytest.raises(DataError, match=r"holds no images.*1 file with other endings \(\.czi\)"):
        find_images([only_others])
    assert not str(PassedOver())


def test_each_field_of_a_file_is_a_task_with_a_name_of_its_own(folder):
    with tifffile.TiffWriter("x/two.tif") as out:
        for value in (60, 200):
            out.write(np.full((30, 40, 3), value, np.uint8), photometric="rgb")
    found = {str(task.path): task.name for task in find_images(["x/two.tif"])}
    assert found == {"x/two.tif[1]": "two-1", "x/two.tif[2]": "two-2"}
    (second,) = find_images(["x/two.tif[2]"])
    assert (str(second.path), second.name) == ("x/two.tif[2]", "two-2")
    assert (read_image(second.path) == 200).all()
    assert pixels_of(second.path) == 1200


def test_names_never_collide_in_any_folder_or_case(folder):
    for name in ("z/A.png", "z/a/b.png", "z/a--b.png", "z/a.jpg", "z/ .png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    tasks = find_images(["z"])
    assert len({task.image_id.casefold() for task in tasks}) == len(tasks) == 5
    assert all(task.image_id.strip() == task.image_id for task in tasks)


@pytest.mark.parametrize("part", [" ..", " .. ", " . ", " ...", " "])
def test_no_part_of_a_name_leads_out_of_the_output(tmp_path, part):
    for inner in (f"in/a/{part}/{part}/b", f"in/{part}x/b"):
        (tmp_path / inner).mkdir(parents=True, exist_ok=True)
        (tmp_path / inner / "a.png").touch()
    for task in find_images([tmp_path / "in"]):
        assert not {"..", ".", ""} & set(task.name.split("/"))
        assert ".." not in task.image_id.split("/")


@pytest.mark.parametrize("letter", ["a", "ü", "漢"])
def test_names_of_any_length_are_shortened_and_stay_different(tmp_path, letter):
    longest = 250 // len(letter.encode())
    folder = tmp_path / (letter * longest) / (letter * longest)
    folder.mkdir(parents=True)
    for ending in ("x", "y"):
        (folder / f"{letter * (longest - 1)}{ending}.png").touch()
    tasks = find_images([tmp_path])
    assert len({task.name for task in tasks}) == len({task.image_id for task in tasks}) == 2
    for task in tasks:
        for name in (*task.name.split("/"), task.image_id):
            (tmp_path / f".{name}.png.12345678.tmp").touch()


def test_own_output_is_passed_over_and_never_overwrites_an_image(folder):
    out = folder / "x" / "deep"
    assert [task.name for task in find_images(["x"], out)] == ["a"]
    assert [task.name for task in find_images(["x/**/a.*"], out)] == ["a"]
    for given in ("x/deep", "x/deep/b.tif"):
        with pytest.raises(DataError, match="lies in --out"):
            find_images([given], out)
    with pytest.raises(DataError, match="lies in --out"):
        find_images([], out, listed=["x/deep/b.tif"])


@pytest.mark.skipif(os.name != "posix", reason="names of bytes")
def test_a_name_that_is_no_utf8_can_be_shown(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"a\xff.png")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    (task,) = find_images([tmp_path])
    assert task.shown.encode("utf-8") and task.name.encode("utf-8")


@pytest.mark.parametrize(("ahead", "pixels"), [(1, 10**9), (4, 10**9), (4, 0), (4, 250)])
def test_reading_ahead_keeps_the_order_and_names_the_damaged(tmp_path, ahead, pixels):
    assert list(read_ahead(read_image, [], ahead=ahead)) == []
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        write_image(path, np.full((10, 10, 3), number, np.uint8))
    paths[3].write_bytes(b"nothing")
    found = list(read_ahead(read_image, paths, ahead=ahead, pixels=pixels_of, most_pixels=pixels))
    assert isinstance(found[3], DataError) and "3.png" in str(found[3])
    assert [int(image[0, 0, 0]) for number, image in enumerate(found) if number != 3] == [0, 1, 2, 4, 5]


def test_lists_of_strangers_are_rows_not_ends(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    entries = [b"\xe9.jpg", b"a\0b.jpg", b"a" * 10**6, b"\x1b[2J.jpg", os.fsencode(tmp_path / "pipe.jpg")]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(entries))))
    tasks = find_images([], tmp_path / "out", listed=listed_paths(["-"]))
    assert len(tasks) == len(entries)
    for task in tasks:
        assert stamp_of(task.path) is None or task.path.is_fifo()
        with pytest.raises(DataError):
            read_image(task.path)
    (tmp_path / "sparse.txt").touch()
    os.truncate(tmp_path / "sparse.txt", 10**12)
    with (tmp_path / "sparse.txt").open() as endless, pytest.raises(DataError, match="is no list of images"):
        monkeypatch.setattr(sys, "stdin", endless)
        list(listed_paths(["-"]))
    for odd in (b"\0".join([b"a.jpg"] * 20), b"a\0b\n" * 20):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(odd)))
        with pytest.raises(DataError, match="not -print0"):
            list(listed_paths(["-"]))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="standard input is closed"):
        list(listed_paths(["-"]))
    os.mkfifo(tmp_path / "list.parquet")
    with pytest.raises(DataError, match=r"list\.parquet cannot be read .*pipe"):
        list(listed_paths([str(tmp_path / "list.parquet")]))


def test_what_no_folder_should_hold_is_said(folder):
    """Links that lead nowhere are images that cannot be read; pipes are passed over, in words."""
    (folder / "x/gone.jpg").symlink_to("nowhere.jpg")
    (folder / "x/loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "x/pipe.jpg")
    for given in ("x", "x/**/*.jpg"):
        passed = PassedOver()
        names = {task.path.name for task in find_images([given], passed_over=passed)}
        assert {"gone.jpg", "loop.jpg"} <= names and "pipe.jpg" not in names
    passed = PassedOver(special=2, links=2)
    assert str(passed) == (
        "2 links to folders: name it to have it looked at; 2 pipes or devices with the name of an image"
    )


@pytest.mark.parametrize("pattern", ["x/**/*.tif", "x/*/*.tif", "*/*.png"])
def test_a_pattern_tells_of_folders_that_cannot_be_opened(folder, monkeypatch, pattern):
    closed = folder / "x/deep" if pattern.startswith("x") else folder / "y"
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda one, mode: Path(one).resolve() != closed.resolve() and access(one, mode)
    )
    passed = PassedOver()
    find_images([pattern], passed_over=passed)
    assert passed.unreadable == 1
