"""The benchmark: its arithmetic, its naive yardstick (which must do the same work), and its command."""

import json

import pytest
import torch
from typer.testing import CliRunner

from ssdlib.config import ModelConfig, PriorConfig
from ssdlib.data.smears import write_dataset
from ssdlib.detector.loss import multibox_loss
from ssdlib.detector.matching import match
from ssdlib.detector.nms import detect_objects
from ssdlib.detector.priors import make_priors
from tests.benchmarks import naive
from tests.benchmarks.__main__ import BARS, judge, matrix_share, report
from tests.benchmarks.suites import NAIVE, OURS, TORCHVISION, Bench, forward_flops
from tests.benchmarks.timing import Timings, take_turns

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def priors():
    return make_priors(PriorConfig())


def test_a_ratio_is_taken_within_each_round():
    # The second round was slow for both: the ratio must not notice.
    timings = Timings("t", {OURS: [1.0, 10.0, 1.0], NAIVE: [3.0, 30.0, 4.0]})
    assert timings.ratio(NAIVE, OURS) == 3.0
    assert timings.median(OURS) == timings.best(OURS) == 1.0
    assert timings.to_dict()[NAIVE]["times_as_long_as_the_first"] == 3.0
    assert "3.00x" in timings.table()


def test_contestants_take_turns_and_the_first_turn_does_not_count():
    called = []
    contestants = {name: (lambda name=name: called.append(name)) for name in "abc"}
    timings = take_turns("t", contestants, units=2, rounds=2, device=CPU, progress=False)
    assert called == [*"abc", *"bca", *"cab"]
    assert {name: len(values) for name, values in timings.seconds.items()} == dict.fromkeys("abc", 2)


def test_time_is_divided_by_the_units_of_each_contestant(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr("tests.benchmarks.timing.time.perf_counter", lambda: next(ticks))
    work = {OURS: lambda: None, NAIVE: lambda: None}
    timings = take_turns("t", work, units={OURS: 4, NAIVE: 1}, rounds=1, device=CPU, progress=False)
    assert timings.seconds == {OURS: [0.25], NAIVE: [1.0]}


@pytest.mark.parametrize(
    ("ours", "passed"),
    [(None, []), (1.0, [True, True]), (1.25, [True, False]), (10.0, [False, False])],
)
def test_bars_are_judged_for_the_suites_that_ran(ours, passed):
    seconds = {OURS: [ours], NAIVE: [3.6], TORCHVISION: [2.4]}
    results = {"training": Timings("training", seconds)} if ours else {}
    bars = judge(results)
    assert [bar["passed"] for bar in bars] == passed
    text = report(results, None)
    assert (text.count("PASS"), text.count("miss")) == (passed.count(True), passed.count(False))


def test_the_bars_are_those_of_the_project():
    assert sorted(bar[2] for bar in BARS) == [2.0, 2.3, 2.8, 50.0]


@pytest.mark.parametrize(("config", "gflop"), [(ModelConfig(), 61.1), (ModelConfig(batch_norm=True), 61.1)])
def test_forward_flops(config, gflop):
    assert forward_flops(config) / 1e9 == pytest.approx(gflop, abs=0.05)


def test_share_of_the_matrix_rate(tmp_path):
    bench = Bench(tmp_path, None, CPU, batch=1, rounds=1, progress=False)
    share = matrix_share(bench, Timings("training", {OURS: [2.0, 1.0]}), size=64)
    assert share["training_gflops_per_second"] == pytest.approx(3 * forward_flops() / 1e9)
    assert share["share_of_matrix_rate"] == pytest.approx(
        share["training_gflops_per_second"] / share["matrix_gflops_per_second"]
    )


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
    from torch.utils.flop_counter import FlopCounterMode

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


def test_the_command_runs_a_suite_and_writes_json(tmp_path):
    import typer

    from tests.benchmarks.__main__ import main

    app = typer.Typer()
    app.command()(main)
    path = tmp_path / "results.json"
    arguments = ["--only", "loading", "--batch", "1", "--rounds", "1", "--no-progress", "--json", str(path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    written = json.loads(path.read_text())
    assert set(written["suites"]) == {"loading"}
    assert written["environment"]["cpu"]
    assert written["bars"] == []
    assert written["suites"]["loading"][OURS]["median_seconds"] > 0

    assert CliRunner().invoke(app, ["--only", "cooking"]).exit_code == 2


@pytest.mark.parametrize(
    "variables", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"}]
)
def test_the_users_own_malloc_settings_stand(monkeypatch, variables):
    from ssdlib.common.runtime import keep_freed_memory

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert keep_freed_memory() is False


def test_the_others_run_under_plain_malloc_and_ours_comes_back(monkeypatch):
    from tests.benchmarks import suites

    said = []
    monkeypatch.setattr("ssdlib.common.runtime._mallopt", lambda **new: said.append(new["mmap_max"]) or True)
    monkeypatch.setattr("ssdlib.common.runtime.platform.libc_ver", lambda: ("glibc", "2.36"))
    for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)

    def fail():
        said.append("runs")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        suites._with_plain_malloc(fail)()
    assert said == [65536, "runs", 0]
