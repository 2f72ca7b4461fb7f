"""Run folders: what they write, what they refuse, and how a notebook finds its own."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from ssdlib.common import paths
from ssdlib.common.errors import CheckpointError, ConfigError, SsdError, StageError
from ssdlib.common.files import write_json
from ssdlib.config import PROFILES, Profile
from ssdlib.data.smears import write_dataset
from ssdlib.detector.model_file import shipped_weights
from ssdlib.evaluation.tables import results_text
from ssdlib.runs import lookup
from ssdlib.runs.folder import RunFolder
from ssdlib.runs.lookup import new_run_name
from ssdlib.runs.overrides import apply_overrides, parse_override
from ssdlib.runs.report import write_report
from ssdlib.training.checkpoints import load_state


@pytest.fixture(scope="module")
def smears(tmp_path_factory):
    return str(
        write_dataset(tmp_path_factory.mktemp("data") / "tiny", train=4, val=2, test=2, progress=False)
    )


SMALL = {
    "recipe.initial_weights": "scratch", "recipe.model.width": 0.05, "recipe.epochs": 1,
    "recipe.batch_size": 2, "train_images": 2, "val_images": 1,
}  # fmt: skip
"""What makes a training take a second."""


def open_run(path, data, **options):
    return RunFolder.open(path, profile="smoke", data=data, progress=False, **options)


def with_parasites(smears, tmp_path) -> str:
    """A copy of the smears with a class that BCCD lacks."""
    other = Path(shutil.copytree(smears, tmp_path / "cells"))
    (other / "smears.json").unlink()
    for file in (other / "Annotations").glob("*.xml"):
        file.write_text(file.read_text().replace(">RBC<", ">Parasite<"))
    return str(other)


def test_a_new_run_records_settings_environment_and_data(tmp_path, smears):
    run = open_run(tmp_path / "a", smears)
    config = json.loads((tmp_path / "a/config.json").read_text())
    environment = json.loads((tmp_path / "a/environment.json").read_text())
    assert Profile.from_dict(config["profile"]) == run.profile
    assert config["data"]["fingerprint"] == environment["data_fingerprint"] == run.source.fingerprint
    assert environment["packages"]["torch"] and environment["device"]
    assert run.profile.recipe.model.class_names == run.source.class_names


def test_a_run_whose_making_was_cut_off_is_made_again(tmp_path, smears, monkeypatch):
    def stop(path, value):
        if path.name == "config.json":
            raise KeyboardInterrupt
        write_json(path, value)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ssdlib.common.files.write_json", stop)
        open_run(tmp_path / "a", smears)
    assert not (tmp_path / "a/config.json").exists(), "a run that has it has environment.json, too"
    open_run(tmp_path / "a", smears)
    assert (tmp_path / "a/environment.json").exists() and (tmp_path / "a/config.json").exists()


def test_coming_back_changes_nothing(tmp_path, smears):
    open_run(tmp_path / "a", smears)
    before = (tmp_path / "a/config.json").read_bytes()
    open_run(tmp_path / "a", smears)
    assert (tmp_path / "a/config.json").read_bytes() == before


def test_other_settings_are_refused_with_what_differs_unless_forced(tmp_path, smears):
    open_run(tmp_path / "a", smears, overrides={"recipe.epochs": 2})
    with pytest.raises(ConfigError, match=r"recipe\.epochs was 2, is 5") as caught:
        open_run(tmp_path / "a", smears, overrides={"recipe.epochs": 5})
    assert "--force" in str(caught.value)
    forced = open_run(tmp_path / "a", smears, overrides={"recipe.epochs": 5}, force=True)
    assert forced.profile.recipe.epochs == 5
    assert open_run(tmp_path / "a", smears).profile.recipe.epochs == 5, "overrides=None keeps the run's own"


def test_other_data_is_refused(tmp_path, smears):
    open_run(tmp_path / "a", smears)
    other = write_dataset(tmp_path / "other", train=3, val=2, test=2, seed=9, progress=False)
    with pytest.raises(ConfigError, match="data fingerprint"):
        open_run(tmp_path / "a", str(other))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{broken",
        "\x00",
        "[" * 10**5,
        '{"profile": [1]}',
        '{"profile": "x"}',
        '{"data": [1]}',
        '{"data": "x"}',
        '{"overrides": [1]}',
        '{"initial_weights_sha256": {}}',
        '{"seed": ' + "9" * 5000 + "}",
    ],
)
def test_a_damaged_config_names_the_file(tmp_path, smears, text):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/config.json").write_text(text)
    for overrides in (None, {"recipe.epochs": 1}):
        with pytest.raises(SsdError, match="config"):
            open_run(tmp_path / "a", smears, overrides=overrides)


def test_limits_of_the_profile_apply(tmp_path, smears):
    run = open_run(tmp_path / "a", smears, overrides={"train_images": 3, "test_images": 1})
    assert [len(run.dataset(split)) for split in ("train", "val", "test")] == [3, 2, 1]


def test_missing_weights_name_the_stage_and_the_command(tmp_path, smears):
    run = RunFolder.open(
        tmp_path / "a", profile="quick", data=with_parasites(smears, tmp_path), progress=False
    )
    for ask in (lambda: run.best_checkpoint, run.ensure_trained):
        with pytest.raises(StageError, match=r"04_train.*\n*.*--only 04 --profile quick"):
            ask()


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_shipped_weights_stand_in_for_a_long_training_and_are_named(tmp_path, smears, capsys, profile):
    run = RunFolder.open(tmp_path / "a", profile=profile, data=smears, progress=False, overrides=SMALL)
    capsys.readouterr()
    assert run.ensure_trained() == shipped_weights()
    captured = capsys.readouterr()
    assert captured.out == "" and "ssd300-blood instead of a training of your own" in captured.err
    assert not (run.path / "checkpoints").exists(), "nothing can be mistaken for the run's own"
    section = {"per_class": {"RBC": {"ap_50": 0.5}}, "map_50": 0.5}
    run.update_metrics("test", section)
    run.update_metrics("counting", {})
    assert run.metrics()["borrowed"] == {"test": "ssd300-blood", "counting": "ssd300-blood"}
    said = "Measured on the shipped weights ssd300-blood, not on a training of this run: test, counting."
    page = " ".join(write_report(run).read_text(encoding="utf-8").split())
    assert said in results_text(run.metrics()) and f'role="note">{said}</p>' in page

    run.train()
    assert run.ensure_trained() == run.best_checkpoint and capsys.readouterr().err.count("shipped") == 0
    run.update_metrics("test", section)
    assert run.metrics()["borrowed"] == {"counting": "ssd300-blood"}, "as long as nothing measures it anew"
    run.update_metrics("counting", {})
    assert "borrowed" not in run.metrics()


def test_for_bccd_the_weights_of_its_figures_stand_in(tmp_path, smears):
    run = RunFolder.open(tmp_path / "a", profile="quick", data=smears, progress=False)
    run.source = dataclasses.replace(run.source, kind="bccd")
    assert run.ensure_trained() == shipped_weights("bccd")


def test_smoke_trains_what_is_missing_and_prints_nothing_on_stdout(tmp_path, smears, capsys):
    run = open_run(tmp_path / "a", smears, overrides=SMALL)
    weights = run.ensure_trained()
    captured = capsys.readouterr()
    assert weights == run.path / "checkpoints/best.safetensors" and weights.is_file()
    assert captured.out == "" and "no checkpoint yet" in captured.err
    stamp = weights.stat().st_mtime_ns
    assert run.ensure_trained().stat().st_mtime_ns == stamp, "trained once only"


def test_python_overwrites_a_training_where_it_is_asked_to(tmp_path, smears, capsys):
    """As notebook 04 does: it goes on with one that was stopped, and begins one that is finished anew."""
    run = open_run(tmp_path / "a", smears, overrides=SMALL)
    run.train()
    with pytest.raises(CheckpointError, match=r"resume=True.*resume=False"):
        run.train()
    assert "finished" not in capsys.readouterr().err
    assert run.train(resume=True).best_epoch == 1 and "is finished" in capsys.readouterr().err
    stamp = run.best_checkpoint.stat().st_mtime_ns
    assert run.train(resume=False).best_epoch == 1
    assert run.best_checkpoint.stat().st_mtime_ns > stamp


def test_metrics_always_say_what_data_they_are_of(tmp_path, smears):
    run = open_run(tmp_path / "a", smears)
    assert run.metrics()["data"]["synthetic"] is True and run.metrics()["data"]["notice"]
    run.update_metrics("train", {"loss": 1.0})
    run.update_metrics("test", {"map_50": None})
    stored = json.loads((run.path / "metrics.json").read_text())
    assert stored["train"] == {"loss": 1.0} and stored["test"] == {"map_50": None}
    assert stored["data"] == run.source.describe()
    for name in ("data", "borrowed"):
        with pytest.raises(ConfigError, match=f"'{name}'"):
            run.update_metrics(name, {})


def test_save_writes_by_kind_and_stays_inside(tmp_path, smears):
    import matplotlib.figure

    run = open_run(tmp_path / "a", smears)
    assert run.save("notes/a.txt", "é").read_text(encoding="utf-8") == "é"
    assert run.save("b.bin", b"\x00").read_bytes() == b"\x00"
    assert json.loads(run.save("c.json", [1]).read_text()) == [1]
    figure = run.save("figures/d.png", matplotlib.figure.Figure(figsize=(1, 1)))
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert {"notes/a.txt", "figures/d.png"} <= {name for name, _ in run.saved_files()}
    with pytest.raises(ConfigError, match="leads out"):
        run.save("../outside.txt", "")


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [
        ("", "", "runs/lab-smoke-my-cells"),
        ("", "runs/chosen", "runs/chosen"),
        ("runs/b", "runs/chosen", "runs/b"),
    ],
)
def test_where_a_notebook_writes(monkeypatch, tmp_path, given, variable, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSDLIB_RUN_DIR", variable)
    found = lookup.locate(given, profile="smoke", data="/data/My cells")
    assert found == paths.project_root() / expected


def test_a_run_name_says_when_and_what():
    assert new_run_name("quick", "/data/My cells/").endswith("-quick-my-cells")
    assert new_run_name("full", "/")[-10:] == "-full-data"
    assert new_run_name("full", "bccd,txl-pbc,/data/My cells").endswith("-full-bccd-txl-pbc-my-cells")


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"epochs": 3}, "epochs"),
        ({"recipe.nothing": 3}, r"recipe\.nothing"),
        ({"recipe.epochs.deeper": 3}, "deeper"),
        ({"recipe.epochs": "many"}, "epochs"),
        ({"recipe.epochs": 0}, "epochs"),
    ],
)
def test_impossible_overrides_are_named(changes, wrong):
    assert apply_overrides(PROFILES["smoke"], {}) == PROFILES["smoke"]
    with pytest.raises(ConfigError, match=wrong):
        apply_overrides(PROFILES["smoke"], changes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=", ("a", "")),
        ("recipe.epochs=3", ("recipe.epochs", 3)),
        ("recipe.optimizer=sgd", ("recipe.optimizer", "sgd")),
        ("train_images=null", ("train_images", None)),
    ],
)
def test_overrides_on_the_command_line(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["", "=3", "epochs"])
def test_overrides_without_a_name_or_value(text):
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        parse_override(text)


@pytest.mark.parametrize("value", ["[" * 100_000, '{"a":' * 100_000, "1" * 9000, "NaN"])
def test_values_that_are_too_deep_or_too_long_are_refused(value):
    with pytest.raises(ConfigError):
        parse_override(f"recipe.epochs={value}")


def test_unknown_profile_lists_the_known(tmp_path, smears):
    with pytest.raises(ConfigError, match="smoke, quick, full"):
        RunFolder.open(tmp_path / "a", profile="fast", data=smears)
    assert not (tmp_path / "a").exists()


def test_smears_stand_beside_the_images_of_the_data(tmp_path, smears, monkeypatch):
    monkeypatch.setattr(paths, "data_folders", lambda: [tmp_path / "data"])
    small = {
        "recipe.initial_weights": "scratch",
        "recipe.model.width": 0.05,
        "recipe.epochs": 1,
        "recipe.batch_size": 2,
        "recipe.smears": 2,
        "train_images": 2,
        "val_images": 1,
    }
    run = open_run(tmp_path / "a", smears, overrides=small)
    run.train()
    assert load_state(run.path / "checkpoints")[0]["step"] == (2 + 2) // 2


def test_smears_are_not_mixed_with_other_classes(tmp_path, smears, monkeypatch):
    monkeypatch.setattr(paths, "data_folders", lambda: pytest.fail("smears were asked for"))
    small = {**SMALL, "recipe.smears": 2}
    run = open_run(tmp_path / "a", with_parasites(smears, tmp_path), overrides=small)
    assert len(run.train().epochs) == 1
