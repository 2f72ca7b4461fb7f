"""The command line: exit codes, messages, and the formats of what it writes."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from ssdlib.__main__ import main
from ssdlib.cli import counts_text, failures_text
from ssdlib.common import paths
from ssdlib.common.errors import CheckpointError, StageError, TrainingError
from ssdlib.config import ModelConfig
from ssdlib.data.images import read_image
from ssdlib.data.smears import write_dataset
from ssdlib.detector.model_file import save_model
from ssdlib.detector.weights import build_model
from ssdlib.evaluation.tables import results_text
from ssdlib.inference.job import MAX_ROWS, Summary
from ssdlib.runs import lookup

COMMANDS = (
    "run", "train", "evaluate", "compare", "detect", "export", "app", "model-card",
    "data fetch", "data check", "data label-errors", "data complete", "data smears", "data convert",
)  # fmt: skip


@pytest.fixture(scope="module")
def smears(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny", train=2, val=1, test=3, progress=False)


@pytest.fixture(autouse=True)
def shipped(weights, monkeypatch):
    """A small network in the place of the shipped weights: these tests are not about what it finds."""
    for name in ("SHIPPED", "BENCHMARK"):
        monkeypatch.setattr(f"ssdlib.detector.model_file.{name}", weights)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "runs/a/checkpoints/best.safetensors"
    path.parent.mkdir(parents=True)
    save_model(build_model(ModelConfig(width=0.05), seed=1), path)
    return path


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_shows_an_example(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    assert not command or f"Example: python -m ssdlib {command}" in capsys.readouterr().out


def test_help_is_quick_because_torch_is_not_loaded():
    heavy = "{'torch', 'cv2', 'papermill', 'matplotlib'}"
    code = f"import sys, ssdlib.cli; print({heavy} & set(sys.modules) or 'ok')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "ok\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_output_that_nobody_takes():
    """A full disk is said, a reader that has gone is not; Python itself adds nothing at its end."""
    help_text = [sys.executable, "-m", "ssdlib", "--help"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(help_text, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: the disk is full")
    assert len(done.stderr.splitlines()) == 1
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(help_text, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
def test_closed_streams_are_no_fault(tmp_path):
    """Progress bars want a stream, and no file may get the number of a closed one: libraries print to it."""
    code = (
        "import os, sys; from ssdlib.__main__ import main; from tqdm import tqdm; code = main(['--help']); "
        "list(tqdm(range(3))); open(sys.argv[1], 'w').write(f'{code} {os.open(os.devnull, 0) > 2}')"
    )
    shell = f'exec "{sys.executable}" -c "{code}" "{tmp_path}/said" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", shell]).returncode == 0
    assert (tmp_path / "said").read_text() == "0 True"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["detect"],
        ["detect", "x", "--batch", "0"],
        ["detect", "x", "--batch", "9" * 20],
        ["detect", "x", "--json", "x/a.jpg"],
        ["data", "smears", "x", "--train", "-1"],
    ],
)
def test_wrong_usage_ends_with_2(arguments, capsys):
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["detect", "nowhere.png"], "nowhere.png does not exist"),
        (["detect", "nowhere/*.png"], "no image fits the pattern nowhere/*.png"),
        (["detect", "x", "--threshold", "2"], "must be in [0, 1], not 2"),
        (["detect", "x", "--tile", "7"], "32 to 16384"),
        (["detect", "x", "--tile", "9" * 5000], "32 to 16384"),
        (["detect", "x", "--um-per-pixel", "75"], "0.01 to 0.5"),
        (["detect", "x", "--format", "pdf"], "--format takes pictures"),
        (["evaluate", "--weights", "none.safetensors"], "no weights at none.safetensors"),
        (["evaluate", "--weights", "shipped", "--data", "nowhere"], "nowhere"),
        (["run", "--only", "99"], "99"),
        (["train", "--data", "nowhere", "--run", "./never"], "nowhere"),
        (["data", "check", "--data", "n" * 300], "File name too long"),
        (["train", "--set", "recipe.epochs"], "NAME=VALUE"),
    ],
)
def test_the_users_mistakes_end_with_1_and_one_message(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") or "\nerror: " in errors
    assert message in errors and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_faults_of_ours_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("ssdlib.inference.inputs.find_images", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["detect", "x"])


@pytest.mark.parametrize(("error", "code"), [("TrainingInterrupted", 130), ("TrainingError", 1)])
def test_a_stop_asked_for_is_told_apart_from_a_failure(monkeypatch, capsys, error, code):
    def stop(*_, **__):
        raise type(error, (TrainingError,), {})("go on with --resume")

    monkeypatch.setattr("ssdlib.inference.inputs.find_images", stop)
    assert main(["detect", "x"]) == code
    assert capsys.readouterr().err.endswith("\nerror: go on with --resume\n")


def test_detect_writes_json_pictures_and_counts_and_goes_on_past_damage(smears, weights, tmp_path, capsys):
    folder, out, report = tmp_path / "fields", tmp_path / "out", tmp_path / "cells.json"
    (folder / "deep").mkdir(parents=True)
    first, second, third = sorted((smears / "JPEGImages").iterdir())[:3]
    shutil.copy(first, folder / "a.jpg")
    (folder / "b.jpg").write_bytes(first.read_bytes()[:2000])
    shutil.copy(second, folder / "deep/a.jpg")
    arguments = [
        "detect",
        str(folder),
        str(third),
        "--weights",
        str(weights),
        "--threshold",
        "0.2",
        "--quiet",
    ]
    assert main([*arguments, "--json", str(report), "--out", str(out)]) == 3
    captured = capsys.readouterr()
    assert "1 of 4 images could not be read" in captured.err and "b.jpg" in captured.err
    entries = json.loads(report.read_text())
    images = [folder / "a.jpg", folder / "deep/a.jpg", third]
    assert [entry["image"] for entry in entries] == list(map(str, images))
    for entry in entries:
        assert (entry["width"], entry["height"]) == (640, 480)
        assert set(entry["counts"]) == {"WBC", "RBC", "Platelets"}
        assert sum(entry["counts"].values()) == len(entry["detections"])
        for found in entry["detections"]:
            assert len(found["box"]) == 4 and found["label"] in entry["counts"] and found["score"] >= 0.2
    assert any(entry["detections"] for entry in entries)
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.jpg")) == sorted(
        ["pictures/a.jpg", "pictures/deep/a.jpg", f"pictures/{third.name}"]
    )
    assert read_image(out / "pictures/a.jpg").shape == (480, 640, 3)
    assert json.loads((out / "cells.json").read_text()) == entries
    assert "all 3" in captured.out


def test_detect_with_only_damaged_images(weights, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"")
    assert main(["detect", str(tmp_path), "--weights", str(weights), "--quiet"]) == 3
    assert "no image could be read" in capsys.readouterr().out


def test_evaluate_writes_the_promised_keys(smears, weights, tmp_path, capsys):
    report = tmp_path / "results.json"
    arguments = ["evaluate", "--data", str(smears), "--split", "test", "--limit", "2", "--quiet"]
    assert main([*arguments, "--json", str(report)]) == 0
    values = json.loads(report.read_text())
    assert values["split"] == "test" and values["images"] == 2
    assert {"map_50", "map", "voc07_map", "per_class", "data"} <= set(values)
    assert all("ap_50" in entry for entry in values["per_class"].values())
    assert set(values["per_class"]) == {"WBC", "RBC", "Platelets"}
    assert len(values["data"]["fingerprint"]) == 64 and values["data"]["source"]
    captured = capsys.readouterr()
    assert f"weights: {weights} (shipped)" in captured.err, "which weights were taken is said"
    assert "SYNTHETIC" in captured.out and "AP50" in captured.out
    total = values["intervals"]["map_50"]
    assert total["value"] == pytest.approx(values["map_50"], abs=1e-6) and total["low"] <= total["high"]
    assert set(values["intervals"]["per_class"]) == set(values["per_class"])
    assert f"{values['map_50']:.3f} [{total['low']:.2f}, {total['high']:.2f}]" in captured.out
    # The table can be made again from the file alone.
    assert results_text({"test": values, "data": values["data"]}) in captured.out


@pytest.mark.parametrize("option", ["--analysis", "--lab"])
def test_evaluate_adds_errors_counts_and_calibration(smears, weights, tmp_path, capsys, option):
    report = tmp_path / "results.json"
    arguments = ["evaluate", option, "--data", str(smears), "--split", "val", "--limit", "1", "--quiet"]
    assert main([*arguments, "--json", str(report)]) == 0
    section = json.loads(report.read_text())["analysis"]
    assert section["images"] == 1 and set(section["counting"]["per_class"]) == {"WBC", "RBC", "Platelets"}
    out = capsys.readouterr().out
    assert "background" in out and "95 % of differences" in out and "ECE" in out
    assert "chosen on val, which is evaluated here" in out


def test_which_weights_are_meant(weights, tmp_path, monkeypatch):
    folder = weights.parents[2]
    monkeypatch.setattr(paths, "runs_folder", lambda: folder)
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder / "empty")
    for asked in (None, "shipped", "newest", "a", folder / "a", str(weights), "../a"):
        assert lookup.find_weights(asked).samefile(weights), asked
    with pytest.raises(CheckpointError, match=r"empty holds no checkpoints/best\.safetensors"):
        lookup.find_weights("empty")
    with pytest.raises(CheckpointError, match=r"no weights at b: .*shipped"):
        lookup.find_weights("b")
    monkeypatch.setattr(paths, "runs_folder", lambda: tmp_path)
    with pytest.raises(StageError, match="no trained weights"):
        lookup.find_weights("newest")


@pytest.mark.parametrize("command", ["detect", "evaluate"])
def test_help_says_which_weights_are_the_default(command, capsys):
    assert main([command, "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "[default: shipped]" in printed and "newest" in printed


def test_missing_shipped_weights_are_said(smears, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ssdlib.detector.model_file.SHIPPED", tmp_path / "gone.safetensors")
    image = next((smears / "JPEGImages").iterdir())
    assert main(["detect", str(image)]) == 1
    assert (
        "gone.safetensors" in (printed := capsys.readouterr().err) and "git restore data/weights" in printed
    )


def test_fine_tuning_another_width_names_the_setting(smears, tmp_path, capsys):
    run = ["train", "--profile", "quick", "--data", str(smears), "--run", str(tmp_path / "run")]
    assert main([*run, "--set", "recipe.model.width=0.1"]) == 1
    printed = capsys.readouterr().err
    assert "width=0.1. " in printed and "--set recipe.initial_weights=scratch" in printed


def test_fine_tuning_on_classes_of_ones_own(smears, tmp_path, capsys):
    """The shipped network with new class heads, trained on four classes and judged by the run's folder."""
    data, run = shutil.copytree(smears, tmp_path / "mine"), tmp_path / "run"
    (data / "smears.json").unlink()
    for file in (data / "Annotations").iterdir():
        file.write_text(file.read_text().replace("<name>RBC</name>", "<name>Burr cell</name>", 1))
    settings = ("model.width=0.05", "model.batch_norm=false", "epochs=1", "batch_size=2")
    changes = [word for setting in settings for word in ("--set", f"recipe.{setting}")]
    given = ["--data", str(data)]
    assert main(["train", "--profile", "smoke", "--run", str(run), "--device", "cpu", *given, *changes]) == 0
    assert main(["evaluate", "--weights", str(run), "--quiet", *given]) == 0
    printed = capsys.readouterr()
    assert "Burr cell" in printed.out and str(run / "checkpoints/best.safetensors") in printed.err
    assert main(["evaluate", "--quiet", *given]) == 1, "the shipped weights know other classes"
    assert "finds WBC, RBC, Platelets, but the data holds Burr cell" in capsys.readouterr().err


