"""`import ssdlib`: a face that is there at once, and loads what is used."""

import subprocess
import sys

import pytest

import ssdlib
from ssdlib.common.paths import project_root
from ssdlib.data.source import resolve
from ssdlib.detector.model import SSD300
from ssdlib.detector.model_file import SHIPPED
from ssdlib.inference.detections import Detections
from ssdlib.inference.predictor import Predictor


def test_the_import_loads_nothing():
    code = "import sys, ssdlib; dir(ssdlib); print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"set()\n"


def test_names_are_those_of_their_modules():
    named = {"Detections": Detections, "Predictor": Predictor, "SSD300": SSD300, "open_dataset": resolve}
    assert set(named) == set(ssdlib.__all__) <= set(dir(ssdlib))
    assert all(getattr(ssdlib, name) is thing for name, thing in named.items())
    with pytest.raises(AttributeError, match="SSD512"):
        ssdlib.SSD512  # noqa: B018


@pytest.mark.skipif(not SHIPPED.is_file(), reason="no shipped weights")
def test_two_lines_give_the_cells_of_a_picture():
    data = ssdlib.open_dataset(project_root() / "data/samples")
    sample = data.dataset("trainval").samples[0]
    (found,) = ssdlib.Predictor.from_checkpoint().detect(sample.image_path)
    truth = [(sample.labels == label).sum() for label in (1, 2, 3)]
    counts = found.above(0.5).counts()
    assert len(found) > sum(counts.values()) and counts["WBC"] == truth[0]
    assert abs(counts["RBC"] - truth[1]) <= 2
    shown = repr(found)
    assert f"{counts['RBC']} RBC" in shown and sample.image_path.name in shown and "640 x 480" in shown
