"""What the tests of figures about judged detections share."""

import torch

from ssdlib.inference.detections import Detections

SIZE = (120, 100)


def judged_image(found, truth, names):
    """(detections, target) from (xmin, ymin, xmax, ymax, label, score), and without the score."""
    f = torch.tensor([list(map(float, row)) for row in found]).reshape(-1, 6)
    t = torch.tensor([list(map(float, row)) for row in truth]).reshape(-1, 5)
    detections = Detections(f[:, :4], f[:, 5], f[:, 4].long(), SIZE, names, "x")
    return detections, {"boxes": t[:, :4], "labels": t[:, 4].long(), "image_id": "x"}
