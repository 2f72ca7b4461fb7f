"""Time to accuracy: the schedule, the contestants, the results file; and where a training's time goes."""

import json
import math
import time
from concurrent.futures import Future
from itertools import pairwise

import pytest
import torch
from torch.optim.swa_utils import AveragedModel
from typer.testing import CliRunner

from ssdlib.common.errors import CheckpointError, ConfigError, SsdError, TrainingError
from ssdlib.config import RECIPES, ModelConfig, Recipe
from ssdlib.data.dataset import ImageCache
from ssdlib.detector.loss import multibox_loss
from ssdlib.detector.matching import match
from ssdlib.detector.model import SSD300
from ssdlib.training.monitor import StopSignals
from tests.benchmarks import contestants, training, waste
from tests.benchmarks.contestants import Ours, Schedule, Setting, StopAt, TorchvisionRecipe
from tests.benchmarks.suites import Bench
from tests.benchmarks.training import Race

CPU = torch.device("cpu")
TINY = Recipe(
    name="tiny", model=ModelConfig(batch_norm=True, width=0.05), batch_size=2, warmup_steps=1, ema_decay=0.5
)


@pytest.fixture
def race(smears_source, tmp_path):
    # 6 images in batches of 2, twice; judged after steps 2, 4 and 6: in the midst of epochs too.
    return Race(smears_source, 12, 3, 0, "cpu", tmp_path / "out" / training.RESULTS, progress=False)


# --- the schedule ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "evaluations", "train", "batch", "epochs", "stops"),
    [
        (1, 1, 1, 8, 1, (1,)),
        (2000, 8, 205, 8, 10, (31, 62, 94, 125, 156, 188, 219, 250)),
        (2000, 2, 205, 4, 10, (255, 510)),
        (1, 1, 205, 8, 1, (25,)),
        (30, 2, 6, 8, 5, (2, 5)),
    ],
)
def test_a_schedule_is_whole_epochs(images, evaluations, train, batch, epochs, stops):
    schedule = Schedule.stretch(images, evaluations, train, batch)
    assert (schedule.epochs, schedule.stops) == (epochs, stops)
    assert schedule.images == schedule.stops[-1] * schedule.per_step


@pytest.mark.parametrize("evaluations", [0, 4])
def test_more_evaluations_than_steps_are_refused(evaluations):
    with pytest.raises(ConfigError, match="1 to 3 evaluations"):
        Schedule.stretch(6, evaluations, 6, 2)


def test_the_reference_rate_for_our_batch():
    recipe = TorchvisionRecipe()
    schedule = Schedule.stretch(24_000, 1, 205, 8)  # 120 epochs, as there
    steps = (0, 24, 80 * 25 - 1, 80 * 25, 110 * 25 - 1, 110 * 25)
    rates = [recipe.learning_rate * contestants.reference_rate(step, schedule, recipe) for step in steps]
    assert rates == pytest.approx([5e-7, 5e-4, 5e-4, 5e-5, 5e-5, 5e-6])


# --- the contestants -------------------------------------------------------------------------------------


def test_the_contestants_take_the_recipes_as_they_are():
    ours = contestants.contestants()
    assert list(ours) == ["scratch", "original", "torchvision"]
    assert ours["scratch"] == RECIPES["scratch"].replace(smears=0)
    assert ours["original"] == RECIPES["original"].replace(initial_weights="scratch")
    assert contestants.contestants(pretrained=True)["original"] is RECIPES["original"]
    for recipe in ours.values():
        json.dumps(recipe.to_dict())
        assert f"{recipe.learning_rate:g}" in contestants.describe(recipe, CPU)


