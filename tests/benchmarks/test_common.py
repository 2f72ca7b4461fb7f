"""What the benchmarks share: turns, targets, files of results, and the cost of processes."""

import json
import sys
import time

import pytest
import torch
import typer

from ssdlib.common.errors import ConfigError
from ssdlib.common.runtime import instruction_sets
from tests.benchmarks import common, timing
from tests.benchmarks.suites import NAIVE, OURS, compared
from tests.benchmarks.timing import Bench, Others, Timings


def test_a_ratio_is_taken_within_each_round():
    # The second round was slow for both: the ratio must not notice.
    timings = Timings("t", {"ours": [1.0, 10.0, 1.0], "naive": [3.0, 30.0, 4.0]})
    assert timings.ratio("naive", "ours") == 3.0
    assert timings.median("ours") == timings.best("ours") == 1.0
    assert timings.to_dict()["of_each"]["naive"]["times_as_long_as_the_first"] == 3.0
    assert timings.table().rows[1] == ("naive", "4000.00", "3000.00", "3.00x")


@pytest.mark.parametrize(
    ("others", "quiet"), [((0.0, 0.9, 0.05), True), ((0.5, 0.0, 0.6), False), ((None, None, None), True)]
)
def test_a_busy_machine_gives_no_ratio(others, quiet):
    timings = Timings("training", {OURS: [1.0] * 3, NAIVE: [4.0] * 3}, others)
    measured = compared("training", timings, NAIVE)
    assert measured.tables[0].rows[1][-1] == ("4.00x" if quiet else "busy")
    assert timings.to_dict()["of_each"][NAIVE]["times_as_long_as_the_first"] == (4.0 if quiet else None)
    (target,) = measured.targets
    assert (target["measured"], target["passed"]) == ((4.0, True) if quiet else (None, None))
    assert ("busy" in common.targets_table([target]).to_text()) is not quiet
    assert instruction_sets() in measured.conditions and "threads" in measured.conditions
    said = "not known" if others[0] is None else f"others used {sorted(others)[1]:.2f} processors"
    assert said in measured.conditions


@pytest.mark.parametrize(("idle", "own", "others"), [(500, 4.0, 0.6), (500, 10.0, 0.0), (0, 0.0, 2.0)])
def test_what_others_use_is_all_that_is_not_ours(monkeypatch, idle, own, others):
    """Two processors for ten seconds: each idle for so many of a thousand units."""
    times = iter([{0: (0, 0), 1: (7, 7)}, {0: (idle, 1000), 1: (idle + 7, 1007)}])
    monkeypatch.setattr(timing, "processor_times", lambda: next(times))
    used, clock = iter([1.0, 1.0 + own]), iter([100.0, 110.0])
    monkeypatch.setattr(Others, "_used", staticmethod(lambda: next(used)))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert Others().used() == pytest.approx(others)


def test_where_the_system_does_not_tell_nothing_is_refused(monkeypatch):
    def fail():
        raise OSError

    monkeypatch.setattr(timing, "processor_times", fail)
    assert Others().used() is None


def test_what_this_process_uses_is_its_own():
    watched = Others._used()
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    assert Others._used() - watched >= 0.15


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
