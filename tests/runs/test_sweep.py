"""Sweeps and comparisons: what is asked, what is run again, what is joined and how the best is named."""

import csv
import io
import json
import math
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from ssdlib.__main__ import main
from ssdlib.common import files
from ssdlib.common.errors import ConfigError, DataError, SsdError, StageError
from ssdlib.config import RECIPES, find_profile, flatten
from ssdlib.data.smears import write_dataset
from ssdlib.runs.comparison import (
    compare_runs,
    differing_settings,
    short_name,
    write_comparison,
)
from ssdlib.runs.folder import RunFolder, read_stages
from ssdlib.runs.overrides import apply_overrides
from ssdlib.runs.pipeline import ChainInterrupted, StageRecord
from ssdlib.runs.sweep import (
    find_setting,
    folder_name,
    parse_axis,
    plan_sweep,
    run_sweep,
    setting_names,
    split_values,
)
from ssdlib.training.history import EpochRecord, History

SMOKE = find_profile("smoke")
STAGES = [Path("04_train.ipynb"), Path("05_evaluate.ipynb")]
NAMES = ("04_train", "05_evaluate")


@pytest.fixture(scope="module")
def smears(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tiny"
    return str(write_dataset(folder, train=4, val=1, test=1, progress=False))


def epochs(*values: float | None) -> dict:
    """A history with these val mAPs."""
    records = [EpochRecord(i, 5 / i, 2 / i, 3 / i, 1e-3, 10.0 + i, 30.0, v) for i, v in enumerate(values, 1)]
    return History(records).to_dict()


def write_run(folder: Path, overrides: dict, *values: float | None, test: float = 0.5, **data) -> Path:
    """A run folder as the stages 04 and 05 leave it, after two epochs unless the overrides say otherwise."""
    profile = apply_overrides(SMOKE, {"recipe.epochs": 2, **overrides})
    described = {"source": "bccd", "root": "x", "synthetic": False, "notice": "", "fingerprint": "f"} | data
    files.write_json(folder / "config.json", {"profile": profile.to_dict(), "data": described})
    files.write_json(folder / "history.json", epochs(*values))
    section = {"map_50": values[-1] if values else None, "map": 0.4, "per_class": {"WBC": {"ap_50": 0.9}}}
    files.write_json(folder / "metrics.json", {"val": section, "test": {**section, "map_50": test}})
    return folder


class Chain:
    """Stands in for `run_chain`: notes how it was called and writes what the stages would have."""

    def __init__(self, results=lambda profile: 0.5, fail=(), stop=()):
        self.calls, self.results, self.fail, self.stop = [], results, set(fail), set(stop)

    def __call__(self, profile, data, folder, *, stages, overrides, force, progress):
        self.calls.append((folder.name, *(stage.stem for stage in stages)))
        run = RunFolder.open(
            folder, profile=profile, data=data, overrides=overrides, force=force, progress=False
        )
        record = StageRecord(folder, NAMES)
        for name in self.calls[-1][1:]:
            with record.running(name):
                if (folder.name, name) in self.stop:
                    raise KeyboardInterrupt
                if (folder.name, name) in self.fail:
                    raise StageError("the <reason>")
                count, result = run.profile.recipe.epochs, self.results(run.profile)
                run.save("history.json", epochs(*[None] * (count - 1), result))
                run.update_metrics("val", {"map_50": result, "map": 0.1, "per_class": {}})
                run.save("report.html", "the report")


def sweep(folder, smears, axes, chain, **options):
    planned = plan_sweep(folder, axes, profile="smoke", data=smears, overrides=options.pop("overrides", None))
    return run_sweep(planned, STAGES, **options, progress=False, chain=chain)


# ------------------------------------------------------------------------------------------------ asking


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [""]),
        ("0", ["0"]),
        ("0, 1,2", ["0", "1", "2"]),
        ("[0.1,0.2],[0.3,[1,2]]", ["[0.1,0.2]", "[0.3,[1,2]]"]),
        ('{"a":1,"b":2},"x,y"', ['{"a":1,"b":2}', '"x,y"']),
        ('"a\\",[",2', ['"a\\",["', "2"]),
        ("1,,2", ["1", "", "2"]),
    ],
)
def test_values_are_parted_by_commas_outside_of_brackets(text, expected):
    assert split_values(text) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("seed", "seed"),
        ("lr", "recipe.learning_rate"),
        ("learning_rate", "recipe.learning_rate"),
        ("model.width", "recipe.model.width"),
        ("recipe.model.priors.scales", "recipe.model.priors.scales"),
        ("recipe", "recipe"),
        ("name", "name"),
    ],
)
def test_a_setting_is_found_by_a_short_name(name, expected):
    assert find_setting(name, setting_names(SMOKE)) == expected


