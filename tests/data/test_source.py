"""Where the data comes from, and what happens when it does not come."""

import hashlib
import io
import itertools
import os
import shutil
import urllib.error
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from ssdlib.common.errors import DataError
from ssdlib.config import BCCD_CLASSES
from ssdlib.data import download, smears
from ssdlib.data import source as bccd
from ssdlib.data.formats.voc import write_voc
from ssdlib.data.splits import PARTS, divide


@pytest.fixture
def tiny_smears(monkeypatch):
    """Four smears in place of 364."""
    write = smears.write_dataset
    monkeypatch.setattr(smears, "write_dataset", lambda root, **kw: write(root, train=2, val=1, test=1, **kw))


def test_real_bccd_has_the_published_counts(bccd_root, monkeypatch):
    monkeypatch.setenv("BCCD_ROOT", str(bccd_root))
    source = bccd.resolve("auto")
    assert (source.kind, source.synthetic, source.notice) == ("bccd", False, "")
    published = {
        "train": (205, 214, 2382, 209),
        "val": (87, 87, 968, 83),
        "test": (72, 71, 805, 69),
        "trainval": (292, 301, 3350, 292),
    }
    points = {"train": 1, "val": 1, "test": 0, "trainval": 2}  # red cells without an area
    for split, (images, wbc, rbc, platelets) in published.items():
        data = source.dataset(split)
        assert len(data) == images
        assert data.class_counts(raw=True) == {"WBC": wbc, "RBC": rbc, "Platelets": platelets}
        assert data.class_counts() == {"WBC": wbc, "RBC": rbc - points[split], "Platelets": platelets}
    assert source.split_ids("trainval") == sorted(source.split_ids("train") + source.split_ids("val"))
    assert bccd.resolve(bccd_root).kind == bccd.resolve(bccd_root.parent).kind == "bccd"


def test_real_bccd_is_what_the_manifest_says(bccd_root):
    manifest = Path(download.__file__).with_name("bccd.sha256").read_bytes()
    assert len(download.BCCD.manifest()) == 364 * 2 + 4
    assert download.BCCD.differences(bccd_root) == []
    # The fingerprint is the sum of the list of sums, so the manifest's own sum is BCCD's fingerprint.
    assert bccd.open_folder(bccd_root).fingerprint == hashlib.sha256(manifest).hexdigest()


def test_offline_auto_falls_back_to_smears_and_says_so_once(no_data, tiny_smears, capfd):
    source = bccd.resolve("auto", progress=False)
    assert (source.kind, source.synthetic, source.class_names) == ("smears", True, BCCD_CLASSES)
    assert "SYNTHETIC" in source.notice
    assert source.folder == no_data / "data" / "cache" / f"smears-hard-{smears.HARD_VERSION}"
    printed = capfd.readouterr().err
    assert "!! SYNTHETIC DATA" in printed
    assert "BCCD cannot be had" in printed
    assert bccd.resolve("auto", progress=False).describe() == source.describe()
    assert capfd.readouterr().err == ""
    described = source.describe()
    assert described == {
        "source": "smears",
        "root": str(source.folder),
        "synthetic": True,
        "notice": source.notice,
        "fingerprint": source.fingerprint,
    }
    assert source.describe(root=False) == {k: v for k, v in described.items() if k != "root"}
    by_path = bccd.resolve(source.folder)
    assert (by_path.kind, by_path.synthetic, by_path.notice) == ("smears", True, source.notice)


def test_offline_bccd_is_an_error_with_the_remedy(no_data):
    with pytest.raises(DataError, match="BCCD_ROOT"):
        bccd.resolve("bccd")


def test_the_environment_variable_comes_first_and_must_be_right(no_data, smears_root, monkeypatch):
    shutil.copytree(smears_root, no_data / "data" / "BCCD")
    assert bccd.resolve("auto").folder == no_data / "data" / "BCCD"
    monkeypatch.setenv("BCCD_ROOT", str(smears_root))
    assert bccd.resolve("auto").folder == bccd.resolve("bccd").folder == smears_root
    monkeypatch.setenv("BCCD_ROOT", str(no_data / "nowhere"))
    for data in ("auto", "bccd"):  # never quietly something else
        with pytest.raises(DataError, match=r"BCCD_ROOT is .*nowhere"):
            bccd.resolve(data)


# A folder of yours ---------------------------------------------------------------------------------------