@pytest.mark.slow
def test_several_sources_are_trained_on_and_judged_each(smears, tmp_path, capsys):
    mine, run, report = tmp_path / "mine", tmp_path / "run", tmp_path / "results.json"
    write_dataset(mine, train=2, val=2, test=2, seed=9, progress=False)
    settings = ("model.width=0.05", "model.batch_norm=false", "epochs=1", "batch_size=2")
    changes = [word for setting in settings for word in ("--set", f"recipe.{setting}")]
    given = ["--data", f"{smears},{mine}"]
    assert main(["train", "--profile", "smoke", "--run", str(run), "--device", "cpu", *given, *changes]) == 0
    (epoch,) = json.loads((run / "history.json").read_text())["epochs"]
    assert list(epoch["map_50_by_source"]) == ["smears", "smears-2"]
    assert all(0 <= value <= 1 for value in epoch["map_50_by_source"].values())
    stored = json.loads((run / "config.json").read_text())["data"]
    assert [one["root"] for one in stored["sources"]] == [str(smears), str(mine)]

    assert main(["evaluate", "--quiet", *given, "--json", str(report)]) == 0
    printed, together = capsys.readouterr().out, json.loads(report.read_text())
    assert together["images"] == 5
    for folder, name, images in ((smears, "smears", 3), (mine, "smears-2", 2)):
        assert f"test of {name} ({images} images)" in printed
        assert main(["evaluate", "--quiet", "--data", str(folder), "--json", str(report)]) == 0
        alone, part = json.loads(report.read_text()), together["sources"][name]
        assert {key: alone[key] for key in part} == part


