"""NMS: the readable loop, the fast one for a batch and torchvision's keep the same boxes."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision import ops

from ssdlib.config import ModelConfig, PriorConfig
from ssdlib.detector import nms
from ssdlib.detector.boxes import decode, encode
from ssdlib.detector.nms import batched_nms, detect_objects, nms_reference
from ssdlib.detector.priors import make_priors
from ssdlib.detector.weights import build_model
from tests.core_cases import (
    PAPER_LIMITS,
    boxes_strategy,
    fast,
    grid_boxes,
    random_boxes,
    seeded,
    torchvision_detections,
)

PRIORS = make_priors(PriorConfig())


@pytest.mark.parametrize(
    ("boxes", "scores", "kept"),
    [
        ([], [], []),
        ([[0, 0, 1, 1]], [0.5], [0]),
        ([[0, 0, 4, 4], [0, 0, 4, 4]], [0.5, 0.6], [1]),
        # The same score: the first is kept.
        ([[0, 0, 4, 4], [0, 0, 4, 4]], [0.5, 0.5], [0]),
        ([[0, 0, 4, 4], [4, 0, 8, 4]], [0.5, 0.6], [1, 0]),
        # IoU of exactly the threshold, one half, does not suppress.
        ([[0, 0, 4, 4], [0, 0, 4, 2]], [0.6, 0.5], [0, 1]),
        # A chain: 0 removes 1, which can then no longer remove 2.
        ([[0, 0, 4, 4], [1, 0, 5, 4], [2, 0, 6, 4]], [0.9, 0.8, 0.7], [0, 2]),
        # Boxes without area overlap nothing, not even themselves.
        ([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 4, 4]], [0.9, 0.8, 0.7], [0, 1, 2]),
    ],
)
def test_by_hand(boxes, scores, kept):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor(scores, dtype=torch.float32)
    assert nms_reference(boxes, scores, 0.5).tolist() == kept
    assert ops.nms(boxes, scores, 0.5).tolist() == kept
    mask = batched_nms(boxes[None], scores[None], 0.5)
    assert mask.shape == (1, len(boxes))
    assert mask[0].nonzero()[:, 0].tolist() == sorted(kept)


def random_lists(lists: int, length: int, make, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    boxes = make(lists * length, generator).view(lists, length, 4)
    copies = torch.rand(lists, length, generator=generator) < 0.2
    boxes = boxes.where(~copies[..., None], boxes.roll(1, dims=1))  # a fifth are duplicates
    scores = torch.randint(0, 12, (lists, length), generator=generator) / 12  # many the same
    return boxes, scores


@pytest.mark.parametrize("make", [random_boxes, grid_boxes], ids=["random", "grid"])
@pytest.mark.parametrize(("lists", "length"), [(0, 5), (3, 0), (1000, 1), (800, 8), (300, 40)])
def test_thousands_of_lists(lists, length, make):
    boxes, scores = random_lists(lists, length, make, seeded(length))
    generator = seeded(length + 1)
    lengths = torch.randint(0, length + 1, (lists,), generator=generator).tolist()
    for i, n in enumerate(lengths):
        scores[i, n:] = -torch.inf
    # A quarter and a half are exact in any precision; torchvision's loop compares in double.
    for threshold in (0.25, 0.5):
        mask = batched_nms(boxes, scores, threshold)
        assert mask.shape == (lists, length)
        for i, n in enumerate(lengths):
            theirs = ops.nms(boxes[i, :n], scores[i, :n], threshold)
            assert mask[i].nonzero()[:, 0].tolist() == sorted(theirs.tolist())
            if i < 150:
                assert torch.equal(nms_reference(boxes[i, :n], scores[i, :n], threshold), theirs)


def test_long_lists_in_parts(monkeypatch):
    boxes, scores = random_lists(7, 120, random_boxes, seeded(5))
    whole = batched_nms(boxes, scores, 0.45)
    for table in (1, 2 * 120 * 120):
        monkeypatch.setattr(nms, "CACHED_TABLE", table)
        assert torch.equal(batched_nms(boxes, scores, 0.45), whole)


@fast
@given(boxes_strategy(largest=12), st.data(), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
def test_all_three_keep_the_same(boxes, data, threshold):
    levels = data.draw(st.lists(st.integers(0, 3), min_size=len(boxes), max_size=len(boxes)))
    scores = torch.tensor(levels, dtype=torch.float32) / 3
    theirs = ops.nms(boxes, scores, threshold)
    assert torch.equal(nms_reference(boxes, scores, threshold), theirs)
    mask = batched_nms(boxes[None], scores[None], threshold)[0]
    assert mask.nonzero()[:, 0].tolist() == sorted(theirs.tolist())


def test_classes_are_apart_as_in_torchvision():
    """One list for each class equals torchvision's batched_nms, which shifts the classes apart."""
    generator = seeded(6)
    boxes = random_boxes(300, generator)
    scores = torch.rand(300, generator=generator)
    labels = torch.randint(0, 5, (300,), generator=generator)
    lists = scores.expand(5, -1).where(labels == torch.arange(5)[:, None], -torch.inf)
    mask = batched_nms(boxes.expand(5, -1, -1), lists, 0.45).any(0)
    assert mask.nonzero()[:, 0].tolist() == sorted(ops.batched_nms(boxes, scores, labels, 0.45).tolist())


# --- from raw outputs to detections ----------------------------------------------------------------------


