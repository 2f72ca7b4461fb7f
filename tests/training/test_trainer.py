"""The loop and its promises: learns, stops cleanly, goes on exactly, loses nothing."""

import dataclasses
import errno
import itertools
import json
import math
import os
import signal
import threading
import time
from dataclasses import dataclass
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torchvision.transforms import v2

import ssdlib.training.trainer
import ssdlib.training.validation
from ssdlib.common.errors import CheckpointError, DataError, SsdError, TrainingError
from ssdlib.common.signals import StopSignals
from ssdlib.config import NO_AUGMENTATION, RECIPES, ModelConfig, Recipe
from ssdlib.data.dataset import DetectionDataset, Sample
from ssdlib.data.images import write_image
from ssdlib.data.transforms import eval_transform
from ssdlib.detector.loss import MultiBoxLoss, multibox_loss
from ssdlib.detector.matching import match
from ssdlib.detector.model_file import load_model, read_metadata
from ssdlib.detector.weights import build_model
from ssdlib.inference.predictor import Predictor
from ssdlib.training import checkpoints, validation
from ssdlib.training.history import EpochRecord, History
from ssdlib.training.monitor import LossWatch, NonFiniteLoss
from ssdlib.training.optim import average_weights, clip_gradients, learning_rate_factor, parameter_groups
from ssdlib.training.trainer import Trainer, TrainingInterrupted, whole_batch_loss
from ssdlib.training.validation import loss_on
from ssdlib.training.views import use_for

TINY = ModelConfig(batch_norm=True, width=0.0625)
RECIPE = Recipe(
    model=TINY, epochs=3, batch_size=2, warmup_steps=1, evaluate_every=1, learning_rate=3e-3, ema_decay=0.5
)
BATCHES = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five small fields with 0, 1, 2, 3 and 4 cells: two batches of two an epoch, one image left over."""
    folder = tmp_path_factory.mktemp("fields")
    samples = []
    for k in range(5):
        generator = np.random.default_rng(k)
        image = generator.integers(180, 230, (48, 64, 3), dtype=np.uint8)
        corners = generator.integers((0, 0), (40, 24), (k, 2))
        boxes = np.concatenate([corners, corners + 20], axis=1).astype(np.float32)
        for x_min, y_min, x_max, y_max in boxes.astype(int):
            image[y_min:y_max, x_min:x_max] = (160, 60, 90)
        path = folder / f"field-{k}.png"
        write_image(path, image)
        samples.append(Sample(f"field-{k}", path, 64, 48, boxes, np.full(k, 2, dtype=np.int64)))
    return DetectionDataset(samples, TINY.class_names)


@dataclass
class FakeMetrics:
    map_50: float | None


@pytest.fixture
def scores(monkeypatch):
    """Replaces the evaluation: the mAPs of the epochs that are evaluated, 0.5 where none are left."""
    values = []

    def evaluate(predictor, dataset, **_):
        return FakeMetrics(map_50=values.pop(0) if values else 0.5), []

    monkeypatch.setattr(ssdlib.training.trainer, "evaluate_model", evaluate)
    monkeypatch.setattr(ssdlib.training.trainer, "loss_on", lambda *_: 3.5)
    return values


class Killed(BaseException):
    """No except clause of the trainer's may stop this one."""


def kill():
    raise Killed


def make_trainer(data, run_dir, recipe=RECIPE, *, val=2, model_seed=0, **options):
    settings = {
        "run_dir": run_dir,
        "precision": "fp32",
        "device": "cpu",
        "workers": 0,
        "progress": False,
        "data_description": {"source": "fields", "fingerprint": "f" * 8},
    } | options
    model = build_model(recipe.model, seed=model_seed)
    return Trainer(model, recipe, data, data.subset(val) if val else None, **settings)


def final_state(run_dir):
    state = checkpoints.read_state(run_dir / "checkpoints" / "last.pt")
    return {key: state[key] for key in ("epoch", "step", "model", "average", "optimizer", "scheduler")}


def losses(run_dir):
    return [(e["loss"], e["map_50"]) for e in json.loads((run_dir / "history.json").read_text())["epochs"]]