def test_what_can_be_fetched(smears, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BCCD_ROOT", str(smears))
    assert main(["data", "fetch", "--quiet"]) == 0
    assert f"BCCD: {smears}" in capsys.readouterr().out
    monkeypatch.setenv("TXL_PBC_ROOT", str(smears))
    assert main(["data", "fetch", "txl-pbc", "--quiet"]) == 1
    assert "which is not TXL-PBC" in capsys.readouterr().err
    assert main(["data", "fetch", "coco"]) == 1
    assert "coco cannot be fetched; choose one of: bccd, txl-pbc" in capsys.readouterr().err


def test_data_commands(tmp_path, capsys):
    folder = tmp_path / "new"
    assert main(["data", "smears", str(folder), "--train", "1", "--val", "1", "--test", "1", "--quiet"]) == 0
    assert (
        main(["data", "check", "--data", str(folder), "--json", str(tmp_path / "audit.json"), "--quiet"]) == 0
    )
    assert json.loads((tmp_path / "audit.json").read_text())
    assert "findings" in capsys.readouterr().out


def test_hard_smears_come_with_the_labels_of_all_cells(tmp_path):
    counts = ["--train", "2", "--val", "1", "--test", "1", "--quiet"]
    for name, options in (("plain", []), ("hard", ["--hard"])):
        assert main(["data", "smears", str(tmp_path / name), *counts, *options]) == 0
    assert not (tmp_path / "plain/Complete").exists()
    labels = [sorted((tmp_path / "hard" / part).glob("*.xml")) for part in ("Annotations", "Complete")]
    named, every = (sum(file.read_text().count("<object>") for file in files) for files in labels)
    assert len(labels[0]) == len(labels[1]) == 4 and 0 < named < every


def test_results_of_nothing():
    assert results_text({}) == "no results yet"
    assert results_text({"data": {"notice": "SYNTHETIC"}}) == "SYNTHETIC"


def test_table_of_counts():
    few, many = Summary(("WBC", "RBC")), Summary(("WBC", "RBC"))
    assert counts_text(few) == "no image could be read"
    for number in range(MAX_ROWS + 1):
        many.add(f"{number}.jpg", (1, number))
        if number < MAX_ROWS:
            few.add(f"{number}.jpg", (1, number))
    short, long = counts_text(few), counts_text(many)
    assert len(short.splitlines()) == MAX_ROWS + 4 and "more" not in short
    assert len(long.splitlines()) == MAX_ROWS // 2 + 5 and "... 51 more" in long
    assert long.splitlines()[-1].split() == ["all", "101", "101", "5,050"]


def test_many_failures_are_counted_and_the_first_are_named():
    summary = Summary(("WBC",))
    for number in range(MAX_ROWS + 2):
        summary.add_failure(f"{number}.jpg is damaged")
    text = failures_text(summary)
    assert text.startswith("102 of 102 images could not be read:\n  0.jpg is damaged\n")
    assert "... 2 more" in text.splitlines()[-1] and len(text.splitlines()) == MAX_ROWS + 2


def test_what_may_not_be_written_is_named_with_the_variable_that_helps(
    tmp_path, smears_root, monkeypatch, capsys
):
    def refuse(path, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("ssdlib.common.files.write_json", refuse)
    assert main(["run", "--profile", "smoke", "--data", str(smears_root), "--run", str(tmp_path / "r")]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "r/environment.json") in said and paths.HOME in said and "Traceback" not in said


def test_python_m_ssdlib(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ssdlib", "run", "--only", "99"],
        env={**os.environ, "PYTHONPATH": str(paths.project_root())},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.startswith("error: ")


def test_a_folder_that_cannot_be_opened_is_told_by_the_exit_code(capsys):
    from ssdlib.cli import UNREADABLE_IMAGES, _say_detected
    from ssdlib.inference.job import Summary

    _say_detected(Summary(("RBC",)), (), 0)
    with pytest.raises(typer.Exit) as end:
        _say_detected(Summary(("RBC",)), (), 1)
    assert end.value.exit_code == UNREADABLE_IMAGES