def test_halting_changes_nothing(smears_source, tmp_path):
    """Ours halted after steps 2 and 4 has the weights of ours that ran to step 6 at once."""
    schedule = Schedule.stretch(12, 3, 6, 2)
    weights = []
    for name, stops in (("halted", (2, 4, 6)), ("at once", (6,))):
        ours = Ours(TINY, schedule, Setting(smears_source, CPU, 0, tmp_path / name, progress=False))
        for stop in stops:
            ours.train_until(stop)
            assert ours.trainer.step == stop
            ours.detector()
        weights.append(ours.trainer.weights.state_dict())
    assert ours.trainer.epoch == 2
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_stop_at_is_silent_before_its_step():
    trainer = type("Trainer", (), {"step": 1})()
    assert not StopAt(trainer, 2).requested
    assert StopAt(trainer, 1).requested


def test_without_a_download_original_starts_from_scratch(monkeypatch, capsys):
    def build(model, initial_weights, seed):
        if initial_weights != "scratch":
            raise CheckpointError("cannot be had")

    monkeypatch.setattr(contestants, "build_model", build)
    assert contestants._first_weights(TINY, 0)[1] == "scratch"
    assert capsys.readouterr().out == ""
    assert contestants._first_weights(TINY.replace(initial_weights="imagenet"), 0)[1] == "scratch"
    assert "tiny starts from scratch: cannot be had" in capsys.readouterr().out
    with pytest.raises(CheckpointError):
        contestants._first_weights(TINY.replace(initial_weights="a.safetensors"), 0)


class Fake(torch.nn.Module):
    """In the place of torchvision's network: notes what it gets, and finds one box in each image."""

    def __init__(self, classes):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen, self.factor = [], 1.0

    def forward(self, images, targets=None):
        assert all(image.dtype == torch.float32 and 0 <= image.min() <= image.max() <= 1 for image in images)
        if targets is None:
            assert not self.training
            box = {"boxes": torch.ones(1, 4) * 9, "scores": torch.ones(1), "labels": torch.tensor([2])}
            return [box] * len(images)
        self.seen += targets
        return {"bbox_regression": self.weight * self.factor, "classification": self.weight}


@pytest.fixture
def fake(smears_source, tmp_path, monkeypatch):
    monkeypatch.setattr(contestants, "torchvision_model", Fake)
    schedule = Schedule.stretch(12, 3, 6, 2)
    setting = Setting(smears_source, CPU, 0, tmp_path, progress=False)
    return contestants.enter(TorchvisionRecipe(batch_size=2), schedule, setting)


def test_torchvision_sees_every_image_once_an_epoch(fake):
    fake.train_until(2)
    assert len(fake.model.seen) == 4
    fake.train_until(6)
    assert (fake.step, len(fake.model.seen)) == (6, 12)
    assert all(len(t["boxes"]) == len(t["labels"]) for t in fake.model.seen)
    found = list(fake.detector().stream([torch.zeros(40, 50, 3, dtype=torch.uint8).numpy()] * 9))
    assert [(one.image_size, one.names) for one in found] == [((50, 40), ["RBC"])] * 9


def test_torchvision_stops_at_a_loss_that_is_not_finite(fake):
    fake.model.factor = math.nan
    with pytest.raises(TrainingError, match="step 1"):
        fake.train_until(1)


def test_torchvisions_own_network_learns_and_is_judged(tmp_path):
    """The real one, on one image: its loss, a step, its detections."""
    from ssdlib.data import smears
    from ssdlib.data import source as bccd

    root = smears.write_dataset(tmp_path / "one", train=1, val=1, test=1, progress=False)
    race = Race(bccd.open_folder(root), 1, 1, 0, "cpu", tmp_path / training.RESULTS, progress=False)
    training.open_results(race)
    entry = training.compete("torchvision", TorchvisionRecipe(), race)
    assert [point["images"] for point in entry["points"]] == [1]
    assert entry["points"][0]["map_50"] is not None


# --- the race --------------------------------------------------------------------------------------------


