"""One way to look: the scale of a field is found, and all parts of the project see the same cells in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from ssdlib.config import ModelConfig, Use
from ssdlib.data.images import read_um_per_pixel, write_image
from ssdlib.data.smears import draw_smear
from ssdlib.data.source import open_folder
from ssdlib.detector.model_file import SHIPPED
from ssdlib.evaluation.evaluate import evaluate_model
from ssdlib.inference.detections import Detections
from ssdlib.inference.fields import Seen, detect_fields, detect_image
from ssdlib.inference.inputs import find_images
from ssdlib.inference.job import DetectJob, detect_images
from ssdlib.inference.predictor import Predictor
from ssdlib.inference.tiling import Tiling

NAMES = ("WBC", "RBC", "Platelets")


class Narrow:
    """Finds dark disks as a network would: those that look 0.6 to 1.7 times as large as in training."""

    config = ModelConfig()
    class_names = NAMES
    batch_size = 4

    def __init__(self) -> None:
        self.views = 0

    def stream(self, images: Iterable[np.ndarray]) -> Iterator[Detections]:
        for image in images:
            self.views += 1
            height, width = image.shape[:2]
            found = cv2.connectedComponentsWithStats((image[..., 1] < 128).astype(np.uint8))[2][1:]
            times = np.sqrt(found[:, 2] * found[:, 3] / (width * height)) / (104 / np.sqrt(640 * 480))
            boxes = [[x, y, x + w, y + h] for x, y, w, h, _ in found[(times > 0.6) & (times < 1.7)]]
            yield Detections(boxes, [0.9] * len(boxes), [2] * len(boxes), (width, height), NAMES)


def disks(side: float, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """A light field full of dark disks of one diameter, and their number."""
    image, step = np.full((*size[::-1], 3), 225, np.uint8), side * 1.4
    centers = [
        (round(x), round(y))
        for x in np.arange(step * 0.6, size[0] - side * 0.6, step)
        for y in np.arange(step * 0.6, size[1] - side * 0.6, step)
    ]
    for center in centers:
        cv2.circle(image, center, round(side / 2), (170, 60, 70), -1)
    return image, len(centers)


@pytest.mark.parametrize("size", [(640, 480), (900, 900), (1600, 1200)])
@pytest.mark.parametrize("octaves", [-1.0, -0.6, 0.0, 0.3, 0.6, 1.0])
def test_cells_are_found_over_an_octave_either_way(size, octaves):
    image, count = disks(104 * 2**octaves, size)
    if count < 6:
        pytest.skip("too few cells to tell")
    seen = detect_image(Narrow(), image, Tiling())
    assert len(seen.found) == count
    if abs(octaves) > 0.55:
        assert seen.scale == "cells"
        assert seen.um_per_pixel == pytest.approx(0.072 / 2**octaves, rel=0.05) and seen.measured_um is None


def test_a_blank_field_is_looked_at_once():
    detector = Narrow()
    assert detect_image(detector, np.full((480, 640, 3), 225, np.uint8), Tiling()).scale == "assumed"
    assert detector.views == 1


def test_a_given_scale_is_taken_and_that_of_a_file_checked():
    image, count = disks(60, (640, 480))
    given = detect_image(Narrow(), image, Tiling(um_per_pixel=0.072))
    assert (given.scale, given.measured_um, len(given.found)) == ("given", 0.072, 0), "the user's word stands"
    right = detect_image(Narrow(), image, Tiling(), um_in_file=0.125)
    assert (right.scale, right.measured_um, len(right.found)) == ("file", 0.125, count)
    wrong = detect_image(Narrow(), image, Tiling(), um_in_file=0.2)
    assert (wrong.scale, wrong.measured_um, len(wrong.found)) == ("cells", None, count)


def test_weights_for_other_classes_take_the_scale_as_it_is():
    detector, (image, _) = Narrow(), disks(50, (640, 480))
    assert detect_image(detector, image, Tiling(use=Use(reference=""))).scale == "assumed"
    assert detector.views == 1


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Four smears: as in training, of half the pixels, of twice as many, and four of them side by side."""
    folder = tmp_path_factory.mktemp("fields")
    smears = [draw_smear(seed) for seed in range(4)]
    joined = np.vstack([np.hstack([smears[k].image, smears[k + 1].image]) for k in (0, 2)])
    pictures = {
        "plain": smears[0].image,
        "small": cv2.resize(smears[1].image, (320, 240), interpolation=cv2.INTER_AREA),
        "fine": cv2.resize(smears[2].image, (1280, 960), interpolation=cv2.INTER_CUBIC),
        "joined": joined,
    }
    (folder / "labels").mkdir(parents=True)
    for name, picture in pictures.items():
        write_image(folder / "images" / f"{name}.png", picture)
        (folder / "labels" / f"{name}.txt").write_text("1 0.5 0.5 0.1 0.1\n")
    (folder / "classes.txt").write_text("WBC\nRBC\nPlatelets\n")
    return folder


