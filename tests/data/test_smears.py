"""The synthetic smears: repeatable, truthfully labeled, BCCD's figures, and never half written."""

import hashlib
import re
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from ssdlib.common.errors import ConfigError, DataError, SsdError
from ssdlib.common.files import read_json
from ssdlib.data import smears
from ssdlib.data.smears import HEIGHT, MARKER, WIDTH, draw_smear, write_dataset
from ssdlib.data.source import open_folder


@pytest.fixture(scope="module")
def sixty() -> list[smears.Smear]:
    return [draw_smear(seed) for seed in range(60)]


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "set", train=3, val=2, test=1, progress=False)


def sizes(fields: list[smears.Smear], label: int) -> np.ndarray:
    boxes = np.concatenate([field.boxes[field.labels == label] for field in fields])
    return boxes[:, 2:] - boxes[:, :2]


# One field -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("seed", [0, 7, 2**63 + 5])
def test_the_same_seed_gives_the_same_pixels_whatever_the_threads(seed, threads):
    first = draw_smear(seed)
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        second = draw_smear(seed)
    finally:
        cv2.setNumThreads(before)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("seed", "digest"), [(0, "0b5425ddddbc50f2"), (1, "098feb0c99753808"), (7, "02f47e42521be62e")]
)
def test_the_present_smears_stay_what_they_are(seed, digest):
    """Recorded before there was a fourth class: boxes and labels to the bit."""
    field = draw_smear(seed)
    assert hashlib.sha256(field.boxes.tobytes() + field.labels.tobytes()).hexdigest()[:16] == digest


def test_the_fourth_class_takes_the_place_of_red_cells(sixty):
    with_it = [draw_smear(seed, fourth_class=True) for seed in range(20)]
    counts = [int((field.labels == smears.ECHINOCYTE).sum()) for field in with_it]
    assert counts.count(0) >= 3 and max(counts) >= 6 and 1.5 < np.mean(counts) < 5
    for field, plain in zip(with_it, sixty, strict=False):
        turned = field.labels == smears.ECHINOCYTE
        assert (plain.labels[turned] == smears.RBC).all()
        np.testing.assert_array_equal(field.labels[~turned], plain.labels[~turned])
        np.testing.assert_array_equal(field.boxes[~turned], plain.boxes[~turned])
        assert (np.abs(field.image.astype(int) - plain.image).max() == 0) == (not turned.any())
    assert max(field.labels.max() for field in sixty) == smears.PLATELETS


def test_a_negative_seed_is_refused():
    with pytest.raises(ConfigError, match="-3"):
        draw_smear(-3)


def test_what_a_field_holds(sixty):
    assert len({field.image.tobytes() for field in sixty}) == len(sixty)
    for field in sixty:
        assert field.image.shape == (HEIGHT, WIDTH, 3) and field.image.dtype == np.uint8
        assert field.boxes.shape == (len(field.labels), 4) and field.boxes.dtype == np.float32
        assert field.labels.dtype == np.int64
        assert (field.boxes[:, :2] >= 1).all() and (field.boxes[:, 2:] <= (WIDTH, HEIGHT)).all()
        assert (field.boxes[:, 2:] - field.boxes[:, :2] >= 10).all()
        assert (field.boxes == np.round(field.boxes)).all()


@pytest.mark.parametrize(
    ("label", "count", "width", "height"),
    [  # bands about BCCD's means: cells a field, width and height of a box in pixels
        (smears.WBC, (0.85, 1.2), (165, 220), (150, 205)),
        (smears.RBC, (9.5, 13.5), (98, 110), (95, 106)),
        (smears.PLATELETS, (0.6, 1.4), (36, 46), (35, 45)),
    ],
)
def test_counts_and_sizes_are_like_bccd(sixty, label, count, width, height):
    counts = [int((field.labels == label).sum()) for field in sixty]
    assert count[0] < np.mean(counts) < count[1]
    across, down = sizes(sixty, label).mean(0)
    assert width[0] < across < width[1]
    assert height[0] < down < height[1]


def test_some_fields_lack_white_cells_or_platelets_and_some_hold_several():
    looks = [smears._place_cells(np.random.default_rng(seed), LOOK) for seed in range(150)]
    white = [sum(cell.label == smears.WBC for cell in cells) for cells in looks]
    platelets = [sum(cell.label == smears.PLATELETS for cell in cells) for cells in looks]
    assert {0, 1, 2} <= set(white) and np.mean(np.array(white) == 1) > 0.85
    assert {0, 1, 2, 3} <= set(platelets) and 0.3 < np.mean(np.array(platelets) == 0) < 0.6


def test_about_a_quarter_of_the_red_cells_is_cut_by_the_border(sixty):
    boxes = np.concatenate([field.boxes[field.labels == smears.RBC] for field in sixty])
    cut = (boxes[:, :2] <= 1).any(1) | (boxes[:, 2] >= WIDTH) | (boxes[:, 3] >= HEIGHT)
    assert 0.15 < cut.mean() < 0.35