def outputs(images: int, classes: int, seed: int, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    locs = torch.randn(images, len(PRIORS), 4, generator=generator)
    return locs, torch.randn(images, len(PRIORS), classes, generator=generator) * spread


@pytest.mark.parametrize(
    ("images", "classes", "options"),
    [
        (1, 4, {}),
        (3, 4, {"score_threshold": 0.5}),
        (2, 21, {"score_threshold": 0.3, "iou_threshold": 0.3}),
        (2, 4, {"score_threshold": 0.05, "top_k": 10}),
        (2, 4, {"score_threshold": 0.05, "candidates": 30}),
        (1, 2, {"score_threshold": 0.9, "top_k": 10**6, "candidates": 10**6}),
    ],
)
def test_detections_equal_torchvision(images, classes, options):
    locs, logits = outputs(images, classes, seed=images + classes)
    options = {**PAPER_LIMITS, **options}
    ours = detect_objects(locs, logits, PRIORS, **options)
    names = {"score_threshold": "score", "iou_threshold": "iou"}
    theirs = torchvision_detections(locs, logits, PRIORS, **{names.get(k, k): v for k, v in options.items()})
    assert len(ours) == images
    for (boxes, scores, labels), expected in zip(ours, theirs, strict=True):
        assert len(boxes) > 5
        assert torch.equal(labels, expected["labels"])
        torch.testing.assert_close(scores, expected["scores"])
        torch.testing.assert_close(boxes * 300, expected["boxes"], rtol=0, atol=1e-2)
        assert (scores.diff() <= 0).all()


def test_detect_by_hand():
    """Five priors, three of them told to become the same object."""
    locs, logits = torch.zeros(1, 8732, 4), torch.zeros(1, 8732, 4)
    logits[..., 0] = 20  # all background ...
    box = torch.tensor([0.4, 0.4, 0.6, 0.6])
    for prior, label, logit in ((100, 1, 25.0), (101, 1, 24.0), (102, 2, 23.0)):
        locs[0, prior] = encode(box[None], PRIORS[prior, None])[0]
        logits[0, prior, label] = logit
    [(boxes, scores, labels)] = detect_objects(locs, logits, PRIORS, score_threshold=0.5)
    assert labels.tolist() == [1, 2]  # the second of class 1 is suppressed, class 2 is a list of its own
    torch.testing.assert_close(boxes, box.expand(2, 4), atol=1e-5, rtol=0)
    assert scores.tolist() == pytest.approx(torch.tensor([5.0, 3.0]).sigmoid().tolist(), rel=1e-4)


@pytest.mark.parametrize("images", [0, 1, 3])
@pytest.mark.parametrize("classes", [2, 4])
def test_without_candidates(images, classes):
    locs, logits = torch.zeros(images, 8732, 4), torch.zeros(images, 8732, classes)
    logits[..., 0] = 50
    found = detect_objects(locs, logits, PRIORS)
    assert len(found) == images
    for boxes, scores, labels in found:
        assert boxes.shape == (0, 4) and scores.shape == (0,) and labels.shape == (0,)
        assert labels.dtype == torch.int64


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["locs", "logits"])
def test_outputs_that_are_no_numbers_give_no_detection(bad, where):
    locs, logits = outputs(2, 4, seed=3)
    tensor = locs if where == "locs" else logits
    tensor[0, ::2] = bad
    tensor[1, :, 1] = bad
    for boxes, scores, _ in detect_objects(locs, logits, PRIORS):
        assert boxes.isfinite().all() and scores.isfinite().all()
        assert (boxes >= 0).all() and (boxes <= 1).all()
    assert len(detect_objects(locs, logits, PRIORS)[0][0]) > 0  # the good half is still there


def test_half_precision_outputs():
    locs, logits = outputs(1, 4, seed=4)
    [(boxes, scores, _)] = detect_objects(locs.bfloat16(), logits.bfloat16(), PRIORS)
    assert boxes.dtype == scores.dtype == torch.float32
    [(expected, _, _)] = detect_objects(locs.bfloat16().float(), logits.bfloat16().float(), PRIORS)
    assert torch.equal(boxes, expected)


def test_an_image_alone_and_in_a_batch():
    locs, logits = outputs(3, 4, seed=8)
    logits[1, :, 0] += 6  # few candidates beside many
    together = detect_objects(locs, logits, PRIORS, score_threshold=0.2)
    for i in range(3):
        [alone] = detect_objects(locs[i : i + 1], logits[i : i + 1], PRIORS, score_threshold=0.2)
        for a, b in zip(together[i], alone, strict=True):
            assert torch.equal(a, b)


def test_much_faster_than_the_loop():
    """At a score of 0.01 a network that knows nothing yet offers every prior for every class, and the
    original notebook's loop took seconds for one image. A loose bar: `make bench` measures."""
    model = build_model(ModelConfig(width=0.125)).eval()
    with torch.inference_mode():
        locs, logits = model(torch.rand(1, 3, 300, 300, generator=seeded(0)))
        fastest = min(_seconds(lambda: detect_objects(locs, logits, PRIORS)) for _ in range(3))

        def loop() -> None:
            scores = logits[0].softmax(-1)
            boxes = decode(locs[0], PRIORS).clamp(0, 1)
            for label in range(1, 4):
                candidates = (scores[:, label] > 0.01).nonzero()[:, 0]
                assert len(candidates) > 8000
                nms_reference(boxes[candidates], scores[candidates, label], 0.45)

        assert _seconds(loop) > 10 * fastest


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
