"""Augmentation: boxes follow the pixels, labels follow the boxes, nothing is asked of an empty image."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.ops import box_iou
from torchvision.transforms import v2

from ssdlib.config import NO_AUGMENTATION, RECIPES, AugmentConfig
from ssdlib.data.resize import resize_to
from ssdlib.data.transforms import (
    IoUCrop,
    Photometric,
    ZoomIn,
    ZoomOut,
    eval_transform,
    train_transform,
)

ALWAYS = AugmentConfig(
    zoom_out=4.0,
    zoom_out_chance=1.0,
    zoom_in=2.0,
    zoom_in_chance=1.0,
    iou_crop=0.1,
    photometric=1.0,
)
OBJECTS = [(200.0, 150.0, 405.0, 328.0), (0.0, 0.0, 100.0, 90.0), (600.0, 440.0, 640.0, 480.0)]


def sample(boxes=OBJECTS, height=480, width=640):
    """A gray image whose objects are bright rectangles, object k in the brightness 100 + 10 k."""
    image = torch.full((3, height, width), 50, dtype=torch.uint8)
    for k, (x_min, y_min, x_max, y_max) in enumerate(boxes):
        image[:, int(y_min) : int(y_max), int(x_min) : int(x_max)] = 100 + 10 * k
    target = {
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            format="XYXY",
            canvas_size=(height, width),
        ),
        "labels": torch.arange(1, len(boxes) + 1),
        "image_id": "smear",
    }
    return tv_tensors.Image(image), target


@pytest.mark.parametrize("boxes", [[], OBJECTS[:1], OBJECTS], ids=["empty", "one", "three"])
@pytest.mark.parametrize(
    "config",
    [ALWAYS, NO_AUGMENTATION, *(r.augment for r in RECIPES.values())],
    ids=["always", "none", *RECIPES],
)
def test_output_contract(config, boxes):
    transform = train_transform(config)
    for seed in range(10):
        torch.manual_seed(seed)
        image, target = transform(*sample(boxes))
        assert image.shape == (3, 300, 300) and image.dtype == torch.uint8
        assert target["boxes"].dtype == torch.float32 and target["boxes"].shape == (len(target["labels"]), 4)
        assert target["boxes"].canvas_size == (300, 300) and target["image_id"] == "smear"
        assert (target["boxes"] >= 0).all() and (target["boxes"] <= 300).all()
        assert (target["boxes"][:, 2:] - target["boxes"][:, :2] >= 1).all()
        if boxes:
            assert 1 <= len(target["labels"]) <= len(boxes)


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (300, 300)], ids=str)
def test_labels_and_pixels_stay_with_their_boxes(size):
    geometry = AugmentConfig(photometric=0.0, zoom_out=2.0, zoom_in=2.0, zoom_in_chance=0.8, iou_crop=0.1)
    for seed in range(60):
        torch.manual_seed(seed)
        objects = [(100.0, 60.0, 240.0, 180.0), (10.0, 10.0, 80.0, 60.0), (200.0, 200.0, 280.0, 290.0)]
        image, target = train_transform(geometry)(*sample(objects, *size))
        for (x_min, y_min, x_max, y_max), label in zip(
            target["boxes"].tolist(), target["labels"].tolist(), strict=True
        ):
            inner = image[
                :, int(y_min + 0.2 * (y_max - y_min)) + 1 : int(y_max - 0.2 * (y_max - y_min)),
                int(x_min + 0.2 * (x_max - x_min)) + 1 : int(x_max - 0.2 * (x_max - x_min)),
            ]  # fmt: skip
            assert inner.numel() == 0 or inner.float().mean().sub(90 + 10 * label).abs() < 2


@pytest.mark.parametrize("min_iou, scene", [(0.1, OBJECTS), (0.3, OBJECTS[:1]), (0.5, OBJECTS[:1])])
def test_crop_keeps_the_promised_iou_and_only_centered_boxes(min_iou, scene):
    crop = IoUCrop(min_iou, trials=200)
    crop.options = [min_iou]
    image, target = sample(scene)
    boxes = target["boxes"].as_subclass(torch.Tensor)
    for seed in range(20):
        torch.manual_seed(seed)
        params = crop.make_params([image, target["boxes"]])
        window = [params["left"], params["top"]]
        window = torch.tensor([[*window, window[0] + params["width"], window[1] + params["height"]]]).float()
        assert window[0, 0] >= 0 and window[0, 2] <= 640 and window[0, 1] >= 0 and window[0, 3] <= 480
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((centers > window[:, :2]) & (centers < window[:, 2:])).all(1)
        assert params["is_within_crop_area"].tolist() == inside.tolist()
        assert box_iou(window, boxes[inside]).max() >= min_iou
        assert 0.5 <= params["width"] / params["height"] <= 2.0


def test_crop_draws_from_torchvisions_distribution():
    image, target = sample(OBJECTS[:1])
    flat = [image, target["boxes"]]

    def widths(crop):
        torch.manual_seed(0)
        crop.options = [0.3]
        return torch.tensor([float(crop.make_params(flat)["width"]) for _ in range(150)])

    ours, theirs = widths(IoUCrop(0.3)), widths(v2.RandomIoUCrop())
    standard_error = (ours.var() / 150 + theirs.var() / 150).sqrt()
    assert (ours.mean() - theirs.mean()).abs() < 4 * standard_error
    assert 0.7 < ours.std() / theirs.std() < 1.4


def test_crop_that_finds_nothing_leaves_the_image_whole():
    image, target = sample([(0.0, 0.0, 3.0, 3.0)])  # no crop can overlap a speck by 0.9
    cropped, after = IoUCrop(0.9)(image, target)
    assert cropped.shape == image.shape and after["boxes"].tolist() == target["boxes"].tolist()


@pytest.mark.parametrize("boxes", [[], OBJECTS[:1], OBJECTS], ids=["empty", "one", "three"])
def test_zoom_in_keeps_the_shape_and_only_centered_boxes(boxes):
    magnified = 0
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = sample(boxes)
        cropped, after = v2.Compose([ZoomIn(2.0, 1.0), v2.SanitizeBoundingBoxes(min_size=1)])(image, target)
        height, width = cropped.shape[1:]
        assert 1 / 2.3 < height / 480 <= 1 and 1 / 2.3 < width / 640 <= 1
        assert after["boxes"].canvas_size == (height, width)
        assert not boxes or len(after["labels"]) >= 1
        for (x_min, y_min, x_max, y_max), label in zip(
            after["boxes"].tolist(), after["labels"].tolist(), strict=True
        ):
            assert 0 <= x_min < x_max <= width and 0 <= y_min < y_max <= height
            whole = boxes[label - 1]
            # At least the half around the center is left, and it shows the object.
            assert x_max - x_min > 0.49 * (whole[2] - whole[0]) and y_max - y_min > 0.49 * (
                whole[3] - whole[1]
            )
            assert (cropped[:, int(y_min) : int(y_max), int(x_min) : int(x_max)] == 90 + 10 * label).all()
        magnified += width < 600
    assert magnified > 20


def test_zoom_in_by_chance_or_not_at_all():
    image, target = sample()
    assert ZoomIn(2.0, p=0.0)(image, target)[0].shape == image.shape
    speck, target = sample([(0.0, 0.0, 1.0, 1.0)])  # its center is 0.5: almost any crop loses it
    for seed in range(20):
        torch.manual_seed(seed)
        x_min, y_min, x_max, y_max = ZoomIn(1.5, p=1.0)(speck, target)[1]["boxes"][0].tolist()
        assert (x_min, y_min, x_max, y_max) == (0, 0, 1, 1)


def test_zoom_out_fills_with_the_border_color():
    image, target = sample([(200.0, 150.0, 300.0, 250.0)])
    torch.manual_seed(1)
    zoomed, after = ZoomOut(side_range=(2.0, 2.0), p=1.0)(image, target)
    assert zoomed.shape == (3, 960, 1280) and set(zoomed.unique().tolist()) == {50, 100}
    x_min, y_min, x_max, y_max = map(int, after["boxes"][0].tolist())
    assert (zoomed[:, y_min:y_max, x_min:x_max] == 100).all() and (zoomed == 100).sum() == 3 * 100 * 100


def test_photometric_keeps_the_order_of_channels():
    image = tv_tensors.Image(torch.tensor([200, 120, 160], dtype=torch.uint8)[:, None, None].repeat(1, 8, 8))
    for seed in range(20):
        torch.manual_seed(seed)
        red, green, blue = Photometric(p=1.0, hue=(0.0, 0.0))(image).float().mean((1, 2)).tolist()
        assert red >= blue >= green


def test_evaluation_resizes_as_prediction_does():
    image, target = sample()
    torch.manual_seed(0)
    image = tv_tensors.Image(torch.randint(0, 256, image.shape, dtype=torch.uint8))
    resized, after = eval_transform(300)(image, target)
    assert resized.dtype == torch.uint8
    np.testing.assert_array_equal(resized, resize_to(image.permute(1, 2, 0).numpy(), 300))
    expected = torch.tensor(OBJECTS) / torch.tensor([640.0, 480.0, 640.0, 480.0]) * 300
    torch.testing.assert_close(after["boxes"].as_subclass(torch.Tensor), expected)
    assert after["labels"].tolist() == [1, 2, 3]