def test_a_race_in_processes_of_their_own(race, capfd):
    results = training.hold(race, {"tiny": TINY})
    entry = results["contestants"]["tiny"]
    points = entry["points"]
    assert [point["images"] for point in points] == [4, 8, 12]
    assert all(a["seconds"] < b["seconds"] for a, b in pairwise(points))
    assert set(points[0]["ap_50"]) == set(race.source.class_names)
    assert results["environment"]["cpu"] and results["data"]["synthetic"]
    assert "12/12 images" in capfd.readouterr().out

    assert training.hold(race, {"tiny": TINY})["contestants"]["tiny"] == entry
    assert "is done already" in capfd.readouterr().out

    files = training.save_figure(results, race.path)
    assert [file.name for file in files] == ["time-to-accuracy.png", "time-to-accuracy.svg"]
    assert all(file.stat().st_size > 1000 for file in files)


def test_one_that_dies_leaves_what_was_measured(race, monkeypatch, capsys):
    """Here by weights that do not exist."""
    recipe = TINY.replace(initial_weights="missing.safetensors")

    class Process:
        def __init__(self, target, args):
            self.target, self.args = target, args

        def start(self):
            with pytest.raises(SystemExit) as end:
                self.target(*self.args)
            self.exitcode = end.value.code

        def join(self):
            pass

        terminate = join

    context = type("Context", (), {"Process": Process})()
    monkeypatch.setattr(training.multiprocessing, "get_context", lambda method: context)
    training.open_results(race)
    training._record(race.path, "tiny", ENTRY)
    with pytest.raises(SsdError, match=r"tiny did not finish \(exit code 1"):
        training.hold(race, {"tiny": recipe})
    assert "error: no weights at missing.safetensors" in capsys.readouterr().err
    assert json.loads(race.path.read_text())["contestants"]["tiny"] == ENTRY


ENTRY = {"recipe": TINY.to_dict(), "evaluations": 2, "stopped": None, "points": [{}, {}]}


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        (None, False),
        ({"points": []}, False),
        ({}, True),
        ({"points": [{}]}, False),
        ({"points": [], "stopped": "nan"}, True),
        ({"recipe": TINY.replace(learning_rate=1.0).to_dict()}, False),
    ],
)
def test_who_need_not_run_again(changes, done):
    assert training.is_done(None if changes is None else {**ENTRY, **changes}, TINY) is done


def test_results_of_other_terms_are_not_mixed(race):
    training.open_results(race)
    training._record(race.path, "tiny", ENTRY)
    other = Race(race.source, 24, 3, 0, "cpu", race.path)
    with pytest.raises(ConfigError, match="results for images 12"):
        training.open_results(other)
    assert training.open_results(race)["contestants"] == {"tiny": ENTRY}
    assert training.open_results(other, force=True)["contestants"] == {}


def test_a_training_that_stops_is_a_result(race, monkeypatch):
    class Broken:
        initial_weights = "scratch"

        def train_until(self, step):
            raise TrainingError("nan")

    monkeypatch.setattr(training, "enter", lambda *_: Broken())
    training.open_results(race)
    assert training.compete("tiny", TINY, race)["stopped"] == "nan"
    assert json.loads(race.path.read_text())["contestants"]["tiny"]["points"] == []


def entry(maps, stopped=None):
    points = [
        {"images": 10 * k, "seconds": 60.0 * k, "map_50": value, "ap_50": {}}
        for k, value in enumerate(maps, 1)
    ]
    return {"points": points, "stopped": stopped}


@pytest.mark.parametrize(
    ("maps", "columns"),
    [
        ([], "n/a n/a n/a n/a"),
        ([None], "n/a n/a n/a n/a 1.0 0.17 n/a n/a"),
        ([0.4, 0.81, 0.95, 0.7], "2.0 2.0 3.0 3.0 4.0 0.17 0.700 0.950"),
    ],
)
def test_table(maps, columns):
    text = training.table({"contestants": {"one": entry(maps)}})
    assert text.splitlines()[-1].split() == ["one", *columns.split()]


def test_the_command_names_an_unknown_contestant():
    import typer

    app = typer.Typer()
    app.command()(training.main)
    assert CliRunner().invoke(app, ["--only", "yolo"]).exit_code == 2
    assert CliRunner().invoke(app, ["--data", "/nowhere"]).exit_code == 1


# --- where the time goes ---------------------------------------------------------------------------------


