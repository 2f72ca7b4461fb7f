"""Run folders of strangers, and the pages made from them: an error or a page that is harmless to open."""

import base64
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssdlib.common.errors import SsdError
from ssdlib.runs import comparison, lookup, pipeline
from ssdlib.runs.folder import RunFolder, read_stages
from ssdlib.runs.pipeline import StageRecord
from ssdlib.runs.report import write_report
from ssdlib.training.history import EpochRecord, History
from tests.fuzz.cases import (
    attempt,
    command,
    damaged,
    fuzzed,
    json_bytes,
    nothing_changed,
    odd_values,
    reshaped,
)
from tests.fuzz.pages import assert_harmless, markup

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
STAGES = [f"{number:02d}_stage" for number in range(1, 7)]

# --- run folders -----------------------------------------------------------------------------------------


def notebook(*texts: str) -> bytes:
    """An executed notebook that draws `texts` in every way there is."""
    text, *others = texts
    kinds = (
        *["text/html", "text/markdown", "text/latex", "image/svg+xml", "image/png", "application/javascript"],
        text,
    )
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": text},
        {"output_type": "stream", "name": "stderr", "text": f"{text}\n 1%|  | 1/2"},
        {"output_type": "error", "ename": text, "evalue": text, "traceback": [text]},
        *({"output_type": "display_data", "metadata": {}, "data": {kind: text}} for kind in kinds),
    ]
    code = {"cell_type": "code", "source": text, "metadata": {"tags": [text]}, "outputs": outputs}
    attached = {"a.png": {"image/png": text}}
    cells = [
        {"cell_type": "markdown", "source": f"# {text}", "metadata": {}, "attachments": attached},
        code | {"execution_count": 1},
        *({"cell_type": "markdown", "source": other, "metadata": {}} for other in others),
    ]
    about = {"nbformat": 4, "nbformat_minor": 4, "metadata": {"title": text}}
    return json.dumps({**about, "cells": cells}).encode()


@pytest.fixture(scope="module")
def sound(tmp_path_factory, smears_root) -> dict[str, bytes]:
    """The files of a finished run by name, as the stages leave them."""
    folder = tmp_path_factory.mktemp("sound") / "run"
    run = RunFolder.open(folder, profile="smoke", data=str(smears_root), progress=False)
    record = StageRecord(run.path, STAGES)
    for name in STAGES:
        with record.running(name):
            pass
    epochs = [EpochRecord(n, 5 / n, 2 / n, 3 / n, 1e-3, 10.0, 30.0, 0.1 * n) for n in (1, 2)]
    run.save("history.json", History(epochs).to_dict())
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    of_class = {"ap_50": 0.5, "ap": 0.3, "ground_truth": 3, "detections": 4}
    figures = {"ap_50": interval, "ap": interval}
    section = {
        "images": 2,
        "map_50": 0.5,
        "map": 0.3,
        "per_class": {"WBC": of_class, "RBC": of_class},
        "intervals": {
            "per_class": {"WBC": interval, "RBC": interval},
            "classes": {"WBC": figures, "RBC": figures},
            "map_50": interval,
            "map": interval,
        },
    }
    for split in ("val", "test"):
        run.update_metrics(split, section)
    kinds = {"class": {"delta_ap": 0.1, "count": 3}}
    side = {"false_positives": kinds["class"], "misses": kinds["class"]}
    count = {
        "threshold": 0.5, "true": 3, "counted": 4, "exact": interval, "lower_limit": interval,
        "upper_limit": interval, **dict.fromkeys(("accuracy", "mae", "bias", "r2"), interval),
    }  # fmt: skip
    scores = {"count": 3, "mean_score": 0.5, "precision": 0.5, "ece": 0.1, "mce": 0.2}
    calibration = {"per_class": {"WBC": scores}, "together": scores}
    run.update_metrics(
        "analysis",
        {
            "errors": {"per_class": {"WBC": {"kinds": kinds, **side}}, "kinds": kinds, **side},
            "counting": {"per_class": {"WBC": count}, "together": count},
            "calibration": {"before": calibration, "after": calibration},
        },
    )
    run.save("figures/07_triptych.png", PIXEL)
    for name in STAGES[:2]:
        run.save(f"notebooks/{name}.ipynb", notebook("text", "**more**"))
    found = {name: (run.path / name).read_bytes() for name, _ in run.saved_files()}
    write_report(run)  # imports what takes seconds, which no example is to be charged with
    return found


SPECIALS = ("pipe", "folder", "zero", "loop", "elsewhere", "missing")