def at_step(monkeypatch, step, action):
    """Calls `action` while the step of this number (from 1) runs."""
    original, calls = ssdlib.training.validation.match, []

    def match(*arguments):
        calls.append(None)
        if len(calls) == step:
            action()
        return original(*arguments)

    monkeypatch.setattr(ssdlib.training.validation, "match", match)


def stop_by(number):
    return lambda: os.kill(os.getpid(), number)


# --- the parts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step, total, changes, expected",
    [
        (0, 0, {}, 1.0),
        (0, 100, {"warmup_steps": 10}, 0.1),
        (9, 100, {"warmup_steps": 10}, 1.0),
        (10, 100, {"warmup_steps": 10}, 1.0),
        (55, 100, {"warmup_steps": 10}, 0.505),
        (100, 100, {"warmup_steps": 10}, 0.01),
        (1, 4, {"warmup_steps": 50}, 1.0),  # a training shorter than its warm-up still reaches the rate
        (49, 100, {"warmup_steps": 0, "schedule": "steps"}, 1.0),
        (50, 100, {"warmup_steps": 0, "schedule": "steps"}, 0.1),
        (75, 100, {"warmup_steps": 0, "schedule": "steps"}, 0.01),
    ],
)
def test_schedule(step, total, changes, expected):
    assert learning_rate_factor(step, total, RECIPE.replace(**changes)) == pytest.approx(expected)


def test_groups_hold_each_parameter_once_and_decay_only_convolutions():
    model = build_model(TINY)
    recipe = RECIPES["original"].replace(model=TINY)
    decayed, plain, biases = parameter_groups(model, recipe)
    grouped = [p for group in (decayed, plain, biases) for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(model.parameters()))
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(p.ndim == 4 and p.shape[0] > 1 for p in decayed["params"]) and decayed["weight_decay"] == 5e-4
    assert any("norm4_3" in names[id(p)] for p in plain["params"]) and plain["weight_decay"] == 0
    assert all(names[id(p)].endswith("bias") for p in biases["params"])
    assert (biases["lr"], biases["weight_decay"]) == (2e-3, 0)


def test_average_follows_fast_at_first_and_takes_batchnorm_along():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.zeros_(model[0].weight)
    average = average_weights(model, decay=0.2)
    assert not average.training and not any(p.requires_grad for p in average.parameters())
    expected = 0.0
    for step, decay in enumerate((0.1, 2 / 11, 0.2, 0.2), start=1):
        nn.init.constant_(model[0].weight, float(step))
        model[1].running_mean.fill_(float(step))
        model[1].num_batches_tracked.fill_(step)
        average.update_parameters(model)
        expected = decay * expected + (1 - decay) * step
        assert average.module[0].weight.item() == pytest.approx(expected)
        assert average.module[1].running_mean.item() == pytest.approx(expected)
        assert average.module[1].num_batches_tracked.item() == step


def record(epoch, map_50=None):
    return EpochRecord(epoch, 3.0, 1.0, 2.0, 1e-3, 13.06, 60.0, map_50)


@pytest.mark.parametrize(
    "scored, best",
    [([], None), ([None], None), ([0.5], 1), ([None, 0.1, None, 0.1], 2), ([0.2, 0.3, 0.1], 2)],
)
def test_history(scored, best):
    history = History([record(k, score) for k, score in enumerate(scored, start=1)])
    assert history.best_epoch == best
    assert History.from_dict(json.loads(json.dumps(history.to_dict()))) == history


def loss_of(value):
    return MultiBoxLoss(torch.tensor(value), torch.tensor(1.0), torch.tensor(2.0), torch.tensor(5))


def norms_of(value):
    return {"gradient norm": torch.tensor(value), "backbone": torch.tensor(value)}


