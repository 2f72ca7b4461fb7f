"""The time breakdown: each part of a training gets the time that it takes."""

import json
import time

import pytest
import torch

from ssdlib.common.signals import StopSignals
from ssdlib.config import RECIPES
from ssdlib.data.dataset import ImageCache
from ssdlib.detector.loss import multibox_loss
from ssdlib.detector.matching import match
from ssdlib.detector.model import SSD300
from tests.benchmarks import profile
from tests.benchmarks.invocation import TINY
from tests.benchmarks.timing import Bench

PAUSE = 1.5
"""Seconds: longer than the other parts of a step of a small network take on one busy processor."""


@pytest.fixture
def bench(smears_source, tmp_path):
    return Bench(tmp_path, smears_source, torch.device("cpu"), batch=2, rounds=1, progress=False)


class SlowBackward(torch.autograd.Function):
    """Does nothing, and takes its time on the way back."""

    @staticmethod
    def forward(ctx, values):
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(PAUSE)
        return gradient


def slow(function):
    def slower(*arguments, **options):
        time.sleep(PAUSE)
        return function(*arguments, **options)

    return slower


def slow_loss(locs, logits, *rest, **options):
    return multibox_loss(SlowBackward.apply(locs), logits, *rest, **options)


@pytest.mark.parametrize(
    ("where", "name", "replacement", "part"),
    [
        ("ssdlib.data.dataset.ImageCache", "get", slow(ImageCache.get), profile.DATA),
        ("ssdlib.detector.model.SSD300", "forward", slow(SSD300.forward), profile.NETWORK),
        ("ssdlib.training.validation", "match", slow(match), profile.LOSS),
        ("ssdlib.training.validation", "multibox_loss", slow_loss, profile.LOSS),
        ("torch.optim.AdamW", "step", slow(torch.optim.AdamW.step), profile.UPDATE),
    ],
)
def test_time_is_given_to_the_part_that_takes_it(bench, monkeypatch, where, name, replacement, part):
    monkeypatch.setattr(f"{where}.{name}", replacement)
    row = profile.time_shares(bench, TINY)
    assert set(row["shares"]) == {profile.NETWORK, profile.LOSS, profile.UPDATE, profile.DATA}
    assert sum(row["shares"].values()) == pytest.approx(1) and min(row["shares"].values()) > 0
    # One step of two images: a pause, or two where each image is read.
    assert row["shares"][part] * row["seconds_per_image"] * 2 > PAUSE
    assert max(row["shares"], key=row["shares"].get) == part


def test_the_way_back_through_the_network_is_the_networks(bench):
    trainer = profile.make_trainer(bench, TINY, 1)
    stopwatch = profile.timed(trainer)
    conv = trainer.network.loc_heads.convs[0]
    conv.register_forward_hook(lambda module, inputs, output: SlowBackward.apply(output))
    stopwatch.start()
    trainer.train_one_epoch(StopSignals())
    assert stopwatch.seconds[profile.NETWORK] > PAUSE > 2 * stopwatch.seconds[profile.LOSS]


@pytest.mark.slow
def test_the_breakdown_is_measured_and_tabulated(bench, monkeypatch):
    monkeypatch.setitem(RECIPES, "scratch", TINY)
    measured = profile.measure(bench)
    assert [row["width"] for row in measured.values["time"]] == list(profile.WIDTHS)
    assert 0.1 < measured.values["memory"]["peak_gb"] < 50
    json.dumps(measured.values)
    assert len(measured.tables[0].rows) == 2 and len(measured.targets) == 3
