"""SSD300 as a whole: counts predicted by arithmetic, and the same outputs as torchvision's network."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.ssd import SSD

from ssdlib.common.errors import ConfigError
from ssdlib.config import TORCHVISION_PRIORS, ModelConfig, PriorConfig
from ssdlib.detector.boxes import cxcywh_to_xyxy, iou
from ssdlib.detector.loss import multibox_loss
from ssdlib.detector.matching import match
from ssdlib.detector.model import SSD300
from ssdlib.detector.nms import detect_objects
from ssdlib.detector.weights import COCO_MEAN, COCO_STD, build_model, convert_torchvision_ssd
from tests.core_cases import PAPER_LIMITS, seeded, torchvision_detections, torchvision_ssd

NARROW = ModelConfig(width=0.125)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
    return inputs * outputs * kernel**2 + outputs


@pytest.mark.parametrize(("classes", "expected"), [(20, 26_285_486), (90, 35_641_826), (3, 24_013_232)])
def test_parameters_by_arithmetic(classes, expected):
    vgg = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), *[(256, 256)] * 2, (256, 512)]
    vgg += [(512, 512)] * 5
    count = sum(conv(i, o) for i, o in vgg) + conv(512, 1024) + conv(1024, 1024, 1)
    count += 512  # L2Norm
    for inputs, middle, outputs in ((1024, 256, 512), (512, 128, 256), (256, 128, 256), (256, 128, 256)):
        count += conv(inputs, middle, 1) + conv(middle, outputs)
    maps = zip((512, 1024, 512, 256, 256, 256), (4, 6, 6, 6, 4, 4), strict=True)
    count += sum(conv(c, n * 4) + conv(c, n * (classes + 1)) for c, n in maps)
    with torch.device("meta"):
        model = SSD300(ModelConfig(class_names=tuple(map(str, range(classes)))))
    assert count == parameters(model) == expected


def test_a_state_dict_holds_no_priors():
    """They follow from the config; a file could only contradict it."""
    assert not {"priors", "mean", "std"} & set(SSD300(NARROW).state_dict())


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_output_shapes(images, batch_norm):
    model = build_model(NARROW.replace(batch_norm=batch_norm, class_names=("a", "b"))).eval()
    batch = torch.randint(0, 256, (images, 3, 300, 300), dtype=torch.uint8, generator=seeded(0))
    with torch.inference_mode():
        locs, logits = model(batch)
        same = model(batch.float() / 255)
    assert locs.shape == (images, 8732, 4) and logits.shape == (images, 8732, 3)
    torch.testing.assert_close(same, (locs, logits))
    assert model.priors.shape == (8732, 4)


def test_normalization_is_inside():
    model = SSD300(NARROW)
    gray = torch.full((1, 3, 300, 300), 255, dtype=torch.uint8)
    expected = (1 - torch.tensor(NARROW.mean)) / torch.tensor(NARROW.std)
    torch.testing.assert_close(model.normalize(gray)[0, :, 5, 5], expected)


@pytest.mark.parametrize("shape", [(3, 300, 300), (1, 3, 299, 300), (1, 1, 300, 300), (1, 300, 300, 3)])
def test_wrong_images_are_named(shape):
    with pytest.raises(ValueError, match=r"\(N, 3, 300, 300\), not \("):
        SSD300(NARROW)(torch.zeros(shape))


def test_priors_for_other_maps_are_refused():
    other = PriorConfig(feature_maps=(37, 18, 9, 5, 3, 1))
    with pytest.raises(ConfigError, match="37"):
        SSD300(ModelConfig(width=0.125, priors=other))


def test_a_head_s_outputs_lie_at_its_priors():
    """Mark one cell of one map and find the outputs where `priors` says this cell is."""
    model = build_model(NARROW).eval()
    maps = [
        torch.zeros(1, c, f, f) for c, f in zip((64, 128, 64, 32, 32, 32), (38, 19, 10, 5, 3, 1), strict=True)
    ]
    maps[1][0, :, 4, 7] = 1  # row 4, column 7 of the 19 x 19 map
    for head in model.loc_heads.convs:
        nn.init.zeros_(head.weight)
        nn.init.ones_(head.weight[:, :, 1, 1])  # only the center of the kernel
    locs = model.loc_heads(maps)[0]
    touched = model.priors[locs.abs().sum(1) > 0]
    assert len(touched) == 6
    torch.testing.assert_close(touched[:, :2], torch.tensor([7.5 / 19, 4.5 / 19]).expand(6, 2))


def test_heads_start_small_and_indifferent():
    """The original notebook left its heads as they came."""
    model = build_model(NARROW.replace(batch_norm=True))
    for head in (*model.loc_heads.convs, *model.class_heads.convs):
        assert head.bias.count_nonzero() == 0
        assert 0.008 < head.weight.std() < 0.012
    image = torch.rand(1, 3, 300, 300, generator=seeded(2))
    with torch.inference_mode():
        locs, logits = model.eval()(image)
    assert locs.abs().mean() < 1
    # Cross entropy is near log C, that of a guess.
    entropy = -logits.log_softmax(-1)[..., 0].mean()
    assert entropy.item() == pytest.approx(math.log(4), abs=0.5)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_step_of_training_reaches_every_parameter(batch_norm):
    model = build_model(NARROW.replace(batch_norm=batch_norm)).train()
    boxes = [torch.tensor([[0.1, 0.1, 0.3, 0.35], [0.5, 0.4, 0.9, 0.9]]), torch.empty(0, 4)]
    labels = [torch.tensor([1, 2]), torch.empty(0, dtype=torch.long)]
    images = torch.rand(2, 3, 300, 300, generator=seeded(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        locs, logits = model(images)
    loss = multibox_loss(locs, logits, match(boxes, labels, model.priors), model.priors)
    loss.total.backward()
    assert loss.total.isfinite()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    assert model.backbone.to_conv4_3.conv1_1.weight.grad.abs().sum() > 0


# --- the same network as torchvision's -------------------------------------------------------------------


class Twins(NamedTuple):
    """One set of random weights in both networks, and what both made of the same images."""

    theirs: SSD
    ours: SSD300
    features: list[Tensor]
    expected_features: list[Tensor]
    outputs: tuple[Tensor, Tensor]
    expected_outputs: dict[str, Tensor]
    anchors: list[Tensor]


@pytest.fixture(scope="module", params=[4, 91], ids=["4 classes", "91 classes"])
def twins(request):
    theirs = torchvision_ssd(request.param)
    config = ModelConfig(
        class_names=tuple(map(str, range(1, request.param))),
        priors=TORCHVISION_PRIORS,
        mean=COCO_MEAN,
        std=COCO_STD,
    )
    ours = SSD300(config).eval()
    ours.load_state_dict(convert_torchvision_ssd(theirs.state_dict()))
    images = torch.rand(2, 3, 300, 300, generator=seeded(4))
    images[1] = nn.functional.interpolate(images[1:, :, :12, :12], size=300, mode="bilinear")[0]
    images = images if request.param == 4 else images[1:]
    with torch.inference_mode():
        maps = ours.feature_maps(images)
        batch, _ = theirs.transform(list(images))
        features = list(theirs.backbone(batch.tensors).values())
        return Twins(
            theirs,
            ours,
            maps,
            features,
            (ours.loc_heads(maps), ours.class_heads(maps)),
            theirs.head(features),
            theirs.anchor_generator(batch, features),
        )


def test_raw_outputs_equal_torchvision(twins):
    for mine, other in zip(twins.features, twins.expected_features, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    locs, logits = twins.outputs
    assert logits.std() > 0.3 and locs.std() > 0.3  # worth comparing
    torch.testing.assert_close(locs, twins.expected_outputs["bbox_regression"], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits, twins.expected_outputs["cls_logits"], rtol=0, atol=1e-4)
    corners = cxcywh_to_xyxy(twins.ours.priors) * 300
    torch.testing.assert_close(corners, twins.anchors[0], rtol=0, atol=1e-3)


def test_detections_equal_torchvision(twins):
    """From the same raw outputs: the same boxes, scores and labels in the same order."""
    locs, logits = twins.outputs
    mine = detect_objects(locs, logits, twins.ours.priors, **PAPER_LIMITS)
    theirs = torchvision_detections(locs, logits, twins.ours.priors)
    for (boxes, scores, labels), other in zip(mine, theirs, strict=True):
        assert len(boxes) > 50 and len(scores.unique()) > 20 and len(labels.unique()) > 1
        assert torch.equal(labels, other["labels"])
        torch.testing.assert_close(scores, other["scores"], rtol=0, atol=1e-6)
        torch.testing.assert_close(boxes * 300, other["boxes"], rtol=0, atol=1e-2)


def test_images_to_detections_equal_torchvision(twins):
    """Each by its own forward and its own decoding. Where two IoUs or scores differ in the seventh digit a
    choice may fall the other way, and which does depends on the processor: one in fifty may."""
    mine = detect_objects(*twins.outputs, twins.ours.priors, **PAPER_LIMITS)
    sizes = [(300, 300)] * len(mine)
    expected = twins.theirs.postprocess_detections(twins.expected_outputs, twins.anchors, sizes)
    for (boxes, scores, labels), other in zip(mine, expected, strict=True):
        assert len(boxes) > 50
        close = (
            (iou(boxes * 300, other["boxes"]) > 0.999)
            & (labels[:, None] == other["labels"])
            & ((scores[:, None] - other["scores"]).abs() < 1e-4)
        )
        assert close.any(1).float().mean() >= 0.98
        assert close.any(0).float().mean() >= 0.98
