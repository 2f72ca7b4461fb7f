"""What a network is shown of large and small fields, and how its weights remember it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssdlib.config import BCCD_CLASSES, Use
from ssdlib.data.dataset import DetectionDataset, Sample
from ssdlib.data.images import write_image
from ssdlib.training.views import VISIBLE, cut_to_views, tilings, use_for


def sample(
    name: str, size: tuple[int, int], side: int, label: int = 2, path: Path = Path("none.png")
) -> Sample:
    """A field full of square cells of one side."""
    grid = [
        (x, y)
        for x in range(10, size[0] - side - 9, side + 10)
        for y in range(10, size[1] - side - 9, side + 10)
    ]
    boxes = np.array([(x, y, x + side, y + side) for x, y in grid], np.float32)
    return Sample(name, path, *size, boxes, np.full(len(boxes), label))


def data(*samples: Sample) -> DetectionDataset:
    return DetectionDataset(samples, BCCD_CLASSES)


@pytest.mark.parametrize(
    ("size", "side", "view"),
    [
        ((640, 480), 104, (640, 480)),
        ((575, 575), 123, (575, 575)),  # the usual share of a square field
        ((1280, 960), 208, (1280, 960)),  # the same field in more pixels
        ((1280, 960), 104, (640, 480)),  # a field four times as large
        ((640, 480), 40, (246, 185)),
        ((320, 240), 104, (640, 480)),  # a closer look: padded
        ((640, 480), 4, (173, 130)),  # too small to be enlarged to its usual share
    ],
)
def test_the_view_gives_red_cells_their_usual_share(size, side, view):
    use = use_for(data(*(sample(str(k), size, side) for k in range(20))), Use())
    assert use.view == view and use.reference_side == side
    assert use.um_per_pixel == pytest.approx(7.5 / side, rel=0.01)


def test_data_without_the_reference_class_are_looked_at_whole():
    fields = data(*(sample(str(k), (2000, 1000), 40, label=3) for k in range(3)))
    use = use_for(fields, Use())
    assert (use.view, use.reference, use.um_per_pixel) == ((2000, 1000), "", None)
    assert cut_to_views(fields, use).samples == fields.samples


def test_training_cuts_fields_as_detection_does():
    fields = data(*(sample(str(k), (1280, 960), 104) for k in range(2)))
    use = use_for(fields, Use())
    views = cut_to_views(fields, use)
    tiles = tilings(fields, use)[1280, 960].tiles(1280, 960)
    assert [view.window for view in views.samples] == tiles * 2
    for view in views.samples:
        corner, size = np.array(view.window[:2] * 2), np.array([view.width, view.height] * 2)
        assert (view.width, view.height) == use.view and len(view.boxes) == len(view.labels)
        assert ((view.boxes >= 0) & (view.boxes <= size)).all()
        whole = fields.samples[0].boxes - corner
        shown = np.clip(whole, 0, size)
        share = np.prod(shown[:, 2:] - shown[:, :2], axis=1) / 104**2
        assert len(view.boxes) == (share >= VISIBLE).sum()
        np.testing.assert_array_equal(view.boxes, shown[share >= VISIBLE])


def test_a_view_has_the_pixels_of_its_window(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (960, 1280, 3), dtype=np.uint8)
    write_image(tmp_path / "a.png", picture)
    fields = data(sample("a", (1280, 960), 104, path=tmp_path / "a.png"))
    views = cut_to_views(fields, use_for(fields, Use()))
    for index, view in enumerate(views.samples):
        left, top, right, bottom = view.window
        np.testing.assert_array_equal(views.image(index), picture[top:bottom, left:right])
        image, target = views[index]
        assert image.shape[1:] == (480, 640) == tuple(target["boxes"].canvas_size)


def test_microscopes_of_different_pixels_are_cut_each_by_its_own_cells():
    usual = [sample(f"a{k}", (640, 480), 104) for k in range(10)]
    large = [sample(f"b{k}", (1300, 1300), 60) for k in range(2)]
    fields = data(*usual, *large)
    use = Use()
    views = cut_to_views(fields, use)
    assert [view.window for view in views.samples[:10]] == [None] * 10
    assert {(view.width, view.height) for view in views.samples[10:]} == {(369, 277)}
