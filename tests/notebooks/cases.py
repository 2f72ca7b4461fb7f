"""Small data sets of one's own, each with an oddity that people's folders have, drawn in a moment."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from ssdlib.data.formats.voc import write_voc
from ssdlib.data.images import write_image

Object = tuple[str, tuple[float, float, float, float]]
Field = tuple[tuple[int, int], list[Object], str]
"""Width and height, the objects by class and xyxy, and the ending of the file."""
Splits = Mapping[str, Sequence[Field]]

SIDES = {"WBC": 40, "RBC": 26, "Platelets": 10}
"""Pixels across a cell of each class; of any other, those of an RBC."""
COLORS = {"WBC": (120, 80, 170), "RBC": (205, 120, 120), "Platelets": (150, 110, 190)}


def field(
    *names: str, size: tuple[int, int] = (160, 120), side: int | None = None, suffix: str = ".jpg"
) -> Field:
    """A field with a cell of each of the names, in rows, `side` pixels across."""
    step = max([side or SIDES.get(name, 26) for name in names], default=1) + 4
    columns = max((size[0] - 4) // step, 1)
    objects = []
    for k, name in enumerate(names):
        x, y, across = 4 + k % columns * step, 4 + k // columns * step, side or SIDES.get(name, 26)
        objects.append((name, (x, y, x + across, y + across)))
    return size, objects, suffix


USUAL = ("RBC", "WBC", "RBC", "Platelets", "RBC")
EMPTY = field()


def draw(root: Path, splits: Splits) -> Path:
    """The fields as a folder in VOC's layout, with a list for each split."""
    random = np.random.default_rng(0)
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    for split, fields in splits.items():
        names = [f"{split}_{k}" for k in range(len(fields))]
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name, ((width, height), objects, suffix) in zip(names, fields, strict=True):
            image = random.normal((230, 215, 215), 4, (height, width, 3))
            for of_class, (xmin, ymin, xmax, ymax) in objects:
                center = round((xmin + xmax) / 2), round((ymin + ymax) / 2)
                axes = max(round((xmax - xmin) / 2), 1), max(round((ymax - ymin) / 2), 1)
                cv2.ellipse(image, center, axes, 0, 0, 360, COLORS.get(of_class, (180, 120, 140)), -1)
            pixels = image.clip(0, 255).astype(np.uint8)
            if suffix == ".png":
                cv2.imwrite(str(root / f"JPEGImages/{name}.png"), pixels[..., 1])  # gray: one channel
            else:
                write_image(root / f"JPEGImages/{name}{suffix}", pixels)
            boxes = np.array([box for _, box in objects], np.float32).reshape(-1, 4)
            labels = [of_class for of_class, _ in objects]
            write_voc(root / f"Annotations/{name}.xml", width=width, height=height, boxes=boxes, names=labels)
    return root


WIDE = [field(*USUAL, side=4, size=(1600, 60))]
# Without red cells, whose size tells the scale: training would cut such fields into hundreds of tiles.
CROWD = field(*["Platelets"] * 150, side=8, size=(320, 240))
FEW = field("Platelets", "WBC", size=(320, 240))
KINDS = [f"kind {k}" for k in range(12)]
GRAY = [field("cell", "cell", suffix=".png")]

SMALL: Splits = {
    "train": [EMPTY, *[field(*USUAL)] * 5, field(*USUAL, size=(200, 160), suffix=".png")],
    "val": [field(*USUAL)] * 3,
    "test": [field(*USUAL), field(*USUAL, size=(120, 200)), EMPTY],
}
"""Few images with the usual cells."""

ODD: dict[str, Splits] = {
    # Oddities that do not hide each other share a set, as each set takes its time.
    "one class, gray PNG, a single image in each split, no object in test": {
        "train": GRAY, "val": GRAY, "test": [field(suffix=".png")],
    },
    "red cells only, the first images empty, no object in val": {
        "train": [EMPTY, EMPTY, EMPTY, EMPTY, field("RBC", "RBC")], "val": [EMPTY], "test": [field("RBC")],
    },
    "twelve classes, not all in each split, images of different sizes": {
        "train": [field(*KINDS[:11]), field(*KINDS[:11], size=(120, 200)), field(size=(300, 300))],
        "val": [field(*KINDS[6:], size=(200, 200))],
        "test": [field(*KINDS[3:], size=(400, 300))],
    },
    "three images, very wide, only tiny objects": {"train": WIDE * 3, "val": WIDE, "test": WIDE},
    "150 objects in an image, no white cell in val and test": {
        "train": [CROWD, FEW, FEW, FEW], "val": [field("Platelets", size=(320, 240))], "test": [CROWD],
    },
}  # fmt: skip
"""Data sets that `data check` passes, by what is odd about them."""
