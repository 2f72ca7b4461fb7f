"""SSD300 as one would write it first: the yardstick of the benchmark, and nothing else.

After the description of the notebook that this course grew from, with its pooling fixed: float32, images
decoded at every access, loops over images and objects in matching and loss, and over images, classes and
boxes in NMS. It learns and detects much as ours does, only slowly. Use `ssdlib` for anything but timing.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import vgg16

from ssdlib.config import BCCD_CLASSES, PriorConfig
from ssdlib.detector.boxes import cxcywh_to_xyxy, decode, encode, iou
from ssdlib.detector.priors import make_priors

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
SCORE_THRESHOLD, NMS_IOU, TOP_K = 0.01, 0.45, 200


class NaiveDataset(Dataset):
    """Each access decodes, resizes and normalizes: image (3, 300, 300) float32, boxes fractional, labels."""

    def __init__(self, root: Path, image_ids: list[str]) -> None:
        self.root, self.image_ids = root, image_ids

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        name = self.image_ids[index]
        with Image.open(self.root / "JPEGImages" / f"{name}.jpg") as picture:
            picture = picture.convert("RGB")
        # The files are our own smears, written a moment ago: the plain parser will do.
        tree = ElementTree.parse(self.root / "Annotations" / f"{name}.xml")
        boxes, labels = [], []
        for element in tree.iter("object"):
            corners = [float(element.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")]
            boxes.append([c / side for c, side in zip(corners, picture.size * 2, strict=True)])
            labels.append(BCCD_CLASSES.index(element.findtext("name")) + 1)
        return to_input(picture), torch.tensor(boxes).view(-1, 4), torch.tensor(labels, dtype=torch.long)


def to_input(picture: Image.Image) -> Tensor:
    """A picture of any size -> (3, 300, 300) float32, normalized."""
    pixels = np.asarray(picture.resize((300, 300), Image.Resampling.BILINEAR))
    return (torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255 - MEAN) / STD


def make_loader(root: Path, image_ids: list[str], batch_size: int) -> DataLoader:
    """Shuffled batches of (images, list of boxes, list of labels)."""

    def collate(samples: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        images, boxes, labels = zip(*samples, strict=True)
        return torch.stack(images), list(boxes), list(labels)

    return DataLoader(NaiveDataset(root, image_ids), batch_size, shuffle=True, collate_fn=collate)


def _conv(inputs: int, outputs: int, kernel: int = 3, **options: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, **options), nn.ReLU(inplace=True))


class NaiveSSD300(nn.Module):
    """torchvision's VGG16 with pool3 and pool5 fixed, the extra layers and the heads."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        vgg = list(vgg16(weights=None).features)
        vgg[16].ceil_mode = True
        self.to_conv4_3 = nn.Sequential(*vgg[:23])
        self.to_conv7 = nn.Sequential(
            *vgg[23:30],
            nn.MaxPool2d(3, stride=1, padding=1),
            _conv(512, 1024, padding=6, dilation=6),
            _conv(1024, 1024, 1),
        )
        self.scale = nn.Parameter(torch.full((1, 512, 1, 1), 20.0))
        self.extras = nn.ModuleList(
            [
                nn.Sequential(_conv(1024, 256, 1), _conv(256, 512, stride=2, padding=1)),
                nn.Sequential(_conv(512, 128, 1), _conv(128, 256, stride=2, padding=1)),
                nn.Sequential(_conv(256, 128, 1), _conv(128, 256)),
                nn.Sequential(_conv(256, 128, 1), _conv(128, 256)),
            ]
        )
        shapes = list(zip((512, 1024, 512, 256, 256, 256), (4, 6, 6, 6, 4, 4), strict=True))
        self.locs = nn.ModuleList(nn.Conv2d(c, 4 * n, 3, padding=1) for c, n in shapes)
        self.logits = nn.ModuleList(nn.Conv2d(c, num_classes * n, 3, padding=1) for c, n in shapes)
        for head in (*self.locs, *self.logits):
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
        self.register_buffer("priors", make_priors(PriorConfig()))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized images (N, 3, 300, 300) -> locs (N, P, 4), logits (N, P, C)."""
        conv4_3 = self.to_conv4_3(images)
        norm = conv4_3.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10
        x = self.to_conv7(conv4_3)
        maps = [conv4_3 / norm * self.scale, x]
        for block in self.extras:
            x = block(x)
            maps.append(x)
        locs, logits = [], []
        for features, loc, logit in zip(maps, self.locs, self.logits, strict=True):
            n = len(features)
            locs.append(loc(features).permute(0, 2, 3, 1).contiguous().view(n, -1, 4))
            logits.append(logit(features).permute(0, 2, 3, 1).contiguous().view(n, -1, self.num_classes))
        return torch.cat(locs, dim=1), torch.cat(logits, dim=1)


def naive_loss(
    locs: Tensor, logits: Tensor, boxes: list[Tensor], labels: list[Tensor], priors: Tensor
) -> Tensor:
    """The MultiBox loss, image by image and object by object. Every image must have an object."""
    targets, classes = torch.zeros_like(locs), locs.new_zeros(locs.shape[:2], dtype=torch.long)
    corners = cxcywh_to_xyxy(priors)
    for i in range(len(boxes)):
        overlap = iou(boxes[i], corners)  # (G, P)
        best, owner = overlap.max(dim=0)
        for g in range(len(boxes[i])):
            favorite = overlap[g].argmax()
            owner[favorite] = g
            best[favorite] = 1.0
        classes[i] = labels[i][owner]
        classes[i][best < 0.5] = 0
        targets[i] = encode(boxes[i][owner], priors)
    positive = classes > 0
    located = F.smooth_l1_loss(locs[positive], targets[positive])
    each = F.cross_entropy(logits.view(-1, logits.shape[-1]), classes.view(-1), reduction="none")
    each = each.view(classes.shape)
    total = each[positive].sum()
    for i in range(len(boxes)):
        hardest = each[i][~positive[i]].sort(descending=True).values
        total = total + hardest[: 3 * int(positive[i].sum())].sum()
    return located + total / positive.sum()


def naive_nms(locs: Tensor, logits: Tensor, priors: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(boxes xyxy fractional, scores, labels) of each image: loops over images, classes and boxes."""
    found = []
    for i in range(len(locs)):
        boxes, scores = decode(locs[i], priors), logits[i].softmax(dim=1)
        kept_boxes, kept_scores, kept_labels = [], [], []
        for label in range(1, scores.shape[1]):
            chosen = scores[:, label] > SCORE_THRESHOLD
            if not chosen.any():
                continue
            ordered, order = scores[chosen, label].sort(descending=True)
            candidates = boxes[chosen][order]
            overlap = iou(candidates, candidates)  # (D, D)
            suppressed = torch.zeros(len(candidates), dtype=torch.bool, device=boxes.device)
            for box in range(len(candidates)):
                if suppressed[box]:
                    continue
                suppressed = suppressed | (overlap[box] > NMS_IOU)
                suppressed[box] = False
            kept_boxes.append(candidates[~suppressed])
            kept_scores.append(ordered[~suppressed])
            kept_labels.append(torch.full((int((~suppressed).sum()),), label, device=boxes.device))
        if not kept_boxes:
            found.append((boxes[:0], scores[:0, 0], torch.zeros(0, dtype=torch.long, device=boxes.device)))
            continue
        all_scores = torch.cat(kept_scores)
        best = all_scores.argsort(descending=True)[:TOP_K]
        found.append((torch.cat(kept_boxes)[best], all_scores[best], torch.cat(kept_labels)[best]))
    return found


@torch.no_grad()
def naive_detect(
    model: NaiveSSD300, paths: list[Path], batch_size: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Files to detections, boxes in pixels of each file's image."""
    results = []
    for start in range(0, len(paths), batch_size):
        inputs, sizes = [], []
        for path in paths[start : start + batch_size]:
            with Image.open(path) as picture:
                sizes.append(picture.size)
                inputs.append(to_input(picture.convert("RGB")))
        locs, logits = model(torch.stack(inputs).to(model.priors.device))
        found = naive_nms(locs, logits, model.priors)
        for (boxes, scores, labels), size in zip(found, sizes, strict=True):
            results.append((boxes.cpu() * torch.tensor(size * 2), scores.cpu(), labels.cpu()))
    return results