@pytest.mark.parametrize("every", [1, 2, 20])
def test_watch_adds_up_and_names_the_step_that_went_wrong(every):
    watch = LossWatch(every, [1.0, 0.0, 0.0])
    watch.read()
    for step in range(5):
        watch.add(step, loss_of(3.0), norms_of(1.0))
    watch.read()
    assert watch.sums == [16.0, 5.0, 10.0] and watch.latest == 3.0
    with pytest.raises(NonFiniteLoss, match=r"step 6: loss nan.*gradient norm 1, backbone 1") as caught:
        for step, value in enumerate((3.0, math.nan, 3.0), start=5):
            watch.add(step, loss_of(value), norms_of(1.0))
        watch.read()
    assert caught.value.step == 6 and caught.value.values["confidence"] == 2.0
    with pytest.raises(NonFiniteLoss, match="gradient norm inf"):
        LossWatch(1, [0.0] * 3).add(0, loss_of(1.0), norms_of(math.inf))


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_tells_the_norm_of_each_part_before(max_norm):
    torch.manual_seed(0)
    model = nn.ModuleDict({"one": nn.Linear(3, 2), "frozen": nn.Linear(2, 2), "two": nn.Linear(2, 1)})
    model["frozen"].requires_grad_(False)
    model["two"](model["frozen"](model["one"](torch.randn(4, 3)))).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    total = nn.utils.get_total_norm(expected)
    norms = clip_gradients(model, max_norm)
    assert list(norms) == ["gradient norm", "one", "two"] and torch.equal(norms["gradient norm"], total)
    assert norms["one"] == nn.utils.get_total_norm(expected[:2])
    scale = min(1.0, max_norm / (total.item() + 1e-6))
    clipped = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(clipped, [gradient * scale for gradient in expected])


SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if os.name == "posix" else [])]


@pytest.fixture
def terminal(monkeypatch):
    """A SIGHUP leaves the terminal, if the tests have one, alone."""
    monkeypatch.setattr("ssdlib.common.signals._leave_terminal", lambda: None)


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_asks_second_one_acts(number, terminal):
    name = "Ctrl-C" if number == signal.SIGINT else number.name

    def handlers():
        return [signal.getsignal(one) for one in SIGNALS]

    before = handlers()
    with StopSignals() as stop:
        assert stop.requested == "" and handlers() != before
        signal.raise_signal(number)
        assert stop.requested == name and handlers() == before
    assert handlers() == before


@pytest.mark.skipif(os.name == "nt", reason="it has the signal itself")
def test_ctrl_break_of_windows_asks_for_a_stop_too(monkeypatch):
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGUSR1)
        assert stop.requested == "SIGUSR1"
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_counts_only_after_a_while(number, terminal):
    former = signal.signal(number, signal.default_int_handler)
    try:
        with StopSignals(patience=0.1) as stop:
            for _ in range(3):
                signal.raise_signal(number)
            assert stop.requested
            time.sleep(0.11)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt, match="stopped by "), StopSignals(interrupt=True):
            signal.raise_signal(number)
    finally:
        signal.signal(number, former)


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_under_nohup_a_closed_terminal_stops_nothing():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals(interrupt=True) as stop:
            signal.raise_signal(signal.SIGHUP)
        assert not stop.requested and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


# --- a whole training ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        evaluate = Mock(return_value=(FakeMetrics(map_50=0.5), []))
        patch.setattr(ssdlib.training.trainer, "evaluate_model", evaluate)
        make_trainer(data, run_dir).fit()
    return run_dir


def test_the_best_epoch_is_the_best_on_the_mean_over_the_sources(data, scores, tmp_path, monkeypatch):
    scores += [0.9, 0.5, 0.1]  # all images together
    of_each = [{"a": 0.2, "b": 0.4}, {"a": 0.3, "b": 0.7}, {"a": 0.4, "b": None}]
    monkeypatch.setattr(ssdlib.training.trainer, "map_by_source", lambda found, dataset: of_each.pop(0))
    history = make_trainer(data, tmp_path).fit()
    assert [r.map_50 for r in history.epochs] == [0.9, 0.5, 0.1]
    assert [r.score for r in history.epochs] == pytest.approx([0.3, 0.5, 0.4])
    assert history.best_epoch == read_metadata(tmp_path / "checkpoints/best.safetensors")["epoch"] == 2
    assert history.best.map_50_by_source == {"a": 0.3, "b": 0.7}
    assert "val mAP@0.5 0.100 (a 0.400, b n/a)" in history.epochs[2].line(3)
    assert History.from_dict(json.loads((tmp_path / "history.json").read_text())) == history