def test_a_folder_without_any_object(smears_copy):
    for file in (smears_copy / "Annotations").iterdir():
        write_voc(file, width=640, height=480, boxes=[], names=[])
    with pytest.raises(DataError, match=r"no label in .* is of use\. Label some images"):
        bccd.resolve(smears_copy)


@pytest.fixture
def own(smears_copy):
    """Images and classes of one's own, without the marks of smears and without splits."""
    (smears_copy / "smears.json").unlink()
    shutil.rmtree(smears_copy / "ImageSets")
    for k, file in enumerate(sorted((smears_copy / "Annotations").iterdir())):
        (smears_copy / "JPEGImages" / f"{file.stem}.jpg").rename(smears_copy / "JPEGImages" / f"f{k}.jpg")
        file.unlink()
        write_voc(
            smears_copy / "Annotations" / f"f{k}.xml",
            width=640,
            height=480,
            boxes=[[1, 1, 9, 9], [5, 5, 20, 20]],
            names=["yeast", "spore"],
        )
    return smears_copy


def test_own_classes_are_discovered_and_images_divided(own, capfd):
    bccd._say_once.cache_clear()
    source = bccd.resolve(own)
    assert (source.kind, source.class_names, source.synthetic) == ("voc", ("spore", "yeast"), False)
    assert "divided by a fixed seed" in source.notice
    assert "divided by a fixed seed" in capfd.readouterr().err.replace("\n", " ").replace("!! !!", "")
    parts = [source.split_ids(split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [7, 3, 2]
    assert sorted(itertools.chain(*parts)) == sorted(f"f{k}" for k in range(12))
    assert sorted(source.split_ids("trainval")) == sorted(parts[0] + parts[1])
    assert parts == [bccd.resolve(own).split_ids(split) for split in ("train", "val", "test")]
    assert source.dataset("test").class_counts() == {"spore": 2, "yeast": 2}


def split_file(root, split):
    return root / "ImageSets" / "Main" / f"{split}.txt"


@pytest.mark.parametrize("content", [None, "", "\n \n"])
@pytest.mark.parametrize(("split", "sizes"), [("val", (4, 2, 3)), ("test", (4, 3, 2))])
def test_a_missing_split_is_set_aside_from_train(smears_copy, content, split, sizes):
    (smears_copy / "smears.json").unlink()
    before = {name: bccd.resolve(smears_copy).split_ids(name) for name in PARTS}
    for name in (split, "trainval"):
        split_file(smears_copy, name).unlink()
    if content is not None:
        split_file(smears_copy, split).write_text(content)
    source = bccd.resolve(smears_copy)
    after = {name: source.split_ids(name) for name in PARTS}
    assert tuple(map(len, after.values())) == sizes
    assert sorted(after["train"] + after[split]) == before["train"]
    assert source.split_ids("trainval") == sorted(after["train"] + after["val"])
    assert f"has no {split} split: 2 images are set aside for it from train" in source.notice
    assert source.dataset(split).samples
    assert bccd.resolve(smears_copy).labels.splits == source.labels.splits


def test_only_a_list_for_train(smears_copy):
    for name in ("val", "test", "trainval"):
        split_file(smears_copy, name).unlink()
    expected = divide(split_file(smears_copy, "train").read_text().split())
    assert bccd.resolve(smears_copy).labels.splits == expected


def test_trainval_says_what_a_missing_train_or_val_is(smears_copy):
    expected = bccd.resolve(smears_copy).labels.splits
    for name in ("train", "val"):
        content = split_file(smears_copy, name).read_text()
        split_file(smears_copy, name).unlink()
        assert bccd.resolve(smears_copy).labels.splits == expected
        split_file(smears_copy, name).write_text(content)


@pytest.mark.parametrize("content", [None, "", "\n \n"])
def test_an_empty_split_is_an_error_that_names_the_file(smears_copy, content):
    for split in ("train", "trainval"):
        if content is None:
            split_file(smears_copy, split).unlink()
        else:
            split_file(smears_copy, split).write_text(content)
    with pytest.raises(DataError, match=r"split train of .* is empty.*train\.txt"):
        bccd.resolve(smears_copy).dataset("train")
    with pytest.raises(DataError, match="no split 'valid'"):
        bccd.resolve(smears_copy).split_ids("valid")


def test_trainval_is_the_union_where_it_is_not_given(smears_copy):
    split_file(smears_copy, "trainval").unlink()
    source = bccd.resolve(smears_copy)
    assert source.split_ids("trainval") == source.split_ids("train") + source.split_ids("val")


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "..", "a\\b"])
def test_a_split_cannot_lead_out_of_the_folder(smears_copy, name):
    split_file(smears_copy, "val").write_text(f"{name}\n")
    with pytest.raises(DataError, match=r"val\.txt lists"):
        bccd.resolve(smears_copy).dataset("val")