class SlowBackward(torch.autograd.Function):
    """Does nothing, and takes its time on the way back."""

    @staticmethod
    def forward(ctx, values):
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(PAUSE)
        return gradient


PAUSE = 0.4


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
        ("ssdlib.data.dataset.ImageCache", "get", slow(ImageCache.get), waste.DATA),
        ("ssdlib.detector.model.SSD300", "forward", slow(SSD300.forward), waste.NETWORK),
        ("ssdlib.training.trainer", "match", slow(match), waste.LOSS),
        ("ssdlib.training.trainer", "multibox_loss", slow_loss, waste.LOSS),
        (
            "torch.optim.swa_utils.AveragedModel",
            "update_parameters",
            slow(AveragedModel.update_parameters),
            waste.UPDATE,
        ),
    ],
)
def test_time_is_given_to_the_part_that_takes_it(bench, monkeypatch, where, name, replacement, part):
    monkeypatch.setattr(f"{where}.{name}", replacement)
    row = waste.time_shares(bench, TINY)
    assert set(row["shares"]) == {waste.NETWORK, waste.LOSS, waste.UPDATE, waste.DATA}
    assert sum(row["shares"].values()) == pytest.approx(1)
    assert min(row["shares"].values()) > 0
    # One step of two images: a pause, or two where each image is read.
    assert row["shares"][part] * row["seconds_per_image"] * 2 > PAUSE
    assert max(row["shares"], key=row["shares"].get) == part


@pytest.fixture
def bench(smears_source, tmp_path):
    return Bench(tmp_path, smears_source, CPU, batch=2, rounds=1, progress=False)


def test_the_way_back_through_the_network_is_the_networks(bench):
    trainer = waste._trainer(bench, TINY, 1)
    stopwatch = waste.watch(trainer)
    conv = trainer.network.loc_heads.convs[0]
    conv.register_forward_hook(lambda module, inputs, output: SlowBackward.apply(output))
    stopwatch.start()
    trainer.train_one_epoch(StopSignals())
    assert stopwatch.seconds[waste.NETWORK] > PAUSE > 2 * stopwatch.seconds[waste.LOSS]


@pytest.mark.parametrize("widths", [(0.05,), (0.1, 0.05)])
def test_waste_is_measured_and_said(bench, monkeypatch, widths):
    class Here:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, function, *arguments):
            future = Future()
            future.set_result(function(*arguments))
            return future

    monkeypatch.setattr(waste, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(
        waste, "matrix_rate", lambda bench, size: ({"fp32": 1e12, "bf16": 1e12}, "bf16", None)
    )
    measured = waste.measure(bench, TINY, widths)
    assert [row["width"] for row in measured["time"]] == list(widths)
    assert 0.1 < measured["memory"]["peak_gb"] < 50
    assert [row["name"] for row in measured["device"]] == ["eager fp32", "bf16", "bf16, channels_last"]
    json.dumps(measured)
    text = waste.report(measured, CPU)
    assert text.count("PASS") + text.count("miss") == len(widths) + 1
    assert len(waste.judge(measured, torch.device("cuda"))) == len(widths) + 2


@pytest.mark.parametrize(("share", "memory", "passed"), [(0, 0, [False, True]), (0.95, 6, [True, True]),
                                                         (0.9, 7, [False, False])])  # fmt: skip
def test_bars_of_waste(share, memory, passed):
    measured = {
        "time": [{"width": 1.0, "shares": {waste.NETWORK: share}}],
        "memory": {"width": 1.0, "batch": 8, "peak_gb": memory},
        "device": [],
    }
    assert [bar["passed"] for bar in waste.judge(measured, CPU)] == passed


def test_only_variants_that_make_sense_here(bench, monkeypatch):
    monkeypatch.setattr(waste, "matrix_rate", lambda bench, size: ({"fp32": 1e12}, "fp32", None))
    rows = waste.device_rates(bench, TINY)
    assert [row["name"] for row in rows] == ["eager fp32"]
    assert rows[0]["images_per_second"] > 0 and rows[0]["peak_gpu_gb"] is None