def test_run_folder_of_a_training(data, scores, tmp_path):
    scores += [0.1, 0.3, 0.2]
    seen = []
    history = make_trainer(data, tmp_path, snapshot_every=2).fit(on_epoch=seen.append)
    assert history.epochs == seen and [r.map_50 for r in seen] == [0.1, 0.3, 0.2]
    assert history.best_epoch == 2 and seen[2].loss < seen[0].loss
    assert seen[2].loss == pytest.approx(seen[2].localization + seen[2].confidence)
    assert History.from_dict(json.loads((tmp_path / "history.json").read_text())) == history

    folder = tmp_path / "checkpoints"
    assert {p.name for p in folder.iterdir()} == {
        "best.safetensors", "epoch-002.safetensors", "last.pt", "previous.pt"
    }  # fmt: skip
    metadata = read_metadata(folder / "best.safetensors")
    assert metadata["epoch"] == 2 and metadata["metrics"] == {"map_50": 0.3}
    assert (
        metadata["class_names"] == ["WBC", "RBC", "Platelets"]
        and metadata["data"]["fingerprint"] == "ffffffff"
    )
    assert Recipe.from_dict(metadata["recipe"]) == RECIPE
    best, last = load_model(folder / "best.safetensors"), checkpoints.read_state(folder / "last.pt")
    previous = checkpoints.read_state(folder / "previous.pt")
    assert previous["epoch"] == 2 and last["epoch"] == 3
    for name, tensor in best.state_dict().items():
        averaged = previous["average"][f"module.{name}"]
        assert torch.equal(tensor, averaged), "the best weights are the averaged ones of epoch 2"
    assert not torch.equal(last["average"]["module.norm4_3.scale"], last["model"]["norm4_3.scale"])
    assert [p.stat().st_size > 0 for p in (tmp_path / "events").iterdir()] == [True]


@pytest.mark.parametrize("step, number", [(1, signal.SIGINT), (2, signal.SIGTERM), (5, SIGNALS[-1])])
def test_interrupted_and_resumed_ends_in_the_same_bits(
    data, scores, uninterrupted, tmp_path, monkeypatch, terminal, step, number
):
    with monkeypatch.context() as patch:
        at_step(patch, step, stop_by(number))
        with pytest.raises(TrainingInterrupted, match=r"before epoch \d, step \d of 2.*resume"):
            make_trainer(data, tmp_path).fit()
    assert checkpoints.read_state(tmp_path / "checkpoints" / "last.pt")["step"] == step
    # Another start, so that nothing but the saved state can lead to the same end.
    make_trainer(data, tmp_path, model_seed=99).fit(resume=True)
    assert checkpoints.digest(final_state(tmp_path)) == checkpoints.digest(final_state(uninterrupted))
    assert losses(tmp_path) == losses(uninterrupted)


def test_ignoring_confident_background_sets_in_at_its_step_and_survives_a_stop(
    data, scores, uninterrupted, tmp_path, monkeypatch
):
    """Of 6 steps the first 3 are as ever; stopped after the change and resumed, the end is the same."""
    recipe = RECIPE.replace(background="ignore_confident", ignore_after=0.5)
    original, used = ssdlib.training.validation.multibox_loss, []

    def multibox_loss(*arguments, **options):
        used.append(options["background"])
        return original(*arguments, **options)

    monkeypatch.setattr(ssdlib.training.validation, "multibox_loss", multibox_loss)
    make_trainer(data, tmp_path / "whole", recipe).fit()
    assert used == ["hard"] * 3 + ["ignore_confident"] * 3
    end = checkpoints.digest(final_state(tmp_path / "whole"))
    assert end != checkpoints.digest(final_state(uninterrupted))
    used.clear()
    with monkeypatch.context() as patch:
        at_step(patch, 4, stop_by(signal.SIGTERM))
        with pytest.raises(TrainingInterrupted):
            make_trainer(data, tmp_path / "stopped", recipe).fit()
    make_trainer(data, tmp_path / "stopped", recipe, model_seed=99).fit(resume=True)
    assert used == ["hard"] * 3 + ["ignore_confident"] * 3
    assert checkpoints.digest(final_state(tmp_path / "stopped")) == end