def test_last_words_tell_all_settings_apart():
    names = list(flatten(SMOKE.to_dict()))
    assert len({short_name(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("seed=0,1", "seed", (0, 1)),
        ("lr=1e-3, 3e-3", "recipe.learning_rate", (1e-3, 3e-3)),
        ("std=[0.1,0.2,0.3],[1,1,1]", "recipe.model.std", ([0.1, 0.2, 0.3], [1, 1, 1])),
        ("optimizer=adamw,sgd", "recipe.optimizer", ("adamw", "sgd")),
        ("batch_norm=true,false", "recipe.model.batch_norm", (True, False)),
        ("recipe=original,scratch", "recipe", ("original", "scratch")),
    ],
)
def test_an_axis(text, name, values):
    assert parse_axis(text, SMOKE) == (name, values)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ([""], "NAME=VALUE,VALUE"),
        (["lr"], "NAME=VALUE,VALUE"),
        (["lr="], "NAME=VALUE,VALUE"),
        (["=1"], "NAME=VALUE,VALUE"),
        (["epoch=1,2"], r"no setting 'epoch'.*mean epochs.*recipe\.batch_size"),
        (["rcipe.learning_rate=1"], "no setting.*mean learning_rate"),
        (["seed=1,,2"], "empty value"),
        (["lr=0.001,1e-3"], "1e-3 is given twice"),
        (["seed=a,b"], "seed should be a valid integer, not 'a'"),
        (["seed=0,0.5"], "seed should be a valid integer, not 0.5"),
        (["lr=1,0"], "learning_rate should be greater than 0"),
        (["weight_decay=1,NaN"], "NaN is not a finite number"),
        (["scales=[0.1,0.2"], "scales should be a valid array"),
        (["recipe=scratch,best"], "no recipe 'best'; choose one of: .*original"),
        (["seed=0,1", "seed=2"], "seed is swept twice"),
        (["lr=1,2", "learning_rate=3"], "swept twice"),
        (["width=0.5,0.25", "epochs=1"], "both set and swept"),
    ],
)
def test_mistakes_are_said_before_anything_runs(tmp_path, axes, message):
    with pytest.raises(ConfigError, match=message):
        plan_sweep(tmp_path / "s", axes, profile="smoke", overrides={"recipe.epochs": 3})
    assert not (tmp_path / "s").exists()


def test_an_ambiguous_name_lists_its_meanings():
    with pytest.raises(ConfigError, match=r"a\.width or b\.width"):
        find_setting("width", ["a.width", "b.width"])


def test_combinations_try_each_setting_once_before_any_twice(tmp_path):
    planned = plan_sweep(tmp_path, ["lr=1e-3,3e-3", "seed=0,1"], profile="smoke")
    names = [c.name for c in planned.combinations]
    assert names == ["seed=0,lr=0.001", "seed=0,lr=0.003", "seed=1,lr=0.001", "seed=1,lr=0.003"]
    swapped = plan_sweep(tmp_path, ["seed=0,1", "learning_rate=1e-3,3e-3"], profile="smoke")
    assert [c.name for c in swapped.combinations] == names
    assert planned.combinations[-1].profile.recipe.learning_rate == 3e-3


