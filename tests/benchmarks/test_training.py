"""Time to accuracy: the schedule, the trainings, and the file of results."""

import json
import math
from itertools import pairwise

import pytest
import torch

from ssdlib.common.errors import SsdError, TrainingError
from ssdlib.data.smears import write_dataset
from ssdlib.data.source import open_folder
from tests.benchmarks import baselines, training
from tests.benchmarks.baselines import Benchmark, Ours, Schedule, TorchvisionRecipe
from tests.benchmarks.invocation import TINY, invoke


@pytest.fixture
def benchmark(smears_source, tmp_path):
    # 6 images in batches of 2, three times; evaluated after epochs 2 and 3.
    return Benchmark(smears_source, 18, 2, 0, "cpu", tmp_path / "out" / training.RESULTS, progress=False)


@pytest.mark.parametrize(
    ("images", "evaluations", "train", "batch", "epoch_images", "evaluated"),
    [
        (1, 1, 1, 8, 1, (1,)),
        (2000, 8, 205, 8, 200, (1, 2, 4, 5, 6, 8, 9, 10)),
        (2000, 2, 205, 4, 204, (5, 10)),
        (30, 2, 6, 8, 6, (2, 5)),
        (12, 4, 6, 2, 6, (1, 2)),  # at most one an epoch
    ],
)
def test_a_schedule_is_whole_epochs(images, evaluations, train, batch, epoch_images, evaluated):
    schedule = Schedule.stretch(images, evaluations, train, batch)
    assert (schedule.epoch_images, schedule.evaluated) == (epoch_images, evaluated)
    assert schedule.epochs == evaluated[-1]


def test_the_reference_rate_for_our_batch():
    recipe = TorchvisionRecipe()
    schedule = Schedule.stretch(24_000, 1, 205, 8)  # 120 epochs, as there
    steps = (0, 24, 80 * 25 - 1, 80 * 25, 110 * 25 - 1, 110 * 25)
    rates = [recipe.learning_rate * baselines.reference_rate(step, schedule, recipe) for step in steps]
    assert rates == pytest.approx([5e-7, 5e-4, 5e-4, 5e-5, 5e-5, 5e-6])


def test_evaluations_change_nothing(benchmark, tmp_path):
    """Ours evaluated after the first epoch has the weights of ours that was not."""
    weights = []
    for name in ("evaluated", "not evaluated"):
        ours = Ours(TINY, Schedule.stretch(12, 2, 6, 2), benchmark, tmp_path / name)
        ours.train_one_epoch()
        if name == "evaluated":
            list(ours.detector().stream([torch.zeros(40, 50, 3, dtype=torch.uint8).numpy()]))
        ours.train_one_epoch()
        assert (ours.trainer.epoch, ours.trainer.step) == (2, 6)
        weights.append(ours.trainer.weights.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


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
def fake(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "torchvision_model", Fake)
    return baselines.start(
        TorchvisionRecipe(batch_size=2), Schedule.stretch(12, 3, 6, 2), benchmark, tmp_path
    )


def test_torchvision_sees_every_image_once_an_epoch(fake):
    fake.train_one_epoch()
    assert len(fake.model.seen) == 6
    fake.train_one_epoch()
    assert len(fake.model.seen) == 12
    assert all(len(t["boxes"]) == len(t["labels"]) for t in fake.model.seen)
    found = list(fake.detector().stream([torch.zeros(40, 50, 3, dtype=torch.uint8).numpy()] * 9))
    assert [(one.image_size, one.names) for one in found] == [((50, 40), ["RBC"])] * 9


def test_torchvision_stops_at_a_loss_that_is_not_finite(fake):
    fake.model.factor = math.nan
    with pytest.raises(TrainingError, match="epoch 1"):
        fake.train_one_epoch()


@pytest.mark.slow
def test_torchvisions_own_network_learns_and_is_evaluated(tmp_path):
    """The real one, on one image: its loss, a step, its detections."""
    root = write_dataset(tmp_path / "one", train=1, val=1, test=1, progress=False)
    benchmark = Benchmark(open_folder(root), 1, 1, 0, "cpu", tmp_path / training.RESULTS, progress=False)
    row = training.train("torchvision", TorchvisionRecipe(), benchmark)
    assert [point["images"] for point in row["points"]] == [1] and row["points"][0]["map_50"] is not None


@pytest.mark.slow
def test_trainings_in_processes_of_their_own(benchmark, capfd):
    (row,) = training.train_all(benchmark, {"tiny": TINY})["rows"]
    points = row["points"]
    assert [point["images"] for point in points] == [12, 18]
    assert all(a["seconds"] < b["seconds"] for a, b in pairwise(points))
    assert set(points[0]["ap_50"]) == set(benchmark.source.class_names)
    assert "18/18 images" in capfd.readouterr().out
    assert training.train_all(benchmark, {"tiny": TINY})["rows"] == [row]
    assert "is done already" in capfd.readouterr().out


@pytest.mark.slow
def test_one_that_fails_leaves_what_was_measured(benchmark, capfd):
    """Here by weights that do not exist."""
    results = training.results_of(benchmark)
    results.put({"name": "tiny"}, ROW)
    with pytest.raises(SsdError, match=r"tiny did not finish \(exit code 1"):
        training.train_all(benchmark, {"tiny": TINY.replace(initial_weights="missing.safetensors")})
    assert "error: no weights at missing.safetensors" in capfd.readouterr().err
    assert json.loads(benchmark.path.read_text())["rows"] == results.rows


ROW = {"recipe": TINY.to_dict(), "evaluations": 2, "stopped": None, "points": [{}, {}]}


@pytest.mark.parametrize(
    ("row", "done"),
    [
        (None, False),
        ({**ROW, "points": [{}]}, False),
        (ROW, True),
        ({**ROW, "points": [], "stopped": "nan"}, True),
    ],
)
def test_which_trainings_are_done(row, done):
    assert training.is_done(row) is done


def test_a_training_that_stops_is_a_result(benchmark, monkeypatch):
    class Broken:
        def train_one_epoch(self):
            raise TrainingError("nan")

    monkeypatch.setattr(training, "start", lambda *_: Broken())
    assert training.train("tiny", TINY, benchmark)["stopped"] == "nan"
    assert json.loads(benchmark.path.read_text())["rows"][0]["points"] == []


@pytest.mark.parametrize(
    ("maps", "columns"),
    [
        ([], "n/a n/a n/a n/a n/a n/a n/a n/a"),
        ([None], "n/a n/a n/a n/a 1.0 0.17 n/a n/a"),
        ([0.4, 0.81, 0.95, 0.7], "2.0 2.0 3.0 3.0 4.0 0.17 0.700 0.950"),
    ],
)
def test_table(maps, columns):
    points = [{"images": 10 * k, "seconds": 60.0 * k, "map_50": value} for k, value in enumerate(maps, 1)]
    table = training.table({"rows": [{"name": "one", "points": points, "stopped": None}]})
    assert table.rows == [("one", *columns.split(), "")]


def test_the_command_names_an_unknown_recipe():
    assert invoke(training.main, "--only", "yolo").exit_code == 2