@pytest.mark.skipif(not SHIPPED.is_file(), reason="no shipped weights")
def test_evaluation_detection_and_page_see_the_same_cells(fields):
    predictor = Predictor.from_checkpoint(None, device="cpu", precision="fp32", score_threshold=0.2)
    dataset = open_folder(fields).dataset("all")
    tiling = Tiling(use=predictor.config.use)
    _, evaluated = evaluate_model(predictor, dataset)
    tasks = find_images([fields / "images"])
    job = DetectJob(tasks, dict.fromkeys(NAMES, 0.2), tiling)
    detected = {seen.task.path.stem: seen for seen in detect_images(predictor, [tasks], job)}
    assert len(dataset) == len(detected) == 4
    for index, one in enumerate(evaluated):
        name = dataset.samples[index].image_path.stem
        # Batches differ, and with them the last bits of a convolution's sums.
        other, page = detected[name].found, detect_image(predictor, dataset.image(index), tiling).found
        for found in (other, page.above(0.2)):
            assert found.counts() == one.above(0.2).counts()
            np.testing.assert_allclose(found.boxes, one.above(0.2).boxes, atol=0.5)
    counts = {name: seen.found.above(0.5).counts()["RBC"] for name, seen in detected.items()}
    assert counts["small"] > 10 and counts["fine"] > 10 and counts["joined"] > 2.5 * counts["plain"]


def test_fields_of_a_batch_come_in_order_and_with_scales_of_their_own():
    cases = [disks(side, (640, 480)) for side in (104, 52, 104, 60, 104)]
    seen = list(detect_fields(Narrow(), ((image, None) for image, _ in cases), Tiling()))
    assert [len(one.found) for one in seen] == [count for _, count in cases]
    assert [one.scale for one in seen] == ["assumed", "cells", "assumed", "cells", "assumed"]
    assert isinstance(seen[0], Seen)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, None),
        ({282: 72.0, 296: 2}, None),  # a screen's resolution
        ({282: 25_400 / 0.1, 296: 2}, 0.1),
        ({282: 10_000 / 0.1, 296: 3}, 0.1),
        ({282: 10.0, 270: "ImageJ=1.53t\nunit=micron\n"}, 0.1),
        ({282: 10.0, 270: "ImageJ=1.53t\nunit=\\u00B5m\n"}, 0.1),
        ({282: 10.0, 270: "ImageJ=1.53t\nunit=inch\n"}, None),
        ({270: '<OME><Pixels PhysicalSizeX="0.1" PhysicalSizeY="0.1"/></OME>'}, 0.1),
        ({270: '<OME><Pixels PhysicalSizeX="100" PhysicalSizeXUnit="nm"/></OME>'}, 0.1),
        ({270: '<OME><Pixels PhysicalSizeX="0.0001" PhysicalSizeXUnit="mm"/></OME>'}, 0.1),
        ({270: '<OME><Pixels PhysicalSizeX="1.0"/></OME>', 282: 25_400 / 0.1}, None),
        ({282: 0.0, 296: 2}, None),
    ],
)
def test_the_scale_in_a_tiff(tmp_path, tags, expected):
    about = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        about[tag] = value
    Image.new("RGB", (20, 10), "white").save(tmp_path / "a.tif", tiffinfo=about)
    found = read_um_per_pixel(tmp_path / "a.tif")
    assert found == (None if expected is None else pytest.approx(expected))
    write_image(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    assert read_um_per_pixel(tmp_path / "a.png") is None