def test_a_state_from_before_a_setting_was_there_can_be_resumed(data, scores, uninterrupted, tmp_path):
    state = checkpoints.read_state(uninterrupted / "checkpoints" / "previous.pt")
    del state["identity"]["recipe"]["background"]
    for epoch in state["history"]["epochs"]:
        del epoch["val_loss"]
    checkpoints.save_state(tmp_path / "checkpoints", state)
    make_trainer(data, tmp_path, model_seed=99).fit(resume=True)
    assert checkpoints.digest(final_state(tmp_path)) == checkpoints.digest(final_state(uninterrupted))
    checkpoints.save_state(tmp_path / "checkpoints", state)
    with pytest.raises(CheckpointError, match="background was 'hard', is 'ignore_confident'"):
        make_trainer(data, tmp_path, RECIPE.replace(background="ignore_confident")).fit(resume=True)


def test_killed_in_the_evaluation_with_the_last_state_damaged(
    data, scores, uninterrupted, tmp_path, monkeypatch, capfd
):
    """The worst of both: nothing of epoch 3 was saved, and what epoch 2 saved cannot be read."""
    results = iter([0.5, 0.5])

    def evaluate(*_, **__):
        return FakeMetrics(map_50=next(results, None) or kill()), []

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(ssdlib.training.trainer, "evaluate_model", evaluate)
        make_trainer(data, tmp_path).fit()
    last = tmp_path / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    make_trainer(data, tmp_path, model_seed=99).fit(resume=True)
    assert "last.pt is damaged" in capfd.readouterr().err
    assert checkpoints.digest(final_state(tmp_path)) == checkpoints.digest(final_state(uninterrupted))
    assert losses(tmp_path) == losses(uninterrupted)


def test_two_trainings_of_the_same_write_the_same_bytes_but_for_the_times(data, tmp_path, monkeypatch):
    """The clock ticks alike in both, so that files which hold times can be compared as they are."""
    for run in ("one", "two"):
        ticks = itertools.count()
        clock = SimpleNamespace(perf_counter=lambda ticks=ticks: next(ticks) / 4)
        monkeypatch.setattr(ssdlib.training.trainer, "time", clock)
        make_trainer(data, tmp_path / run, RECIPE.replace(epochs=2), snapshot_every=1).fit()
    names = ("best.safetensors", "epoch-001.safetensors", "last.pt", "previous.pt", "../history.json")
    for name in names:
        one, two = ((tmp_path / run / "checkpoints" / name).read_bytes() for run in ("one", "two"))
        assert one == two, name


def test_the_loss_on_val_is_that_of_the_averaged_weights_without_augmentation(data, tmp_path):
    trainer = make_trainer(data, tmp_path, RECIPE.replace(evaluate_every=2), val=4)  # 0, 1, 2 and 3 cells
    first, second, third = trainer.fit().epochs
    assert first.val_loss is None and "val" not in first.line(3)
    assert second.val_loss is not None and f"val loss {third.val_loss:.3f}  val mAP" in third.line(3)

    network = trainer.average.module
    pixels = [v2.functional.resize(data[k][0], [300, 300], antialias=True) for k in range(4)]
    targets = [data.target(k) for k in range(4)]
    boxes = [target["boxes"] / torch.tensor([64, 48, 64, 48]) for target in targets]
    with torch.no_grad():
        locs, logits = network(torch.stack(pixels))
    matches = match(boxes, [target["labels"] for target in targets], network.priors)
    expected = multibox_loss(locs, logits, matches, network.priors).total
    assert third.val_loss == pytest.approx(expected.item(), rel=1e-3)

    events = EventAccumulator(str(tmp_path / "events")).Reload().Scalars("val/loss")
    assert [(event.step, event.value) for event in events] == [
        (record.epoch, pytest.approx(record.val_loss)) for record in (second, third)
    ]


