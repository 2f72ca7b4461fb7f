"""Notes on quality: each fault of an image is named, a good image has none, and nothing makes it fail."""

from __future__ import annotations

import time
from dataclasses import replace

import cv2
import numpy as np
import pytest

from ssdlib.config import Appearance, ModelConfig, Use
from ssdlib.data.smears import draw_smear
from ssdlib.inference.detections import Detections
from ssdlib.inference.quality import (
    ANY_SMEAR,
    BLANK,
    BLURRED,
    BRIGHT,
    COLORS,
    DARK,
    NOTES,
    OVEREXPOSED,
    SIZES,
    UNSURE,
    appearance_of,
    edge_blur,
    measure,
    notes_of,
    quality_notes,
    quality_text,
)
from ssdlib.inference.tiling import clear_of_border

NAMES = ("WBC", "RBC", "Platelets")
VIEW = (640, 480)


def cells_of(smear) -> Detections:
    size = smear.image.shape[1::-1]
    return Detections(smear.boxes, np.full(len(smear.boxes), 0.9), smear.labels, size, NAMES)


SMEARS = [draw_smear(seed) for seed in range(40, 52)]
USUAL = appearance_of(measure(one.image, cells_of(one), VIEW) for one in SMEARS[:8])


def notes(image, found=None, view=VIEW, appearance=USUAL, threshold=0.5):
    found = Detections.empty(image.shape[1::-1], NAMES) if found is None else found
    return quality_notes(image, found, view, appearance, thresholds=dict.fromkeys(NAMES, threshold))


@pytest.mark.parametrize("smear", SMEARS[8:], ids=range(4))
@pytest.mark.parametrize("appearance", [USUAL, None], ids=["like training", "no training known"])
def test_a_good_image_has_no_notes(smear, appearance):
    assert notes(smear.image, cells_of(smear), appearance=appearance) == ()


def scaled(image, factor):
    return (image * factor).clip(0, 255).astype(np.uint8)


def blurred(image, sigma):
    """Of so many pixels of the 300 that a view has."""
    return cv2.GaussianBlur(image, (0, 0), sigmaX=sigma * 640 / 300, sigmaY=sigma * 480 / 300)


@pytest.mark.parametrize(
    ("fault", "note"),
    [
        (lambda image: scaled(image, 0.3), DARK),
        (lambda image: scaled(image, 0.6), DARK),
        (lambda image: scaled(image, 1.4), BRIGHT),
        (lambda image: blurred(image, 4), BLURRED),
        (lambda image: image[..., [1, 0, 2]], COLORS),
        (lambda image: np.repeat(image[..., 1:2], 3, axis=2), COLORS),
        (lambda image: 255 - image, DARK),
        (lambda image: 255 - image[::-1], COLORS),
    ],
)
@pytest.mark.parametrize("smear", SMEARS[8:], ids=range(4))
def test_each_fault_is_named(smear, fault, note):
    assert note in notes(np.ascontiguousarray(fault(smear.image)), cells_of(smear))


@pytest.mark.parametrize("noise", [0, 3, 8])
def test_a_blank_field_is_called_blank_and_nothing_else_of_its_cells(noise):
    image = np.random.default_rng(0).normal((200, 195, 190), noise or 1e-9, (480, 640, 3)).astype(np.uint8)
    assert notes(image) == (BLANK,)


def test_a_field_with_white_cells_alone_is_not_blank():
    image = np.full((480, 640, 3), 195, np.uint8)
    cv2.circle(image, (300, 200), 70, (110, 70, 160), -1)
    assert notes(image, Detections([[230, 130, 370, 270]], [0.9], [1], VIEW, NAMES)) == ()


@pytest.mark.parametrize(("factor", "expected"), [(0.5, True), (1.0, False), (1.6, True)])
def test_cell_sizes_are_those_in_the_view(factor, expected):
    smear = SMEARS[9]
    view = tuple(round(side / factor) for side in VIEW)
    assert (SIZES in notes(smear.image, cells_of(smear), view)) == expected


def test_a_full_field_with_few_boxes_is_unsure():
    smear = SMEARS[9]
    found = cells_of(smear)
    few = replace(found, boxes=found.boxes[:3], scores=found.scores[:3], labels=found.labels[:3])
    assert UNSURE in notes(smear.image, few) and UNSURE not in notes(smear.image, found)


def test_scores_close_to_the_threshold_are_unsure():
    smear = SMEARS[9]
    found = cells_of(smear)
    low = replace(found, scores=found.scores * 0 + 0.55)
    assert UNSURE in notes(smear.image, low) and UNSURE not in notes(smear.image, low, threshold=0.3)


