"""The weights that come with the project: what the file is, what its card says, and that it finds cells."""

import hashlib
import json

import pytest
import safetensors
import torch

from ssdlib.common.paths import project_root
from ssdlib.config import BCCD_CLASSES, PROFILES, SHIPPED_MODEL, ModelConfig
from ssdlib.data.source import open_folder
from ssdlib.detector.model_file import BENCHMARK, SHIPPED, load_model
from ssdlib.detector.weights import build_model
from ssdlib.evaluation.evaluate import evaluate_model
from ssdlib.inference.predictor import Predictor

LEAST_MAP = 0.95
"""mAP@0.5 over the six drawn smears of data/samples, none of which was trained on."""
COUNTS_WITHIN = 0.15
"""Cells of a class counted on all six, against how many there are: off by this share, or by two."""


both = pytest.mark.parametrize("weights", [SHIPPED, BENCHMARK], ids=lambda path: path.stem)


@pytest.fixture(scope="module", params=[SHIPPED, BENCHMARK], ids=lambda path: path.stem)
def judged(request):
    source = open_folder(project_root() / "data/samples")
    datasets = [source.dataset(split) for split in ("trainval", "test")]
    predictor = Predictor(load_model(request.param), precision="fp32")
    return [(dataset, *evaluate_model(predictor, dataset), predictor.config) for dataset in datasets]


@both
def test_the_file_holds_fp16_tensors_and_what_rebuilds_the_network(weights):
    assert weights.stat().st_size <= 15e6
    with safetensors.safe_open(weights, framework="pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert all(t.dtype == torch.float16 for name, t in tensors.items() if "num_batches" not in name)
    assert all(torch.isfinite(t).all() for t in tensors.values())
    config = ModelConfig.from_dict(json.loads(header["config"]))
    assert config.class_names == BCCD_CLASSES
    own = {"mean": SHIPPED_MODEL.mean, "std": SHIPPED_MODEL.std, "use": SHIPPED_MODEL.use}
    assert config.replace(**own) == SHIPPED_MODEL
    assert "recipe" in json.loads(header["metadata"])


@pytest.mark.parametrize("names", [BCCD_CLASSES, ("a", "b", "c", "d")])
def test_the_profile_quick_starts_from_the_benchmarks(names):
    recipe = PROFILES["quick"].recipe
    model = build_model(recipe.model.replace(class_names=names), recipe.initial_weights)
    own, kept = model.state_dict(), load_model(BENCHMARK).state_dict()
    new = {name for name in own if not torch.equal(own[name], kept[name])}
    assert all(name.startswith("class_heads.") for name in new)
    assert bool(new) == (names != BCCD_CLASSES)


def test_the_default_carries_how_to_count_and_what_it_was_trained_on():
    use = load_model(SHIPPED).config.use
    assert set(use.thresholds) == set(use.nms_iou) == set(BCCD_CLASSES) and use.appearance is not None
    assert all(0.1 < threshold < 0.9 for threshold in use.thresholds.values())
    assert use.view == (640, 480) and 95 < use.reference_side < 115


@both
def test_its_card_is_of_this_very_file(weights):
    page = weights.with_suffix(".md").read_text(encoding="utf-8")
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in page
    option = "" if weights == SHIPPED else " --weights bccd"
    for split in ("val", "test"):
        assert f"evaluate{option} --data bccd --split {split}" in page


def test_it_finds_the_cells_of_the_samples(judged):
    for _, metrics, _, _ in judged:
        assert metrics.map_50 > LEAST_MAP


@pytest.mark.parametrize("label", range(1, 4), ids=BCCD_CLASSES)
def test_it_counts_the_cells_of_the_samples(judged, label):
    there = found = 0
    for dataset, _, detections, config in judged:
        there += sum(int((target["labels"] == label).sum()) for target in dataset.targets())
        found += sum(int((one.above(config.thresholds).labels == label).sum()) for one in detections)
    assert there > 0 and abs(found - there) <= max(2, COUNTS_WITHIN * there)
