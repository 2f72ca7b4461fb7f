"""From raw outputs to final boxes: scores, decoding, and non-maximum suppression (NMS)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssdlib.config import CANDIDATES, NMS_IOU
from ssdlib.detector.boxes import decode, iou

LARGEST_TABLE = 2**24
"""IoU values held at once by `batched_nms` (64 MB); larger batches are taken in parts."""

CACHED_TABLE = 2**18
"""The same on a CPU (1 MB): parts that stay in its cache take half as long. A GPU wants few large ones."""


def nms_reference(boxes_xyxy: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS in its plain form, for one class of one image: slow, the reference for `batched_nms`.

    boxes (D, 4) and scores (D,) -> (K,) indices of the kept boxes, best first. Take the best box, drop every
    box that overlaps it by more than the threshold, repeat with what is left.
    """
    queue = scores.argsort(descending=True, stable=True)
    kept = []
    while len(queue):
        best, queue = queue[0], queue[1:]
        kept.append(best)
        overlap = iou(boxes_xyxy[best, None], boxes_xyxy[queue])[0]
        queue = queue[overlap <= iou_threshold]
    return torch.stack(kept) if kept else queue


def _suppress(boxes_xyxy: Tensor, valid: Tensor, iou_threshold: float | Tensor) -> Tensor:
    """NMS of B lists at once, each sorted by score: boxes (B, K, 4), valid (B, K) -> kept (B, K) bool.

    A box is kept if no better kept box overlaps it. Assume that all are kept, apply this rule to all of them
    at once, and repeat until nothing changes: box k is settled after k rounds at most, and in practice the
    chains of boxes that suppress suppressors are a few links long. The fixed point is unique, therefore it
    is what the greedy loop finds.
    """
    # suppresses[b, i, j]: box i, better than j, would remove it.
    suppresses = (iou(boxes_xyxy, boxes_xyxy) > iou_threshold).triu(diagonal=1).to(boxes_xyxy.dtype)
    kept = valid
    while True:
        removed = torch.bmm(kept[:, None].to(suppresses.dtype), suppresses)[:, 0] > 0  # (B, K)
        now = valid & ~removed
        if torch.equal(now, kept):
            return kept
        kept = now


def batched_nms(boxes_xyxy: Tensor, scores: Tensor, iou_threshold: float | Tensor) -> Tensor:
    """NMS within each of B independent lists (one for each image and class).

    boxes (B, K, 4) and scores (B, K) -> (B, K) bool, True where kept. A score of -inf marks padding. The
    IoU threshold is one for all or (B,). The same boxes are kept as by `nms_reference` and
    `torchvision.ops.nms`.
    """
    thresholds = torch.as_tensor(iou_threshold, dtype=boxes_xyxy.dtype, device=boxes_xyxy.device)
    thresholds = thresholds.expand(len(scores))[:, None, None]
    order = scores.argsort(dim=1, descending=True, stable=True)  # (B, K)
    ordered = boxes_xyxy.gather(1, order[..., None].expand(-1, -1, 4))
    valid = scores.gather(1, order) > -torch.inf
    table = CACHED_TABLE if scores.device.type == "cpu" else LARGEST_TABLE
    lists = max(1, table // max(1, scores.shape[1] ** 2))
    kept = valid.clone()
    for i in range(0, len(scores), lists):
        part, longest = slice(i, i + lists), scores.shape[1]
        if scores.device.type == "cpu":  # a GPU would be waited for
            longest = int(valid[part].sum(dim=1).max())  # the padding is at the end
        kept[part, :longest] = _suppress(ordered[part, :longest], valid[part, :longest], thresholds[part])
    return torch.zeros_like(kept).scatter_(1, order, kept)


@torch.no_grad()
def detect_objects(
    locs: Tensor,
    logits: Tensor,
    priors_cxcywh: Tensor,
    *,
    variances: tuple[float, float] = (0.1, 0.2),
    score_threshold: float = 0.01,
    iou_threshold: float | Sequence[float] = NMS_IOU,
    top_k: int | None = None,
    candidates: int = CANDIDATES,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Decode a batch of raw outputs into detections. Liu et al. 2016, section 3 and 3.7.

    locs (N, P, 4), logits (N, P, C), priors (P, 4) cxcywh -> for each image (boxes (D, 4) fractional xyxy
    clipped to the image, scores (D,), labels (D,) int64 in 1..C-1), best first. For each class: scores above
    the threshold, the best `candidates` of them, NMS (one IoU threshold for all classes or one for each);
    then the best `top_k` of the image, or all. The paper's `top_k` is 200, which a crowded field exceeds.
    """
    images, priors, classes = logits.shape
    if images == 0:
        return []
    scores = logits.float().softmax(dim=-1)[..., 1:].transpose(1, 2)  # (N, C-1, P)
    scores = scores.where(scores > score_threshold, -torch.inf)
    # No list is longer than the fullest needs: late in training that is a tenth of the limit.
    longest = int((scores > -torch.inf).sum(dim=2).max())
    scores, prior = scores.topk(min(longest, candidates, priors), dim=2)  # (N, C-1, K) each
    length = scores.shape[2]
    flat = prior.flatten(1)  # (N, (C-1)*K)
    boxes = decode(
        locs.float().gather(1, flat[..., None].expand(-1, -1, 4)), priors_cxcywh[flat], variances
    ).clamp(0, 1)  # (N, (C-1)*K, 4)
    # A broken network's NaN would overlap nothing, and so survive.
    scores = scores.where(boxes.isfinite().all(dim=-1).view_as(scores), -torch.inf)

    lists = images * (classes - 1)  # spelt out: -1 is ambiguous where no score passes and length is 0
    limits = torch.as_tensor(iou_threshold, dtype=boxes.dtype, device=boxes.device).expand(classes - 1)
    kept = batched_nms(boxes.view(lists, length, 4), scores.reshape(lists, length), limits.repeat(images))
    scores = scores.flatten(1).where(kept.view(images, -1), -torch.inf)  # (N, (C-1)*K)
    labels = torch.arange(1, classes, device=scores.device).repeat_interleave(length)  # ((C-1)*K,)
    scores, best = scores.topk(min(top_k or scores.shape[1], scores.shape[1]), dim=1)  # (N, T)
    boxes = boxes.gather(1, best[..., None].expand(-1, -1, 4))
    counts = (scores > -torch.inf).sum(dim=1).tolist()
    return [(boxes[i, :n], scores[i, :n], labels[best[i, :n]]) for i, n in enumerate(counts)]