def test_the_loss_on_val_does_not_depend_on_how_many_processes_share_the_images(data, monkeypatch):
    predictor = Predictor(build_model(TINY), device="cpu", precision="fp32", batch_size=1)
    views = data.with_transform(eval_transform(300))
    alone, shares = loss_on(predictor, views, RECIPE), []

    def gather(own):
        shares.append(own)
        return shares

    monkeypatch.setattr(validation, "gather", gather)
    for rank in (0, 1, 2):
        monkeypatch.setattr(validation, "rank_and_count", lambda rank=rank: (rank, 3))
        together = loss_on(predictor, views, RECIPE)
    assert [len(share) for share in shares] == [2, 2, 1] and together == alone


def test_no_object_in_val_no_loss_on_it(data):
    predictor = Predictor(build_model(TINY), device="cpu", precision="fp32")
    assert loss_on(predictor, data.subset(1).with_transform(eval_transform(300)), RECIPE) is None


def test_looking_at_val_changes_no_bit_of_a_training(data, tmp_path):
    recipe = RECIPE.replace(epochs=2)
    for val in (2, 0):
        make_trainer(data, tmp_path / str(val), recipe, val=val).fit()
    one, other = (checkpoints.digest(final_state(tmp_path / str(val))) for val in (2, 0))
    assert one == other


def test_workers_change_nothing(data, tmp_path):
    recipe = RECIPE.replace(epochs=1)
    first, second = tmp_path / "0", tmp_path / "2"
    make_trainer(data, first, recipe, val=0).fit()
    make_trainer(data, second, recipe, val=0, workers=2).fit()
    assert checkpoints.digest(final_state(first)) == checkpoints.digest(final_state(second))


def test_resuming_a_finished_run_trains_no_more(data, uninterrupted, monkeypatch):
    at_step(monkeypatch, 1, lambda: pytest.fail("trained"))
    history = make_trainer(data, uninterrupted).fit(resume=True)
    assert [r.epoch for r in history.epochs] == [1, 2, 3]


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"recipe": RECIPE.replace(learning_rate=0.5)}, r"recipe\.learning_rate was 0\.003, is 0\.5"),
        ({"data_description": {"fingerprint": "other"}}, "data fingerprint was 'ffffffff', is 'other'"),
        ({"seed": 7}, "seed was 0, is 7"),
        ({"recipe": RECIPE.replace(model=TINY.replace(batch_norm=False))}, "model.batch_norm was True"),
    ],
    ids=["recipe", "data", "seed", "model"],
)
def test_another_runs_state_is_refused(data, uninterrupted, changes, expected):
    before = checkpoints.digest(final_state(uninterrupted))
    with pytest.raises(CheckpointError, match=expected):
        make_trainer(data, uninterrupted, **changes).fit(resume=True)
    assert checkpoints.digest(final_state(uninterrupted)) == before


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("epoch", "1"),
        ("epoch", 7),
        ("step", -1),
        ("sums", [1.0]),
        ("seconds", math.nan),
        ("history", []),
        ("model", {}),
        ("average", None),
        ("optimizer", {}),
        ("optimizer", {"state": {0: {}}, "param_groups": []}),
        ("scheduler", {"base_lrs": ["fast"]}),
        ("identity", {"recipe": 3}),
        ("identity", {}),
    ],
)
def test_a_state_of_other_kinds_of_values_is_refused(data, uninterrupted, tmp_path, part, value):
    state = {**checkpoints.read_state(uninterrupted / "checkpoints/last.pt"), part: value}
    checkpoints.save_state(tmp_path / "checkpoints", state)
    with pytest.raises(SsdError):
        make_trainer(data, tmp_path).fit(resume=True)


def test_other_classes_and_no_images_are_refused(data, tmp_path):
    model = TINY.replace(class_names=("cell",))
    with pytest.raises(DataError, match="classes WBC, RBC, Platelets, but the network has cell"):
        make_trainer(data, tmp_path, RECIPE.replace(model=model))
    with pytest.raises(DataError, match="no images"):
        make_trainer(DetectionDataset([], TINY.class_names), tmp_path, val=0)
    bare = [
        dataclasses.replace(sample, boxes=np.empty((0, 4), np.float32), labels=np.empty(0, np.int64))
        for sample in data.samples
    ]
    with pytest.raises(DataError, match=r"none of the .* training images has an object"):
        make_trainer(DetectionDataset(bare, TINY.class_names), tmp_path, val=0)