def test_colors_are_those_of_stained_blood(sixty):
    field_means = np.stack([field.image.reshape(-1, 3).mean(0) for field in sixty])
    assert np.all(np.abs(field_means.mean(0) - (188, 178, 182)) < 9)  # BCCD's mean red, green and blue
    for field in sixty:
        for (x1, y1, x2, y2), label in zip(field.boxes.astype(int), field.labels, strict=True):
            if label == smears.WBC:
                red, green, blue = np.percentile(field.image[y1:y2, x1:x2].reshape(-1, 3), 10, axis=0)
                assert green < red < blue  # violet


# Boxes and what is drawn ---------------------------------------------------------------------------------

LOOK = smears._choose_look(np.random.default_rng(1))
MAKERS = {
    "WBC": smears._new_white,
    "RBC": lambda rng: smears._new_red(rng, None),
    "Platelets": smears._new_platelet,
    "Echinocyte": lambda rng: smears._burr(rng, smears._new_red(rng, None)),
}


def extent_of(dye: np.ndarray) -> np.ndarray:
    """xyxy in full-size pixels of what a lone cell leaves on the dye map."""
    amount = dye.sum(2)
    rows, columns = np.nonzero(amount > 0.2 * np.percentile(amount[amount > 0.02], 60))
    return 2.0 * np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@pytest.mark.parametrize("name", list(MAKERS))
@pytest.mark.parametrize("seed", range(6))
def test_a_box_fits_its_cell(name, seed):
    rng = np.random.default_rng(seed)
    cell = MAKERS[name](rng)
    while cell.visible < 0.6:
        cell = MAKERS[name](rng)
    drawn = extent_of(smears._stain(rng, LOOK, [cell]))
    # A platelet fades away toward its edge, so its visible part is allowed to be smaller than the box.
    slack = 0.16 * (cell.box[2] - cell.box[0]) + 2 if name == "Platelets" else 5
    assert np.abs(drawn - cell.box).max() <= slack


def test_the_picture_is_empty_outside_the_boxes(sixty):
    for field in sixty:
        bare = np.ones((HEIGHT, WIDTH), bool)
        for x1, y1, x2, y2 in field.boxes.astype(int):
            bare[max(0, y1 - 8) : y2 + 8, max(0, x1 - 8) : x2 + 8] = False
        green = field.image[..., 1][bare].astype(int)
        # Lamp and vignette stay within this; specks of dust are far below one pixel in a hundred.
        assert np.mean(green < np.median(green) - 20) < 0.01


def test_every_box_has_its_cell(sixty):
    # A cell takes light away: part of each box is darker than the brightest empty field.
    for field in sixty:
        green = field.image[..., 1].astype(int)
        empty = np.percentile(green, 98)
        for x1, y1, x2, y2 in field.boxes.astype(int):
            assert np.percentile(green[y1:y2, x1:x2], 20) < empty - 6


# The folder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "val", "test"), [(0, 0, 0), (2, 0, 0), (0, 1, 1)], ids=["empty", "train only", "no train"]
)
def test_layout(tmp_path, train, val, test):
    counts = {"train": train, "val": val, "test": test}
    root = write_dataset(tmp_path / "deep" / "set", **counts, progress=False)
    lists = {path.stem: path.read_text().split() for path in (root / "ImageSets" / "Main").iterdir()}
    assert {key: len(ids) for key, ids in lists.items()} == {**counts, "trainval": train + val}
    names = sorted(lists["trainval"] + lists["test"])
    assert names == [f"SmearImage_{i:05d}" for i in range(train + val + test)]
    for folder, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
        assert sorted(path.name for path in (root / folder).iterdir()) == [n + suffix for n in names]
    assert read_json(root / MARKER) == {"version": smears.SMEARS_VERSION, "seed": 0, **counts}
    assert [path.name for path in root.parent.iterdir()] == ["set"]


def test_annotations_read_back_and_belong_to_their_images(small_set, monkeypatch, tmp_path):
    drawn = []

    def remember(seed, original=draw_smear):
        drawn.append(original(seed))
        return drawn[-1]

    monkeypatch.setattr(smears, "draw_smear", remember)
    again = write_dataset(tmp_path / "set", train=3, val=2, test=1, progress=False)
    for index, field in enumerate(drawn):
        name = f"SmearImage_{index:05d}"
        labeled = open_folder(again).labels.by_id[name]
        np.testing.assert_array_equal(labeled.boxes, field.boxes)
        assert labeled.names == [smears.NAMES[label] for label in field.labels]
        assert (labeled.width, labeled.height, labeled.findings) == (WIDTH, HEIGHT, [])
        stored = cv2.imread(str(again / "JPEGImages" / f"{name}.jpg"))[..., ::-1].astype(int)
        assert np.abs(stored - field.image).mean() < 3
        for part in (f"Annotations/{name}.xml", f"JPEGImages/{name}.jpg"):
            assert (again / part).read_bytes() == (small_set / part).read_bytes()


def test_a_set_with_the_fourth_class_says_so_and_is_another_set(small_set, tmp_path):
    options = {"train": 3, "val": 2, "test": 1, "progress": False}
    root = write_dataset(tmp_path / "set", **options, fourth_class=True)
    assert read_json(root / MARKER) == {**read_json(small_set / MARKER), "fourth_class": "Echinocyte"}
    assert set(open_folder(root).class_names) == set(smears.NAMES[1:])
    with pytest.raises(DataError, match="holds other smears"):
        write_dataset(root, **options)