def test_a_recipe_is_swept_whole_and_single_settings_still_hold(tmp_path):
    axes, overrides = ["batch_size=2,4", "recipe=original,paper"], {"recipe.epochs": 3, "seed": 7}
    planned = plan_sweep(tmp_path, axes, profile="smoke", overrides=overrides)
    recipes, sizes = ("original", "paper"), (2, 4)
    names = [f"recipe={recipe},batch_size={size}" for recipe in recipes for size in sizes]
    assert [c.name for c in planned.combinations] == names
    for c in planned.combinations:
        recipe = RECIPES[c.overrides["recipe"]].replace(epochs=3, batch_size=c.overrides["recipe.batch_size"])
        assert c.profile == SMOKE.replace(recipe=recipe, seed=7)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ""),
        ({"seed": 0, "lr": 1e-3}, "seed=0,lr=0.001"),
        ({"lr": 1.0, "x": 0.123456789}, "lr=1,x=0.123456789"),
        ({"turns": True, "limit": None}, "turns=true,limit=null"),
        ({"start": "imagenet"}, "start=imagenet"),
    ],
)
def test_folder_names_are_readable(values, expected):
    assert folder_name(values) == expected


def test_folder_names_are_safe_and_distinct():
    odd = ["a/b", "a\\b", "a:b", "A", "a", "..", "x" * 200, "x" * 201, [0.1, 0.2], [0.1, 0.3], "é", "a b"]
    names = [folder_name({"v": value}) for value in odd]
    assert len({name.lower() for name in names}) == len(odd)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzA0123456789.,=_+-") for name in names)
    assert max(map(len, names)) < 50
    long = {f"setting{i}": "value" for i in range(20)}
    assert len(folder_name(long)) <= 120
    assert folder_name(long) != folder_name({**long, "setting19": "other"})


# ----------------------------------------------------------------------------------------------- running


def test_a_sweep_goes_on_past_a_failure_and_skips_what_is_done(tmp_path, smears, capsys):
    folder, axes = tmp_path / "my sweep", ["seed=0,1", "lr=1e-3,3e-3"]
    chain = Chain(
        lambda profile: 100 * profile.recipe.learning_rate + 0.01 * profile.seed,
        fail=[("seed=0,lr=0.003", "05_evaluate")],
    )
    result = sweep(folder, smears, axes, chain)
    assert [call[0] for call in chain.calls] == [f"seed={s},lr={lr}" for s in (0, 1) for lr in (0.001, 0.003)]
    assert {run.name: run.state for run in result.runs}["seed=0,lr=0.003"] == "failed"
    assert sum(run.state == "done" for run in result.runs) == 3
    assert "the <reason>" in capsys.readouterr().err
    page = (folder / "comparison.html").read_text()
    assert "the &lt;reason&gt;" in page and "SYNTHETIC DATA" in page
    request = json.loads((folder / "sweep.json").read_text())
    assert request["sweep"] == {"seed": [0, 1], "recipe.learning_rate": [1e-3, 3e-3]}
    assert request["stages"] == list(NAMES) and request["data"]["synthetic"]

    chain.calls, chain.fail = [], set()
    result = sweep(folder, smears, axes, chain)
    assert chain.calls == [("seed=0,lr=0.003", "05_evaluate")]
    assert all(run.state == "done" for run in result.runs)
    assert result.best_run.name == "seed=1,lr=0.003" and result.groups[0].label == "lr=0.003"
    assert json.loads((folder / "sweep.json").read_text())["created"] == request["created"]

    chain.calls = []
    result = sweep(folder, smears, ["seed=1,2", "lr=3e-3"], chain)
    assert [call[0] for call in chain.calls] == ["seed=2,lr=0.003"]
    assert len(result.runs) == 5, "earlier runs of the folder stay in the comparison"


def test_ctrl_c_writes_the_page_and_says_how_to_go_on(tmp_path, smears):
    chain = Chain(stop=[("seed=1", "04_train")])
    with pytest.raises(ChainInterrupted, match=rf"stopped in seed=1; .*--run {tmp_path}/s goes on"):
        sweep(tmp_path / "s", smears, ["seed=0,1,2"], chain)
    with (tmp_path / "s/comparison.csv").open(encoding="utf-8-sig") as table:
        states = {row["run"]: row["state"] for row in csv.DictReader(table)}
    assert states == {"seed=0": "done", "seed=1": "interrupted", "seed=2": "not run"}
    chain.calls, chain.stop = [], set()
    sweep(tmp_path / "s", smears, ["seed=0,1,2"], chain)
    assert chain.calls == [("seed=1", *NAMES), ("seed=2", *NAMES)]