def test_of_many_views_no_more_are_used_than_asked_for_and_both_are_said(data, tmp_path, capsys):
    corners = np.stack(np.meshgrid(np.arange(20, 600, 40), np.arange(20, 440, 40)), -1).reshape(-1, 2)
    boxes = np.concatenate([corners, corners + 4], axis=1).astype(np.float32)
    field = dataclasses.replace(
        data.samples[0], width=640, height=480, boxes=boxes, labels=np.full(len(boxes), 2)
    )
    cells = DetectionDataset([field] * 3, TINY.class_names)
    recipe = RECIPE.replace(model=TINY.replace(use=use_for(cells, TINY.use)))
    every = make_trainer(cells, tmp_path / "all", recipe, progress=True).train_data
    some = make_trainer(cells, tmp_path / "some", recipe, progress=True, most_views=len(cells)).train_data
    assert len(every) > 10 * len(cells) and len(some) == len(cells)
    assert f"cut into {len(every)} views" in (said := capsys.readouterr().err)
    assert f"of which {len(some)} are used" in said


def test_not_a_number_stops_with_a_full_account(data, scores, tmp_path, monkeypatch):
    read = []
    get, original = DetectionDataset.__getitem__, ssdlib.training.validation.multibox_loss

    def noted(self, index):
        read.append(self.samples[index].image_id)
        return get(self, index)

    def multibox_loss(*arguments, **options):
        loss = original(*arguments, **options)
        broken = math.nan if len(read) == 2 * (BATCHES + 2) else 1  # the second step of the second epoch
        return MultiBoxLoss(loss.total * broken, loss.localization, loss.confidence, loss.positives)

    monkeypatch.setattr(DetectionDataset, "__getitem__", noted)
    monkeypatch.setattr(ssdlib.training.validation, "multibox_loss", multibox_loss)
    with pytest.raises(
        TrainingError,
        match=r"epoch 2, step 2 of 2 \(learning rate .*\): loss nan, localization \d.*, gradient norm nan, "
        r"backbone nan, .*; images of the batch: field-\d, field-\d\. .*nonfinite\.json",
    ):
        make_trainer(data, tmp_path).fit()
    account = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (account["epoch"], account["step"], account["loss"]) == (2, 2, "nan") and account["confidence"] > 0
    assert {"backbone", "norm4_3", "extras", "loc_heads", "class_heads"} <= account.keys()
    assert account["images"] == read[-2:]
    state = checkpoints.read_state(tmp_path / "checkpoints" / "last.pt")
    assert state["epoch"] == 1 and all(t.isfinite().all() for t in state["model"].values())
    assert load_model(tmp_path / "checkpoints" / "best.safetensors")