def test_missing_files_are_named(smears_copy):
    first, second, third = bccd.resolve(smears_copy).split_ids("train")[:3]
    (smears_copy / "JPEGImages" / f"{first}.jpg").unlink()
    (smears_copy / "Annotations" / f"{second}.xml").unlink()
    for image_id, complaint in (
        (first, rf"{first}\.xml has no image.*ImageSets"),
        (second, rf"{second}\.jpg has no annotation.*ImageSets"),
        ("Nowhere_1", r"neither an image nor an annotation .*Nowhere_1\.xml.*Restore them"),
    ):
        split_file(smears_copy, "train").write_text(f"{image_id}\n")
        with pytest.raises(DataError, match=complaint):
            bccd.resolve(smears_copy).dataset("train")
    split_file(smears_copy, "train").write_text(f"{third}\n")
    assert len(bccd.resolve(smears_copy).dataset("train")) == 1


def test_an_image_of_another_name_is_found_by_what_the_annotation_states(smears_copy):
    first = bccd.resolve(smears_copy).split_ids("train")[0]
    image = smears_copy / "JPEGImages" / f"{first}.jpg"
    image.rename(image.with_name("scan.jpg"))
    file = smears_copy / "Annotations" / f"{first}.xml"
    write_voc(file, width=640, height=480, boxes=[[1, 1, 9, 9]], names=["RBC"], filename="scan.jpg")
    sample = bccd.resolve(smears_copy).dataset("train").samples[0]
    assert (sample.image_id, sample.image_path.name) == (first, "scan.jpg")


def test_an_unknown_class_is_named(smears_copy, monkeypatch):
    monkeypatch.setenv("BCCD_ROOT", str(smears_copy))
    file = smears_copy / "Annotations" / f"{bccd.resolve('bccd').split_ids('val')[0]}.xml"
    write_voc(file, width=640, height=480, boxes=[[1, 1, 5, 5]], names=["Yeast"])
    with pytest.raises(DataError, match=rf"{file.name} has unknown class 'Yeast'; known are WBC, RBC"):
        bccd.resolve("bccd").dataset("val")


def test_a_truncated_image_is_an_error_when_it_is_read(smears_copy):
    data = bccd.resolve(smears_copy).dataset("test", limit=1)
    path = data.image_path(0)
    path.write_bytes(path.read_bytes()[:9000])
    data.targets()
    with pytest.raises(DataError, match=path.name):
        data[0]


def test_limit_and_transform(smears_source):
    assert len(smears_source.dataset("train", limit=2)) == 2
    assert smears_source.dataset("val", transform=lambda image, target: ("seen", target))[0][0] == "seen"


def test_the_fingerprint_does_not_read_what_has_no_end(smears_copy, monkeypatch):
    monkeypatch.setattr(bccd, "_MOST_HASHED", 1_000_000)
    huge, seen = smears_copy / "JPEGImages/SmearImage_00001.jpg", set()
    for size in (10**12, 10**12 + 1):
        os.truncate(huge, size)
        seen.add(bccd.open_folder(smears_copy).fingerprint)
    assert len(seen) == 2


def test_fingerprint_follows_content_and_nothing_else(smears_copy, smears_source):
    def fingerprint():
        return bccd.resolve(smears_copy).fingerprint

    (smears_copy / "notes.txt").write_text("x")
    assert fingerprint() == smears_source.fingerprint
    image = next((smears_copy / "JPEGImages").iterdir())
    image.write_bytes(image.read_bytes() + b"x")
    changed, source = fingerprint(), bccd.resolve(smears_copy)
    image.rename(image.with_name("other.jpg"))
    assert len({smears_source.fingerprint, changed, fingerprint()}) == 3
    with pytest.raises(DataError, match=rf"{image.name} is gone since"):
        _ = source.fingerprint


# The download --------------------------------------------------------------------------------------------

FILES = {
    "Annotations/a.xml": b"<annotation/>",
    "JPEGImages/a.jpg": b"jpeg",
    "ImageSets/Main/train.txt": b"a\n",
}


def archive(tmp_path, files, extra=()):
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in files.items():
            packed.writestr(f"BCCD_Dataset-0123abc/BCCD/{name}", content)
        for name in extra:
            packed.writestr(name, b"elsewhere")
    return path