def test_a_failure_before_the_first_stage_is_kept(tmp_path, smears, capsys):
    def chain(*_, **__):
        raise ZeroDivisionError("a fault of ours")

    result = sweep(tmp_path / "s", smears, ["seed=0,1"], chain)
    assert [(run.state, run.error) for run in result.runs] == [("failed", "a fault of ours")] * 2
    assert result.best_run is None and "Traceback" in capsys.readouterr().err


def test_other_settings_or_data_are_refused_before_anything_runs(tmp_path, smears):
    chain = Chain()
    sweep(tmp_path / "s", smears, ["seed=0,1"], chain)
    chain.calls = []
    with pytest.raises(ConfigError, match=r"recipe\.epochs was.*\n.*--force"):
        sweep(tmp_path / "s", smears, ["seed=0,1"], chain, overrides={"recipe.epochs": 1})
    with pytest.raises(DataError, match="nowhere"):
        sweep(tmp_path / "s", "nowhere", ["seed=0,1"], chain)
    assert chain.calls == []
    sweep(tmp_path / "s", smears, ["seed=0,1"], chain, overrides={"recipe.epochs": 1}, force=True)
    assert [call[:2] for call in chain.calls] == [("seed=0", "04_train"), ("seed=1", "04_train")]
    with pytest.raises(ConfigError, match="single run"):
        plan_sweep(tmp_path / "s/seed=0", ["seed=0,1"], profile="smoke")


# --------------------------------------------------------------------------------------------- comparing


def test_comparing_needs_runs(tmp_path):
    with pytest.raises(StageError, match="no run to compare"):
        compare_runs([])
    with pytest.raises(StageError, match="not a run"):
        compare_runs([tmp_path])


@pytest.mark.parametrize(
    ("name", "where", "value"),
    [
        ("metrics.json", "val", "text"),
        ("metrics.json", "val.map", "0.4"),
        ("metrics.json", "val.per_class.WBC", 0.9),
        ("metrics.json", "test.map_50", 1e300),
        ("history.json", "epochs.0.seconds", 1e300),
        ("history.json", "epochs.0.map_50", 10**60),
        ("config.json", "data.source", ["bccd"]),
        ("config.json", "profile.recipe.epochs", "2"),
        ("config.json", "profile.val_images", [1]),
    ],
)
def test_a_run_whose_files_hold_something_else_is_named(tmp_path, name, where, value):
    folder = write_run(tmp_path / "a", {}, 0.1, 0.2)
    content = place = json.loads((folder / name).read_text())
    *parents, last = (int(word) if word.isdecimal() else word for word in where.split("."))
    for word in parents:
        place = place[word]
    place[last] = value
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(SsdError) as caught:
        compare_runs([folder])
    assert "a" in str(caught.value) and where.split(".")[-1] in str(caught.value)


def test_settings_of_strangers_are_drawn_as_text(tmp_path):
    """matplotlib takes dollars for formulas, and its fonts have no lone surrogate."""
    for name, text in (("a", "$\\x$\ud800"), ("b", "x" * 500)):
        folder = write_run(tmp_path / name, {}, 0.1, 0.2)
        config = json.loads((folder / "config.json").read_text())
        config["profile"]["precision"] = text
        (folder / "config.json").write_text(json.dumps(config))
    comparison = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert write_comparison(comparison, tmp_path).is_file()


