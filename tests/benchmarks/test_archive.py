"""The benchmark of archives: what it makes of what it sees."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.benchmarks.archive import differences, growth, rate, reached

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


def test_targets():
    found = reached(ROWS)
    assert [one["measured"] for one in found] == pytest.approx([0.9, 0.0, 0.1])
    assert [one["passed"] for one in found] == [True, True, False]


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
