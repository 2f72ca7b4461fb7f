"""What the tests of figures share: no windows, and one image with an error of each kind."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from ssdlib.inference.detections import Detections
from ssdlib.plots.style import new_figure

NAMES = ("WBC", "RBC", "Platelets")
PICTURE = np.full((100, 120, 3), 200, np.uint8)
A, B, C = (0, 0, 30, 30), (50, 50, 90, 90), (100, 0, 120, 20)


@pytest.fixture(autouse=True)
def no_windows(monkeypatch):
    mpl.use("Agg")
    plt.close("all")  # those of other tests
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("a plot function must not call show()"))
    yield
    plt.close("all")


def axes():
    return new_figure()[1]


@pytest.fixture
def ax():
    return axes()


def one_image(found=(), truth=()):
    """(detections, target) from rows (xmin, ymin, xmax, ymax, label, score), and without the score."""
    f = torch.tensor([list(map(float, row)) for row in found]).reshape(-1, 6)
    t = torch.tensor([list(map(float, row)) for row in truth]).reshape(-1, 5)
    detections = Detections(f[:, :4], f[:, 5], f[:, 4].long(), (120, 100), NAMES, "x")
    return detections, {"boxes": t[:, :4], "labels": t[:, 4].long(), "image_id": "x"}


EVERY_ERROR = one_image(
    [(*A, 1, 0.9), (*B, 1, 0.8), (50, 50, 68, 90, 2, 0.7), (0, 60, 20, 80, 3, 0.6)],
    [(*A, 1), (*B, 2), (*C, 2)],
)


def texts(ax):
    return [one.get_text() for one in ax.texts]


def curves(ax):
    """{label: (x, y)} of the lines of an Axes."""
    return {line.get_label(): tuple(map(list, line.get_data())) for line in ax.get_lines()}
