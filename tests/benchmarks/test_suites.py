"""The suites: their arithmetic, the naive SSD300 (which must do the same work), and the command."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ssdlib.common.runtime import keep_freed_memory
from ssdlib.config import ModelConfig, PriorConfig
from ssdlib.data.smears import write_dataset
from ssdlib.detector.loss import multibox_loss
from ssdlib.detector.matching import match
from ssdlib.detector.nms import detect_objects
from ssdlib.detector.priors import make_priors
from tests.benchmarks import naive, suites
from tests.benchmarks.__main__ import main
from tests.benchmarks.invocation import invoke
from tests.benchmarks.suites import NAIVE, OURS, TORCHVISION, forward_flops
from tests.benchmarks.timing import Timings


@pytest.fixture(scope="module")
def priors():
    return make_priors(PriorConfig())


@pytest.mark.parametrize(("ours", "passed"), [(1.0, [True, True]), (1.25, [True, False])])
def test_a_suite_is_compared_with_its_targets(ours, passed):
    timings = Timings("training", {OURS: [ours], NAIVE: [3.6], TORCHVISION: [2.4]})
    measured = suites.compared("training", timings, NAIVE, TORCHVISION)
    assert [one["passed"] for one in measured.targets] == passed
    assert measured.tables[0].rows[0][0] == OURS and measured.values["timings"] == timings.to_dict()


@pytest.mark.parametrize("config", [ModelConfig(), ModelConfig(batch_norm=True)])
def test_forward_flops(config):
    assert forward_flops(config) / 1e9 == pytest.approx(61.1, abs=0.05)


def test_share_of_the_matrix_rate():
    product = suites.MatrixProduct(torch.device("cpu"), size=64, times=2)
    product()
    assert product.flops == 2 * 2 * 64**3
    # Twice as fast in the second round, both of them: the share is the same.
    timings = Timings("training", {OURS: [2.0, 1.0, 2.0], suites.MATRIX: [1e-5, 5e-6, 1e-5]})
    share = suites.matrix_share(product, timings)
    assert share["training_gflops_per_second"] == pytest.approx(3 * forward_flops() / 2e9)
    expected = share["training_gflops_per_second"] / share["matrix_gflops_per_second"]
    assert share["share_of_matrix_rate"] == pytest.approx(expected)
    assert f"{expected:.0%}" in suites.matrix_table(share).to_text()


@pytest.mark.parametrize("count", [0, 1, 40])
def test_naive_nms_keeps_what_ours_keeps(priors, count):
    generator = torch.Generator().manual_seed(count)
    locs = torch.randn(2, 8732, 4, generator=generator) * 0.1
    logits = torch.full((2, 8732, 4), -20.0)
    logits[..., 0] = 20.0
    rows = torch.randperm(8732, generator=generator)[:count]
    logits[:, rows, 1:] = 20 + torch.randn(2, count, 3, generator=generator)
    expected = detect_objects(locs, logits, priors)
    for (boxes, scores, labels), (our_boxes, our_scores, our_labels) in zip(
        naive.naive_nms(locs, logits, priors), expected, strict=True
    ):
        torch.testing.assert_close(boxes.clamp(0, 1), our_boxes)
        torch.testing.assert_close(scores, our_scores)
        assert labels.tolist() == our_labels.tolist()


def test_naive_loss_learns_from_the_same_priors(priors):
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[0.2, 0.2], [0.5, 0.6], [0.8, 0.3]])
    boxes = [torch.cat([centers - 0.09, centers + 0.11], dim=1)] * 2
    labels = [torch.tensor([1, 2, 3])] * 2
    locs = torch.zeros(2, 8732, 4)
    logits = torch.randn(2, 8732, 4, generator=generator)
    ours = multibox_loss(locs, logits, match(boxes, labels, priors), priors)
    # The naive one averages smooth L1 over the four coordinates as well, as the notebook did.
    expected = ours.localization / 4 + ours.confidence
    torch.testing.assert_close(naive.naive_loss(locs, logits, boxes, labels, priors), expected)


def test_naive_network_has_the_outputs_and_work_of_ours():
    with torch.device("meta"):
        model, images = naive.NaiveSSD300(4), torch.empty(1, 3, 300, 300)
        with FlopCounterMode(display=False) as counter:
            locs, logits = model(images)
    assert (locs.shape, logits.shape) == ((1, 8732, 4), (1, 8732, 4))
    assert counter.get_total_flops() == forward_flops()


def test_naive_data(tmp_path):
    root = write_dataset(tmp_path / "smears", train=3, val=1, test=1, progress=False)
    ids = (root / "ImageSets/Main/train.txt").read_text().split()
    images, boxes, labels = next(iter(naive.make_loader(root, ids, 3)))
    assert images.shape == (3, 3, 300, 300)
    assert all(
        len(b) == len(c) > 0 and b.min() >= 0 and b.max() <= 1 for b, c in zip(boxes, labels, strict=True)
    )


@pytest.mark.slow
def test_the_command_runs_a_suite_and_writes_json(tmp_path):
    path = tmp_path / "results.json"
    arguments = ["--only", "nms", "--batch", "1", "--rounds", "1", "--no-progress", "--json", str(path)]
    result = invoke(main, *arguments)
    assert result.exit_code == 0, result.output
    written = json.loads(path.read_text())
    assert written["nms"]["timings"]["of_each"][OURS]["median_seconds"] > 0 and "training" not in written
    assert [one["name"] for one in written["targets"]] == ["nms: times as fast as naive"]
    assert written["environment"]["cpu"]
    assert invoke(main, "--only", "cooking").exit_code == 2


def test_the_others_run_under_plain_malloc_and_ours_comes_back(monkeypatch):
    said = []
    monkeypatch.setattr(suites, "return_freed_memory", lambda: said.append("plain"))
    monkeypatch.setattr(suites, "keep_freed_memory", lambda: said.append("ours"))

    def fail():
        said.append("runs")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        suites.plain_malloc()(fail)()
    assert said == ["plain", "runs", "ours"]


@pytest.mark.parametrize(
    "variables", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"}]
)
def test_the_users_own_malloc_settings_stand(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert keep_freed_memory() is False