def test_groups_have_mean_and_spread_and_the_best_is_named_by_val(tmp_path):
    lr = "recipe.learning_rate"
    folders = [
        write_run(tmp_path / "a", {lr: 1e-3}, 0.5, 0.80, test=0.1),
        write_run(tmp_path / "b", {lr: 1e-3, "seed": 1}, 0.84, 0.5, test=0.2),
        write_run(tmp_path / "c", {lr: 3e-3}, None, 0.83, test=0.9),
        write_run(tmp_path / "d", {lr: 3e-3, "seed": 1}, 0.99),  # one epoch of two: does not count
        write_run(tmp_path / "e", {lr: 1e-2}),
    ]
    result = compare_runs(folders)
    assert result.columns == (lr, "seed")
    assert [run.name for run in result.runs] == ["b", "c", "a", "d", "e"]
    assert result.best_run.name == "b"
    first, second, third = result.groups
    assert first.label == "lr=0.003" and first.mean == 0.83
    assert first.deviation is None and len(first.runs) == 2
    assert second.mean == pytest.approx(0.82) and second.deviation == pytest.approx(0.04 / math.sqrt(2))
    assert third.mean is None and third.results == []
    assert (
        result.verdict()
        == "lr=0.003 leads lr=0.001 by 1.0 points; with a single seed such a lead may be luck."
    )
    rows = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert [row["run"] for row in rows] == ["b", "c", "a", "d", "e"]
    assert not any("test" in name for name in rows[0]), "test is told of the best alone"
    assert (rows[0][lr], rows[0]["val_map_50"], rows[0]["val_ap_50_WBC"], rows[-1]["val_map_50"]) == (
        "0.001", "0.84", "0.9", "",
    )  # fmt: skip
    table = {row[0]: row for row in result.to_table().rows}
    assert list(table) == ["c", "d", "b", "a", "mean of 2", "e"], "the best group first, its mean below"
    assert table["b"][1:5] == ["0.001", "1", "0.840", "0.900"] and table["d"][3] == "(0.990)"
    assert table["mean of 2"][1:4] == ["0.001", "", "0.820 ± 0.028"] and table["e"][3] == "n/a"
    said = result.to_text()
    assert "Best run on val: b, mAP@0.5 0.840 at epoch 1. On test, which chose nothing, it has 0.200." in said
    assert str(tmp_path / "b/checkpoints/best.safetensors") in said and result.verdict() in said


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([], ""),
        ([(0.70, 0.71)], "lr=0.001 leads lr=0.003 by 10.0 points; the spread over seeds is 0.7."),
        ([(0.70, 0.90)], "lr=0.001 leads lr=0.003 by 0.5 points, no more than the spread over seeds (14.1)"),
    ],
)
def test_a_lead_is_weighed_against_the_spread(tmp_path, others, expected):
    folders = []
    for rate, results in zip((1e-3, 3e-3), [(0.80, 0.81), *others], strict=False):
        for seed, value in enumerate(results):
            settings = {"recipe.learning_rate": rate, "seed": seed}
            folders.append(write_run(tmp_path / f"{rate}{seed}", settings, None, value))
    assert compare_runs(folders).verdict().startswith(expected)
    assert bool(compare_runs(folders).verdict()) == bool(expected)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ()),
        ([{}, {}], ()),
        ([{"seed": 1}, {"recipe.epochs": 1}], ("recipe.epochs", "seed")),
        ([{"recipe": "original"}, {"recipe": "paper"}], ("recipe.name",)),
        (
            [{"recipe": "original"}, {"recipe": "paper"}, {"recipe": "paper", "recipe.epochs": 1}],
            ("recipe.name", "recipe.epochs"),
        ),
    ],
)
def test_settings_that_differ(overrides, expected):
    settings = [flatten(apply_overrides(SMOKE, one).to_dict()) for one in overrides]
    assert differing_settings(settings) == expected


def test_runs_on_other_val_images_are_not_ranked(tmp_path):
    folders = [
        write_run(tmp_path / "a", {}, None, 0.8),
        write_run(tmp_path / "b", {}, None, 0.9, fingerprint="other", notice="SYNTHETIC", synthetic=True),
    ]
    result = compare_runs(folders)
    assert result.best_run is None and result.verdict() == ""
    assert len(result.groups) == 2 and result.notices[0] == "SYNTHETIC" and "different" in result.notices[1]
    assert (
        result.conclusions() == []
        and "Best run" not in write_comparison(result, tmp_path / "out").read_text()
    )