def put(path: Path, content: bytes | str) -> None:
    """A file of these bytes, or what one of SPECIALS names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "pipe":
        os.mkfifo(path)
    elif content == "folder":
        path.mkdir()
    elif content != "missing":
        targets = {"zero": "/dev/zero", "loop": path.name, "elsewhere": "../kept.json"}
        path.symlink_to(targets[content])


@st.composite
def changed(draw: st.DrawFn, files: dict[str, bytes], names: list[str]) -> dict[str, bytes | str]:
    """The files of a run, one or two of which are damaged, reshaped or something else than a file."""
    found: dict[str, bytes | str] = dict(files)
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        content = files[name]
        match draw(st.sampled_from(["reshaped"] * 6 + ["drawn"] * 3 + ["damaged", "special"])):
            case "special":
                found[name] = draw(st.sampled_from(SPECIALS))
            case "drawn" if name.endswith(".ipynb"):
                found[name] = notebook(*draw(st.lists(markup(), min_size=1, max_size=3)))
            case "reshaped" | "drawn" if name.endswith((".json", ".ipynb")):
                odd = odd_values() | markup() if draw(st.booleans()) else None
                found[name] = json_bytes(draw(reshaped(json.loads(content), odd)))
            case _:
                found[name] = draw(damaged(content))
    return found


def lay(folder: Path, files: dict[str, bytes | str]) -> Path:
    """A new folder of runs with one run of these files, beside a file that is no business of its."""
    shutil.rmtree(folder, ignore_errors=True)
    put(folder / "kept.json", b"{}")
    for name, content in files.items():
        put(folder / "out" / name, content)
    return folder / "out"


JSON_FILES = ["config.json", "stages.json", "metrics.json", "history.json", "environment.json"]


def opened(run: Path, data: Path, **options) -> RunFolder:
    return RunFolder.open(run, profile="smoke", data=str(data), progress=False, **options)


@fuzzed(12)
@given(st.data())
def test_a_run_is_opened_and_reported_or_refused(tmp_path_factory, sound, smears_root, data):
    names = [*JSON_FILES, *["metrics.json"] * 3, "figures/07_triptych.png"]
    folder = tmp_path_factory.getbasetemp() / "opened"
    run = lay(folder, data.draw(changed(sound, names)))
    with nothing_changed(folder):
        assert isinstance(attempt(read_stages, run), list | SsdError)
        for options in ({}, {"overrides": {"recipe.epochs": 3}, "save": False}, {"force": True}):
            found = attempt(opened, run, smears_root, **options)
            if isinstance(found, SsdError):
                continue
            assert isinstance(attempt(found.metrics), dict | SsdError)
            attempt(found.update_metrics, "val", {"map_50": 0.5})
            if not isinstance(attempt(write_report, found), SsdError):
                assert_harmless(run / "report.html")


@fuzzed(20)
@given(st.data())
def test_notebooks_of_strangers_are_shown_without_harm(tmp_path_factory, sound, smears_root, data):
    folder = tmp_path_factory.getbasetemp() / "shown"
    run = lay(
        folder, data.draw(changed(sound, [f"notebooks/{STAGES[0]}.ipynb", f"notebooks/{STAGES[1]}.ipynb"]))
    )
    put(run / "notebooks/zero.png", "zero")
    put(run / "notebooks/pipe.png", "pipe")
    with nothing_changed(folder):
        assert not isinstance(attempt(write_report, opened(run, smears_root)), SsdError)
        assert_harmless(run / "report.html")


@fuzzed(12)
@given(st.data())
def test_runs_are_compared_or_refused(tmp_path_factory, sound, data):
    folder = tmp_path_factory.getbasetemp() / "compared"
    run = lay(
        folder, data.draw(changed(sound, ["config.json", "stages.json", "metrics.json", "history.json"]))
    )
    other = folder / f"other {data.draw(st.sampled_from(['', '<b>', '=1+1', 'ü']))}"
    for name in JSON_FILES:
        put(other / name, sound[name])
    with nothing_changed(folder):
        runs = [attempt(comparison.read_run, one) for one in (run, other)]
        assert not isinstance(runs[1], SsdError)
        runs = [one for one in runs if not isinstance(one, SsdError)]
        found = attempt(comparison.compare_runs, runs, title=data.draw(st.sampled_from(["t", "<script>"])))
        assert not isinstance(found, SsdError)
        assert isinstance(attempt(found.to_text), str)
        assert not isinstance(attempt(comparison.write_comparison, found, run), SsdError)
        assert_harmless(run / "comparison.html")


@fuzzed(10)
@given(st.data())
def test_commands_on_a_run_say_what_is_wrong(tmp_path_factory, sound, smears_root, data):
    names = [*JSON_FILES, f"notebooks/{STAGES[0]}.ipynb"]
    folder = tmp_path_factory.getbasetemp() / "commanded"
    run = lay(folder, data.draw(changed(sound, names)))

    def begun(*_: object, **__: object) -> None:
        raise SsdError("that is where it would begin")

    common = ["--profile", "smoke", "--data", smears_root, "--run", run]
    with nothing_changed(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_execute", begun)
        patch.setattr(RunFolder, "train", begun)
        word = data.draw(st.sampled_from(["run", "only", "train", "resume", "compare", "sweep", "weights"]))
        match word:
            case "run":
                code, _ = command("run", *common, "-q")
            case "only":
                code, _ = command("run", *common, "--only", "05", "--force", "-q")
            case "train":
                code, _ = command("train", *common)
            case "resume":
                code, _ = command("train", *common, "--resume")
            case "compare":
                code, _ = command("compare", run, run, "--data", smears_root, "-q")
            case "weights":
                attempt(lookup.find_weights, run)
                attempt(lookup.locate, run, profile="smoke", data=str(smears_root))
                return
            case _:
                moved = run / "seed=0/config.json"
                put(moved, (run / "config.json").read_bytes() if (run / "config.json").is_file() else "pipe")
                put(run / "sweep.json", json_bytes(data.draw(reshaped({"created": "x", "runs": ["a"]}))))
                if (run / "config.json").is_file():
                    (run / "config.json").unlink()
                code, _ = command("run", *common, "--sweep", "seed=0", "-q")
    assert code == 1