def test_an_unlike_image_is_judged_by_what_was_trained_on():
    """The same image is strange to one network and usual to another."""
    smear = SMEARS[9]
    other = np.ascontiguousarray((smear.image * [0.75, 1, 0.9]).astype(np.uint8))
    assert COLORS in notes(other, cells_of(smear))
    usual = appearance_of([measure(other, cells_of(smear), VIEW)])
    assert notes(other, cells_of(smear), appearance=usual) == ()


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("contrast", [20, 150])
def test_the_blur_of_an_edge_is_measured_whatever_its_contrast(sigma, contrast):
    edge = np.zeros((200, 200), np.float32) + 50 + contrast * (np.arange(200) // 25 % 2)
    blurred = cv2.GaussianBlur(edge, (0, 0), sigma).round().astype(np.uint8)
    assert edge_blur(blurred) == pytest.approx(sigma, rel=0.3)


def test_noise_does_not_pass_for_sharpness():
    edge = np.zeros((200, 200), np.float32) + 60 + 100 * (np.arange(200) // 25 % 2)
    noise = np.random.default_rng(1).normal(0, 3, edge.shape)
    assert edge_blur((cv2.GaussianBlur(edge, (0, 0), 3) + noise).clip(0, 255).astype(np.uint8)) > 2.4


def test_an_appearance_is_what_98_of_100_are_like_and_some_more():
    look = measure(SMEARS[0].image, cells_of(SMEARS[0]), VIEW)
    looks = [replace(look, brightness=float(100 + n), size=None) for n in range(101)]
    made = appearance_of(looks)
    assert made.brightness == (101 - 30, 199 + 30), "a quarter of 98 is less than the 30 of LEAST"
    assert made.size is None
    wide = appearance_of([replace(look, brightness=float(n)) for n in range(0, 250)])
    assert wide.brightness[1] == OVEREXPOSED
    assert ModelConfig.from_dict(ModelConfig(use=Use(appearance=made)).to_dict()).use.appearance == made
    with pytest.raises((ValueError, IndexError)):
        appearance_of([])


def test_boxes_clear_of_the_border():
    boxes = np.array(
        [[10, 10, 50, 50], [0, 10, 50, 50], [10, 4, 50, 50], [10, 10, 635, 50], [10, 10, 50, 480]]
    )
    assert clear_of_border(boxes, VIEW, VIEW).tolist() == [True, False, False, False, False]
    assert clear_of_border(np.empty((0, 4)), VIEW, VIEW).tolist() == []


RANDOM = np.random.default_rng(0)
ODD = {
    "one pixel": np.zeros((1, 1, 3), np.uint8),
    "a line": RANDOM.integers(0, 256, (1, 3000, 3), np.uint8),
    "a column": RANDOM.integers(0, 256, (3000, 1, 3), np.uint8),
    "black": np.zeros((48, 64, 3), np.uint8),
    "white": np.full((48, 64, 3), 255, np.uint8),
    "gray": np.repeat(RANDOM.integers(0, 256, (48, 64, 1), np.uint8), 3, axis=2),
    "noise": RANDOM.integers(0, 256, (480, 640, 3), np.uint8),
    "two pixels": np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8),
    "strided": RANDOM.integers(0, 256, (480, 640, 3), np.uint8)[::-2, ::3],
    "large": np.tile(SMEARS[0].image, (4, 5, 1)),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("view", [None, VIEW, (32, 24), (16384, 12288)])
@pytest.mark.parametrize(("cells", "appearance"), [(0, USUAL), (40, None)], ids=["empty", "full"])
def test_any_image_can_be_judged(name, view, cells, appearance, recwarn):
    image = ODD[name]
    height, width = image.shape[:2]
    corners = RANDOM.uniform(-20, 1, (cells, 4)) * [width, height, width, height]
    corners[:, 2:] = corners[:, :2] + RANDOM.uniform(0, 2, (cells, 2)) * [width, height]
    found = Detections(
        corners, RANDOM.uniform(0, 1, cells), RANDOM.integers(1, 4, cells), (width, height), NAMES
    )
    said = notes(image, found, view or (width, height), appearance)
    assert set(said) <= set(NOTES) and list(said) == [note for note in NOTES if note in said]
    assert not recwarn.list


def test_it_takes_no_longer_for_a_large_image():
    """Some milliseconds for either here; a bound with room for a busy machine."""
    cells = cells_of(SMEARS[0])
    seconds = {}
    for name, image in (("field", SMEARS[0].image), ("12 megapixels", np.tile(SMEARS[0].image, (6, 6, 1)))):
        found = replace(cells, image_size=image.shape[1::-1])
        took = []
        for _ in range(9):
            start = time.process_time()
            notes(image, found)
            took.append(time.process_time() - start)
        seconds[name] = min(took)
    assert max(seconds.values()) < 0.05 and seconds["12 megapixels"] < 4 * seconds["field"]


def test_notes_as_text_and_back():
    for some in ((), (DARK,), (DARK, BLURRED, UNSURE)):
        assert tuple(notes_of(quality_text(some))) == some
    assert quality_text(()) == "ok" and quality_text((DARK, UNSURE)) == "too dark; unsure"


def test_limits_without_training_are_the_widest():
    assert isinstance(USUAL, Appearance) and ANY_SMEAR.size is None
    assert ANY_SMEAR.blur[1] >= USUAL.blur[1] and ANY_SMEAR.brightness[0] <= USUAL.brightness[0]