def test_full_disk_says_so_and_leaves_the_last_epoch(data, scores, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    at_step(monkeypatch, BATCHES + 1, lambda: monkeypatch.setattr("ssdlib.common.files.os.fsync", full))
    with pytest.raises(SsdError, match="No space left on device"):
        make_trainer(data, tmp_path).fit()
    assert checkpoints.load_state(tmp_path / "checkpoints")[0]["epoch"] == 1
    assert read_metadata(tmp_path / "checkpoints" / "best.safetensors")["epoch"] == 1


@pytest.mark.parametrize(
    ("step", "how"), [(1, ""), (BATCHES + 1, ""), (BATCHES + 1, "stop"), (None, "TensorBoard")]
)
def test_a_run_folder_that_is_moved_away_is_said_and_can_be_gone_on_with(
    data, scores, uninterrupted, tmp_path, monkeypatch, terminal, step, how
):
    run, moved = tmp_path / "run", tmp_path / "moved"

    def move() -> None:
        run.rename(moved)
        if how == "stop":
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        if how == "TensorBoard":  # moved just after it was seen to be there
            write = Trainer._write_events
            patch.setattr(Trainer, "_write_events", lambda *given: (move(), write(*given)))
        else:
            at_step(patch, step, move)
        with pytest.raises(TrainingError, match=r"run is not there any more.*--resume --run"):
            make_trainer(data, run).fit()
    assert not run.exists()
    make_trainer(data, moved).fit(resume=True)
    assert checkpoints.digest(final_state(moved)) == checkpoints.digest(final_state(uninterrupted))


@pytest.mark.parametrize(
    "module, error, shown",
    [("tensorboard.x", OSError, 0), ("tensorboard.x", ValueError, 1), ("x", OSError, 1)],
)
def test_a_full_disk_is_not_said_by_tensorboards_thread_as_well(monkeypatch, module, error, shown):
    said = []
    monkeypatch.setattr(threading, "excepthook", said.append)
    ssdlib.training.trainer._say_full_disks_once.__wrapped__()
    thread = type("Writer", (threading.Thread,), {"__module__": module})()
    threading.excepthook(SimpleNamespace(exc_type=error, thread=thread))
    assert len(said) == shown


def test_without_val_and_average_the_last_weights_are_kept(data, tmp_path, capfd):
    """The paper's optimizer as well, and a resume that finds nothing."""
    recipe = RECIPES["original"].replace(
        model=TINY.replace(batch_norm=False), epochs=1, batch_size=4, augment=NO_AUGMENTATION
    )
    trainer = make_trainer(data, tmp_path, recipe, val=0)
    history = trainer.fit(resume=True)
    assert "nothing to resume" in capfd.readouterr().err
    assert history.best_epoch is None and math.isfinite(history.epochs[0].loss)
    assert trainer.weights is trainer.network
    saved = load_model(tmp_path / "checkpoints" / "best.safetensors").state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in trainer.network.state_dict().items())


def test_bf16_with_the_real_evaluation(data, tmp_path, capsys):
    trainer = make_trainer(data, tmp_path, RECIPE.replace(epochs=1), precision="bf16", progress=True)
    history = trainer.fit()
    assert 0 <= history.epochs[0].map_50 <= 1 and math.isfinite(history.epochs[0].loss)
    assert all(p.dtype == torch.float32 for p in trainer.network.parameters())
    images = torch.zeros(1, 3, 300, 300, dtype=torch.uint8)
    assert trainer.network.eval()(images)[0].dtype == torch.float32, "the caller's network is left as it was"
    assert capsys.readouterr().out.startswith("epoch 1/1  loss ")


def test_shares_of_two_processes_make_the_whole_loss():
    """Its value on each is that of the whole batch; the mean of the gradients is the whole's gradient."""
    positives, sums = (3, 0), [(4.0, 8.0), (0.0, 40.0)]
    reduced = torch.tensor([*torch.tensor(sums).sum(0).tolist(), sum(positives)])
    two = SimpleNamespace(num_processes=2, reduce=lambda tensor, how: reduced)
    gradients = []
    for (localization, confidence), count in zip(sums, positives, strict=True):
        factor = torch.ones((), requires_grad=True)
        parts = [factor * part / max(count, 1) for part in (localization, confidence)]
        loss = whole_batch_loss(MultiBoxLoss(sum(parts), *parts, torch.tensor(count)), two)
        loss.total.backward()
        gradients.append(factor.grad.item())
        values = [v.item() for v in (loss.total, loss.localization, loss.confidence, loss.positives)]
        assert values == pytest.approx([52 / 3, 4 / 3, 16, 3])
    assert sum(gradients) / 2 == pytest.approx(52 / 3)


def test_a_long_epoch_saves_in_between(data, scores, uninterrupted, tmp_path, monkeypatch):
    """Killed without warning in the second step, it goes on from the first."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(ssdlib.training.trainer, "SAVE_SECONDS", 0)
        at_step(patch, 2, kill)
        make_trainer(data, tmp_path).fit()
    assert checkpoints.read_state(tmp_path / "checkpoints" / "last.pt")["step"] == 1
    make_trainer(data, tmp_path, model_seed=99).fit(resume=True)
    assert checkpoints.digest(final_state(tmp_path)) == checkpoints.digest(final_state(uninterrupted))
    assert losses(tmp_path) == losses(uninterrupted)
