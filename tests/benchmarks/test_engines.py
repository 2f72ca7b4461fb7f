"""The benchmark of the engines: its arithmetic."""

import pytest

from tests.benchmarks import engines
from tests.benchmarks.suites import TORCHVISION
from tests.benchmarks.timing import Timings


@pytest.mark.parametrize(
    ("torch", "int8", "passed"),
    [(4.0, 4.0, [False, False]), (2.0, 1.0, [True, False]), (1.0, 0.5, [True] * 2)],
)
def test_targets_are_about_the_shipped_width(torch, int8, passed):
    seconds = {TORCHVISION: [4.0], "torch, width 1": [9.0], "torch, width 0.5": [torch]}
    reached = engines.targets(Timings("t", seconds | {"onnx-int8, width 0.5": [int8]}))
    assert [one["passed"] for one in reached] == passed


@pytest.mark.parametrize(("size", "shown"), [(None, "n/a"), (123.4, "123")])
def test_what_is_not_known_is_shown_as_such(size, shown):
    row = {"name": "torch", "seconds_an_image": 0.1, "times_torchvision": 2.0, "first_result_seconds": 3.0}
    (table,) = engines.tables({"rows": [{**row, "peak_mb": 50.2, "file_mb": size}]})
    assert table.rows == [("torch", "100.0", "2.00", "3.00", "50", shown)]
