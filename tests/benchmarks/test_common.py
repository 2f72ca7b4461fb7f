"""What the benchmarks share: turns, targets, files of results, and the cost of processes."""

import json
import sys

import pytest
import torch
import typer

from ssdlib.common.errors import ConfigError
from tests.benchmarks import common
from tests.benchmarks.timing import Bench, Timings


def test_a_ratio_is_taken_within_each_round():
    # The second round was slow for both: the ratio must not notice.
    timings = Timings("t", {"ours": [1.0, 10.0, 1.0], "naive": [3.0, 30.0, 4.0]})
    assert timings.ratio("naive", "ours") == 3.0
    assert timings.median("ours") == timings.best("ours") == 1.0
    assert timings.to_dict()["naive"]["times_as_long_as_the_first"] == 3.0
    assert timings.table().rows[1] == ("naive", "4000.00", "3000.00", "3.00x")


def bench(rounds):
    return Bench(None, None, torch.device("cpu"), batch=1, rounds=rounds, progress=False)


def test_functions_take_turns_and_the_first_turn_does_not_count():
    called = []
    functions = {name: (lambda name=name: called.append(name)) for name in "abc"}
    timings = bench(rounds=2).take_turns("t", functions, units=2)
    assert called == [*"abc", *"bca", *"cab"]
    assert {name: len(values) for name, values in timings.seconds.items()} == dict.fromkeys("abc", 2)


def test_time_is_divided_by_the_units_of_each_function(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr("tests.benchmarks.timing.now", lambda device: next(ticks))
    work = {"ours": lambda: None, "naive": lambda: None}
    timings = bench(rounds=1).take_turns("t", work, units={"ours": 4, "naive": 1})
    assert timings.seconds == {"ours": [0.25], "naive": [1.0]}


@pytest.mark.parametrize(
    ("name", "measured", "passed"),
    [
        ("detection: times as fast as torchvision", 2.0, True),
        ("detection: times as fast as torchvision", 1.9, False),
        ("peak memory, GB", 6.0, True),
        ("peak memory, GB", 6.1, False),
    ],
)
def test_targets(name, measured, passed):
    found = common.targets({name: measured})
    assert [(one["name"], one["measured"], one["passed"]) for one in found] == [(name, measured, passed)]
    text = common.targets_table(found).to_text()
    assert ("PASS" in text, "miss" in text) == (passed, not passed)


def test_an_unknown_name_is_told_with_the_known_ones():
    assert common.choose(None, "ab", "--only") == common.choose(["a", "b"], "ab", "--only") == ["a", "b"]
    with pytest.raises(typer.BadParameter, match="there is no c; choose from a, b"):
        common.choose(["c", "a"], "ab", "--only")


def test_rows_are_kept_by_key_and_recipe_and_terms(tmp_path):
    path, key, recipe = tmp_path / "results.json", {"name": "a", "seed": 0}, {"rate": 0.1, "new": 1}
    results = common.Results(path, {"images": 6}, {"source": "smears"})
    assert results.find(key, recipe) is None
    results.put(key, {"recipe": {"rate": 0.1, "gone": 2}, "map_50": 0.5})
    again = common.Results(path, {"images": 6}, {})
    assert again.find(key, recipe)["map_50"] == 0.5  # a setting that one of the two lacks is no change
    assert again.find(key, {"rate": 0.2}) is again.find({**key, "seed": 1}, recipe) is None
    again.put(key, {"recipe": recipe, "map_50": 0.6})
    written = json.loads(path.read_text())
    assert [row["map_50"] for row in written["rows"]] == [0.6] and written["environment"]["cpu"]
    with pytest.raises(ConfigError, match="other terms"):
        common.Results(path, {"images": 7}, {})


def test_a_command_is_watched_with_all_that_it_starts():
    grown = "x = b'1' * 60_000_000; import time; time.sleep(0.6)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grown!r}])"
    cost = common.run([sys.executable, "-c", script])
    assert cost.seconds > 0.6 and cost.kills == 0
    assert 60 < cost.largest_mb < 200 and 1 < cost.first_mb < cost.largest_mb < cost.total_mb + cost.first_mb


def test_a_killed_command_is_measured_and_one_that_fails_is_not():
    import psutil

    def kill(pid):
        psutil.Process(pid).kill()
        return True

    assert common.run([sys.executable, "-c", "import time; time.sleep(60)"], kill).kills == 1
    with pytest.raises(RuntimeError, match=r"ended with 3[\s\S]*because"):
        common.run([sys.executable, "-c", "import sys; print('because', file=sys.stderr); sys.exit(3)"])