@pytest.fixture
def online(no_data, monkeypatch):
    """A network that serves what `online(path)` is given, and a manifest of three files."""
    monkeypatch.delenv("SSDLIB_OFFLINE")
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}

    def serve(path):
        served = replace(download.BCCD, url=path.as_uri(), manifest=lambda: sums)
        monkeypatch.setattr(download, "BCCD", served)
        return no_data / "data" / "BCCD"

    return serve


def test_a_good_archive_is_unpacked_and_found_again(online, tmp_path):
    hostile = ("../evil", "/evil", "x/BCCD/../../evil", "x/BCCD/Annotations/../../../evil", "x/BCCD/more.txt")
    target = online(archive(tmp_path, FILES, hostile))
    source = bccd.resolve("auto", progress=False)
    assert (source.kind, source.folder) == ("bccd", target)
    unpacked = {f.relative_to(target).as_posix(): f.read_bytes() for f in target.rglob("*") if f.is_file()}
    assert unpacked == FILES
    assert [path.name for path in target.parent.iterdir()] == ["BCCD"]
    assert not list(tmp_path.parent.rglob("evil"))
    online(tmp_path / "gone.zip")
    assert bccd.resolve("bccd").folder == target


def test_bad_archives_leave_nothing_behind(online, tmp_path):
    good = archive(tmp_path, FILES).read_bytes()
    corrupted = archive(tmp_path, {**FILES, "JPEGImages/a.jpg": b"not it"}).read_bytes()
    lacking = archive(tmp_path, dict(list(FILES.items())[:2])).read_bytes()
    cases = {
        "empty": (b"", "damaged"),
        "truncated": (good[: len(good) // 2], "damaged"),
        "corrupted": (corrupted, "JPEGImages/a.jpg .*is not the published file"),
        "lacking": (lacking, "lacks ImageSets/Main/train.txt"),
        "page": (b"<html>", "damaged"),
    }
    for name, (content, complaint) in cases.items():
        path = tmp_path / f"{name}.zip"
        path.write_bytes(content)
        target = online(path)
        with pytest.raises(DataError, match=complaint):
            download.BCCD.download(target, progress=False)
        assert list(target.parent.iterdir()) == [], name


def test_being_offline_is_an_error_once_and_then_smears(online, monkeypatch, tiny_smears, capfd):
    attempts = []

    def refuse(request, timeout):
        attempts.append(timeout)
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr(download.urllib.request, "urlopen", refuse)
    for _ in range(2):
        with pytest.raises(DataError, match=r"Network is unreachable.*BCCD_ROOT"):
            bccd.resolve("bccd", progress=False)
    assert bccd.resolve("auto", progress=False).kind == "smears"
    assert attempts == [download.TIMEOUT_SECONDS]
    assert "Network is unreachable" in capfd.readouterr().err


def test_an_endless_answer_is_cut_off(online, monkeypatch, tmp_path):
    answer = io.BytesIO(b"x" * 200_000)
    answer.headers = {}
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *a, **k: answer)
    monkeypatch.setattr(download, "MAX_ARCHIVE_BYTES", 100_000)
    with pytest.raises(DataError, match="not BCCD"):
        download.BCCD.download(tmp_path / "x" / "BCCD", progress=False)


def test_another_process_may_finish_first(online, tmp_path, monkeypatch):
    target = online(archive(tmp_path, FILES))
    open_url = download.urllib.request.urlopen

    def slow(*args, **options):
        for name, content in FILES.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
        return open_url(*args, **options)

    monkeypatch.setattr(download.urllib.request, "urlopen", slow)
    assert download.BCCD.download(target, progress=False) == target
    assert download.BCCD.differences(target) == []
    (target / "JPEGImages" / "a.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match="already holds something"):  # never overwritten
        download.BCCD.download(target, progress=False)
    assert (target / "JPEGImages" / "a.jpg").read_bytes() == b"mine"


def test_extra_smears_are_in_no_split_of_the_smears(no_data):
    extra = bccd.extra_smears(3, progress=False)
    assert len(extra) == 3 and extra.class_names == BCCD_CLASSES
    smears.write_dataset(no_data / "same", train=3, val=0, test=0, progress=False)
    standard = bccd.open_folder(no_data / "same").dataset("all")
    for ours, theirs in zip(extra.samples, standard.samples, strict=True):
        assert ours.image_path.read_bytes() != theirs.image_path.read_bytes()
    stamp = extra.samples[0].image_path.stat().st_mtime_ns
    assert bccd.extra_smears(3, progress=False).samples[0].image_path.stat().st_mtime_ns == stamp