def test_another_seed_gives_another_set(small_set, tmp_path):
    other = write_dataset(tmp_path / "set", train=1, val=0, test=0, seed=1, progress=False)
    name = "JPEGImages/SmearImage_00000.jpg"
    assert (other / name).read_bytes() != (small_set / name).read_bytes()


def test_a_complete_set_is_left_alone(small_set, monkeypatch):
    monkeypatch.setattr(smears, "draw_smear", lambda seed: pytest.fail("drew again"))
    before = {path: path.stat().st_mtime_ns for path in small_set.rglob("*")}
    assert write_dataset(small_set, train=3, val=2, test=1, progress=False) == small_set
    assert {path: path.stat().st_mtime_ns for path in small_set.rglob("*")} == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, error):
    calls = []

    def fail_at_third(seed):
        calls.append(seed)
        if len(calls) == 3:
            raise error
        return draw_smear(seed)

    monkeypatch.setattr(smears, "draw_smear", fail_at_third)
    with pytest.raises(SsdError if isinstance(error, OSError) else error):
        write_dataset(tmp_path / "set", train=4, val=0, test=0, progress=False)
    assert list(tmp_path.iterdir()) == []


def write_one(root: Path, **options) -> Path:
    return write_dataset(root, **{"train": 1, "val": 0, "test": 0, "progress": False} | options)


def put_a_photo(root: Path) -> None:
    root.mkdir()
    (root / "photo.jpg").write_bytes(b"mine")


@pytest.mark.parametrize(
    "prepare",
    [
        lambda root: root.write_text("a file"),
        put_a_photo,
        lambda root: (write_one(root) / MARKER).write_text("{"),
        lambda root: next((write_one(root) / "JPEGImages").iterdir()).unlink(),
        lambda root: next((write_one(root) / "Annotations").iterdir()).unlink(),
        lambda root: write_one(root, seed=5),
    ],
    ids=["a file", "something else", "marker", "image", "annotation", "other smears"],
)
def test_a_folder_that_is_not_this_set_is_refused_and_kept(tmp_path, prepare):
    prepare(root := tmp_path / "set")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SsdError, match="set"):
        write_one(root)
    assert sorted(tmp_path.rglob("*")) == before


def test_two_writers_at_once_agree(tmp_path, monkeypatch):
    root = tmp_path / "set"

    def slow(seed):
        monkeypatch.undo()
        write_one(root)  # the other process gets there first
        return draw_smear(seed)

    monkeypatch.setattr(smears, "draw_smear", slow)
    assert write_one(root) == root
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("wrong", [{"test": -2}, {"seed": -1}])
def test_negative_numbers_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match="0 or more"):
        write_dataset(tmp_path / "set", progress=False, **wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("progress", [False, True])
def test_progress_goes_to_standard_error_only(tmp_path, capsys, progress):
    write_dataset(tmp_path / "set", train=1, val=0, test=0, progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("drawing smears" in err) == progress


def test_drawing_is_not_slow():
    draw_smear(0)
    start = time.process_time()
    for seed in range(10):
        draw_smear(seed)
    assert 10 / (time.process_time() - start) > 10


def test_hard_smears_are_other_pictures_with_the_same_promises(tmp_path):
    plain, hard = smears.draw_smear(3), smears.draw_smear(3, hard=True)
    assert not np.array_equal(plain.image, hard.image)
    again = smears.draw_smear(3, hard=True)
    assert np.array_equal(hard.image, again.image) and np.array_equal(hard.boxes, again.boxes)
    assert set(hard.labels.tolist()) <= {1, 2, 3}  # debris has no box
    drawn = [smears.draw_smear(k, hard=True) for k in range(30)]
    light = [float(np.median(smear.image)) for smear in drawn]
    assert max(light) - min(light) > 40  # some slides are underexposed
    boxes = np.concatenate([smear.boxes for smear in drawn])
    assert (
        (boxes[:, :2] >= 1).all()
        and (boxes[:, 2:] <= (640, 480)).all()
        and (boxes[:, 2:] > boxes[:, :2]).all()
    )


def test_hard_smears_lack_labels_that_the_complete_ones_have(tmp_path):
    root = smears.write_dataset(tmp_path / "hard", train=25, val=3, test=2, hard=True, progress=False)
    labeled = {"RBC": 0, "WBC": 0, "Platelets": 0}
    everything = dict(labeled)
    for file in (root / "Annotations").glob("*.xml"):
        for counts, path in ((labeled, file), (everything, root / smears.COMPLETE / file.name)):
            for name in re.findall("<name>(.*?)</name>", path.read_text()):
                counts[name] += 1
    assert 0.80 < labeled["RBC"] / everything["RBC"] < 0.97
    assert all(labeled[name] <= everything[name] for name in labeled)
    source = open_folder(root)
    assert source.synthetic and sum(source.dataset("train").class_counts().values()) < sum(
        everything.values()
    )
