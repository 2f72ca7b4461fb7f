"""The benchmark of archives: what it makes of what it sees."""

from __future__ import annotations

import os
import sys

import pandas as pd
import pytest

from tests.benchmarks.archive import (
    Cost,
    core_hours,
    descendants,
    differences,
    growth,
    judge,
    machines,
    rate,
    report,
    run,
)

SEEN = (("detect", 5.0, 40.0, (900, 1000, 1000)), ("ray", 20.0, 36.0, (900, 1000, 1100)))
ROWS = [
    {"path": path, "images": images, "seconds": start + images / speed, "total_mb": megabytes}
    for path, start, speed, sizes in SEEN
    for images, megabytes in zip((500, 1000, 2000), sizes, strict=True)
]


def test_rates_leave_out_what_starting_costs():
    assert rate(ROWS, "detect") == pytest.approx(40) and rate(ROWS[::-1], "ray") == pytest.approx(36)


def test_growth_is_that_of_the_last_step():
    assert growth(ROWS, "detect") == 0 and growth(ROWS[::-1], "ray") == pytest.approx(0.1)


def test_the_bars_are_judged():
    judged = judge(ROWS, cores=2)
    assert judged["ratio"] == pytest.approx(0.9) and judged["within"] and not judged["flat"]
    text = report(judged, 2)
    assert "detect 20.0, ray 18.0: 90 % (at least 85 %: PASS)" in text and "(FAIL)" in text


@pytest.mark.parametrize(
    ("images", "speed", "cores", "hours", "expected"),
    [
        (0, 10, 4, 1, 0),
        (36_000, 10, 1, 1, 1),
        (36_001, 10, 1, 1, 2),
        (1_000_000, 20, 16, 1, 1),
        (10**8, 20, 16, 8, 11),
    ],
)
def test_machines_for_an_archive(images, speed, cores, hours, expected):
    assert machines(images, speed, cores, hours) == expected
    assert core_hours(images, speed) == pytest.approx(images / speed / 3600)


IMAGES = pd.DataFrame({"image": ["a", "b"], "state": "done"})
CELLS = pd.DataFrame(
    {"image": ["a", "a", "b"], "score": [0.9, 0.8, 0.7], "width_um": None, "height_um": None}
)


@pytest.mark.parametrize(
    ("images", "cells", "expected"),
    [
        (IMAGES, CELLS, (0, 0, 0)),
        (IMAGES[:1], CELLS[:2], (1, 0, 1)),
        (pd.concat([IMAGES, IMAGES[:1]]), CELLS, (0, 1, 0)),
        (IMAGES, CELLS.assign(score=[0.9, 0.85, 0.7]), (0, 0, 1)),
        (IMAGES, pd.concat([CELLS, CELLS[2:]]), (0, 0, 1)),
    ],
    ids=["the same", "lost", "repeated", "another score", "a cell too many"],
)
def test_tables_are_compared(tmp_path, images, cells, expected):
    for table, plain, found in (("images", IMAGES, images), ("cells", CELLS, cells)):
        (tmp_path / "found" / table).mkdir(parents=True)
        (tmp_path / "plain").mkdir(exist_ok=True)
        plain.to_csv(tmp_path / "plain" / f"{table}.csv", index=False)
        found.to_parquet(tmp_path / "found" / table / "part-000000.parquet")
    assert tuple(differences(tmp_path, "plain", "found").values()) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_command_is_watched_with_all_that_it_starts():
    seen = []
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(0.6)'])"

    def kill(pid: int) -> bool:
        seen.extend(descendants(pid))
        return False

    cost = run([sys.executable, "-c", script], kill)
    assert seen and cost.kills == 0 and cost.seconds > 0.6
    assert cost.largest_mb > 1 and cost.first_mb < cost.total_mb + cost.first_mb
    assert os.getpid() not in descendants(os.getpid())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_command_that_fails_is_no_measurement():
    with pytest.raises(RuntimeError, match=r"ended with 3[\s\S]*because"):
        run([sys.executable, "-c", "import sys; print('because', file=sys.stderr); sys.exit(3)"])


def test_nothing_costs_nothing():
    assert vars(Cost()) == {"seconds": 0, "first_mb": 0, "largest_mb": 0, "total_mb": 0, "kills": 0}
