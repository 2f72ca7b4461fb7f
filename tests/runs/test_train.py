"""`train`, begun, stopped, gone on with and begun anew: what it overwrites, refuses and needs."""

import hashlib
import json
import shlex
import shutil
import signal

import pytest
import torch

from ssdlib.__main__ import main
from ssdlib.common.errors import DataError
from ssdlib.config import NAMED_WEIGHTS, ModelConfig
from ssdlib.data.smears import write_dataset
from ssdlib.detector.model_file import SHIPPED_NAMES, load_model, save_model
from ssdlib.detector.weights import build_model
from ssdlib.training import checkpoints
from ssdlib.training.trainer import Trainer

SETTINGS = (
    "model.width=0.05", "model.batch_norm=false", "model.use.reference=", "batch_size=2", "epochs=2",
    "evaluate_every=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny", train=4, val=1, test=1, progress=False)


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    """Weights whose normalization is not the default's, which a network gets from its weights alone."""
    config = ModelConfig(width=0.05, mean=(0.4, 0.5, 0.6))
    path = tmp_path_factory.mktemp("weights") / "initial.safetensors"
    save_model(build_model(config, seed=3), path, class_names=list(config.class_names))
    return path


@pytest.fixture
def train(data, capsys):
    """train("RUN", "more words", code=0): the command; returns what it said."""

    def run(folder, more="", code=0, settings=SETTINGS):
        words = ["train", "--profile", "smoke", "--device", "cpu", "--data", str(data), "--run", str(folder)]
        words += [word for setting in settings for word in ("--set", f"recipe.{setting}")]
        capsys.readouterr()
        assert main([*words, *shlex.split(more)]) == code
        return "".join(capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = [word for setting in SETTINGS for word in ("--set", f"recipe.{setting}")]
    start = ["--set", "recipe.initial_weights=scratch"]
    command = ["train", "--profile", "smoke", "--device", "cpu", "--data", str(data), "--run", str(folder)]
    assert main([*command, *words, *start]) == 0
    return folder


SCRATCH = "--set recipe.initial_weights=scratch"


def contents(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).digest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def outcome(folder):
    state = checkpoints.read_state(folder / "checkpoints/last.pt")
    best = load_model(folder / "checkpoints/best.safetensors")
    return state["epoch"], checkpoints.digest([state["model"], state["optimizer"]]), best.config


@pytest.mark.parametrize("more", ["", " --force --set recipe.epochs=3"])
def test_a_training_is_not_overwritten_unasked(train, trained, more):
    before = contents(trained)
    said = train(trained, SCRATCH + more, code=1)
    assert all(way in said for way in ("--resume", "--restart", "--run NAME")) and "Traceback" not in said
    assert contents(trained) == before


def test_weights_alone_are_not_overwritten_either(train, trained, tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    shutil.copy(trained / "checkpoints/best.safetensors", tmp_path / "run/checkpoints")
    assert "--restart" in train(tmp_path / "run", SCRATCH, code=1)
    assert contents(tmp_path / "run").keys() == {checkpoints.Path("checkpoints/best.safetensors")}


def test_restart_begins_anew_with_the_new_settings(train, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    train(run, f"{SCRATCH} --restart --set recipe.epochs=1")
    assert checkpoints.read_state(run / "checkpoints/last.pt")["epoch"] == 1
    assert json.loads((run / "config.json").read_text())["profile"]["recipe"]["epochs"] == 1
    assert "give one of them" in train(run, f"{SCRATCH} --restart --resume", code=1)


def test_a_finished_training_says_so_and_how_to_train_more(train, trained, tmp_path):
    before = contents(trained)
    said = train(trained, f"{SCRATCH} --resume")
    assert "is finished, 2 epochs" in said and "resuming" not in said and "best epoch" in said
    assert contents(trained) == before
    assert "(train --init RUN --run NEW --set recipe.epochs=N)" in said
    train(tmp_path / "more", f"--init {trained} --set recipe.epochs=1", settings=SETTINGS[3:])
    assert outcome(tmp_path / "more")[0] == 1


@pytest.mark.parametrize("force", ["", " --force"])
def test_more_epochs_are_refused_with_advice_that_holds(train, trained, force):
    before = contents(trained)
    said = train(trained, f"{SCRATCH} --resume --set recipe.epochs=3{force}", code=1)
    assert "recipe.epochs was 2, is 3" in said and "cannot be made longer" in said
    assert "--init RUN --run NEW" in said and "--force" not in said
    assert contents(trained) == before


def test_what_does_not_concern_the_training_may_change(train, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    assert "--force" in train(run, f"{SCRATCH} --resume --set test_images=1", code=1)
    assert "is finished" in train(run, f"{SCRATCH} --resume --set test_images=1 --force")
    assert json.loads((run / "config.json").read_text())["profile"]["test_images"] == 1


@pytest.fixture(scope="module")
def stopped(data, initial, tmp_path_factory):
    """Two runs from the weights `initial`: whole, and stopped after the first of two epochs."""
    folder, print_line = tmp_path_factory.mktemp("stopped"), Trainer._print_line

    def then_ctrl_c(self, record):
        print_line(self, record)
        signal.raise_signal(signal.SIGINT)

    words = ["train", "--profile", "smoke", "--device", "cpu", "--data", str(data), "--init", str(initial)]
    words += [word for setting in SETTINGS[3:] for word in ("--set", f"recipe.{setting}")]
    assert main([*words, "--run", str(folder / "whole")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_print_line", then_ctrl_c)
        assert main([*words, "--run", str(folder / "run")]) == 130
    return folder


def as_formerly(run):
    """A state and a configuration as they were before either told the weights' SHA-256."""
    config = json.loads((run / "config.json").read_text())
    del config["initial_weights_sha256"]
    (run / "config.json").write_text(json.dumps(config))
    state = checkpoints.read_state(run / "checkpoints/last.pt")
    del state["config"], state["identity"][checkpoints.WEIGHTS_SUM]
    path = config["overrides"]["recipe.initial_weights"]
    state["identity"]["recipe"]["initial_weights"] = path
    checkpoints.save_state(run / "checkpoints", state)


@pytest.mark.parametrize("former", [False, True], ids=["now", "formerly"])
@pytest.mark.parametrize("file", ["there", "gone", "moved"])
def test_a_training_goes_on_wherever_its_initial_weights_are(
    train, stopped, initial, tmp_path, monkeypatch, file, former
):
    run, kept = shutil.copytree(stopped / "run", tmp_path / "run"), initial.read_bytes()
    if former:
        as_formerly(run)
    given = initial
    try:
        if file != "there":
            initial.unlink()
        if file == "moved":
            given = tmp_path / "other name.safetensors"
            given.write_bytes(kept)
        if file == "moved" and former:  # the sum is not known
            assert "initial_weights was" in train(run, f"--init '{given}' --resume", 1, SETTINGS[3:])
            return
        assert "resuming before epoch 2" in train(run, f"--init '{given}' --resume", settings=SETTINGS[3:])
    finally:
        initial.write_bytes(kept)
    assert outcome(run) == outcome(stopped / "whole")
    assert outcome(run)[2].mean == (0.4, 0.5, 0.6)


def test_a_training_goes_on_without_init(train, stopped, initial, tmp_path, data):
    """All that was set stands in its folder; its weights' file has become another's since."""
    run, kept = shutil.copytree(stopped / "run", tmp_path / "run"), initial.read_bytes()
    try:
        initial.write_bytes(b"another")
        assert "resuming before epoch 2" in train(run, "--resume", settings=())
    finally:
        initial.write_bytes(kept)
    assert outcome(run) == outcome(stopped / "whole")


def test_other_initial_weights_are_refused_even_of_the_same_name(train, stopped, initial, tmp_path):
    run = shutil.copytree(stopped / "run", tmp_path / "run")
    other = tmp_path / initial.name
    model = load_model(initial)
    with torch.no_grad():
        model.norm4_3.scale.add_(1)
    save_model(model, other, class_names=list(model.config.class_names))
    before = contents(run)
    for force in ("", " --force"):
        said = train(run, f"--init {other} --resume{force}", 1, SETTINGS[3:])
        assert "initial weights SHA-256 was" in said
    assert "no weights at" in train(run, f"--init {tmp_path / 'typo.safetensors'} --resume", 1, SETTINGS[3:])
    assert contents(run) == before


def test_nothing_saved_yet_needs_the_initial_weights(train, stopped, initial, tmp_path):
    run, kept = tmp_path / "run", initial.read_bytes()
    run.mkdir()
    shutil.copy(stopped / "run/config.json", run)
    try:
        initial.unlink()
        assert "no weights at" in train(run, "--resume", 1, settings=())
    finally:
        initial.write_bytes(kept)


def test_a_second_training_of_a_run_is_refused_before_it_changes_anything(train, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    with checkpoints.alone(run):
        before = contents(run)
        said = train(run, f"{SCRATCH} --restart --set recipe.epochs=1", code=1)
        assert f"{run} is being trained by process" in said and "--run NAME" in said
        assert contents(run) == before


@pytest.mark.parametrize(("more", "workers"), [("", "auto"), (" --workers 0", 0), (" --workers 2", 2)])
def test_workers_are_as_many_as_asked_for(train, tmp_path, monkeypatch, more, workers):
    def stop(*_, **options):
        raise DataError(f"asked for {options['workers']!r}")

    monkeypatch.setattr("ssdlib.training.trainer.make_loader", stop)
    assert f"asked for {workers!r}" in train(tmp_path / "run", SCRATCH + more, code=1)


def test_weights_with_a_name_are_no_files():
    assert set(NAMED_WEIGHTS) == {"scratch", "imagenet", "coco", *SHIPPED_NAMES}