def test_the_page_is_whole_safe_and_links_to_the_reports(tmp_path):
    folders = [
        write_run(tmp_path / f"runs/<{lr:g}>,{seed}", {"recipe.learning_rate": lr, "seed": seed}, 0.4, value)
        for lr, seed, value in ((1e-3, 0, 0.8), (1e-3, 1, 0.7), (3e-3, 0, 0.5))
    ]
    (folders[0] / "report.html").touch()
    path = write_comparison(compare_runs(folders, title="a <title>"), tmp_path / "out")
    text = path.read_text()
    page = BeautifulSoup(text, "html.parser")
    assert page.h1.text == "a <title>" and page.find_all(["script", "link", "iframe"]) == []
    assert [image["src"].partition(",")[0] for image in page.find_all(src=True)] == ["data:image/png;base64"]
    assert [a["href"] for a in page.select("table a")] == ["../runs/%3C0.001%3E,0/report.html"]
    assert all((tmp_path / "out" / a["href"]).exists() for a in page.select(".note a"))
    rows = [row.td.get_text() for row in page.select(".scroll")[0].select("tbody tr")]
    assert rows == ["<0.001>,0", "<0.001>,1", "mean of 2", "<0.003>,0"]
    assert [row.td.get_text() for row in page.select("tr.strong")] == ["mean of 2"]
    assert "Best run on val: <0.001>,0" in page.get_text()


def test_a_page_without_results_says_so(tmp_path):
    text = write_comparison(compare_runs([write_run(tmp_path / "a", {})]), tmp_path).read_text()
    assert "No run has been trained to its end yet" in text and "n/a" in text and "<img" not in text


# ---------------------------------------------------------------------------------------- the real thing


def write_stages(folder: Path) -> None:
    """Notebooks that leave what 04 and 05 leave, without torch, which takes seconds to load.

    The second fails where the seed is 1.
    """
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    read = "import json, pathlib\nrun = pathlib.Path(RUN_DIR)\n"
    seed = "seed = json.loads((run / 'config.json').read_text())['profile']['seed']\n"
    bodies = {
        "04_train": f"(run / 'history.json').write_text({json.dumps(epochs(0.25))!r})",
        "05_evaluate": f"{seed}assert seed == 0, 'the reason'",
    }
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    parameters = 'PROFILE = ""\nDATA = ""\nRUN_DIR = ""'
    for name, body in bodies.items():
        given = new_code_cell(parameters, metadata={"tags": ["parameters"]})
        cells = [given, new_code_cell(read + body)]
        nbformat.write(new_notebook(cells=cells, metadata=kernel), folder / f"{name}.ipynb")


def test_a_sweep_from_the_command_line_runs_notebooks(tmp_path, smears, monkeypatch, capsys):
    monkeypatch.setattr("ssdlib.common.paths.project_root", lambda: tmp_path)
    (tmp_path / "notebooks").mkdir()
    write_stages(tmp_path / "notebooks")
    arguments = ["run", "--profile=smoke", "--data", smears, "--run", str(tmp_path / "s"), "--quiet"]
    arguments += ["--set", "recipe.epochs=1"]
    assert main([*arguments, "--sweep", "seed=0,1"]) == 1
    said = capsys.readouterr()
    assert "1 of 2 runs failed" in said.err and "the reason" in said.err and "Traceback" not in said.err
    assert "0.250 ± 0.000" in said.out and "SYNTHETIC" in said.out
    assert [e["state"] for e in read_stages(tmp_path / "s/seed=1")] == ["done", "failed"]
    page = BeautifulSoup((tmp_path / "s/comparison.html").read_text(), "html.parser")
    assert [a["href"] for a in page.select("table a")] == ["seed=0/report.html", "seed=1/report.html"]

    assert main([*arguments, "--sweep", "seed=0,1", "--to", "04"]) == 0, "all that was asked is done"
    assert capsys.readouterr().err.count("done before") == 2


def test_the_command_line_refuses_a_wrong_sweep(tmp_path, capsys):
    assert main(["run", "--run", str(tmp_path / "s"), "--sweep", "lrr=1"]) == 1
    assert "Did you mean lr?" in capsys.readouterr().err and not (tmp_path / "s").exists()
