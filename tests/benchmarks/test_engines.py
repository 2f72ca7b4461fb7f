"""The benchmark of the engines: its arithmetic, and what it reads off processes."""

import sys

import pytest

from tests.benchmarks import engines
from tests.benchmarks.suites import TORCHVISION
from tests.benchmarks.timing import Timings


@pytest.mark.parametrize(
    ("torch", "int8", "passed"),
    [(4.0, 4.0, [False, False]), (2.0, 1.0, [True, False]), (1.0, 0.5, [True] * 2)],
)
def test_bars_are_about_the_shipped_width(torch, int8, passed):
    seconds = {TORCHVISION: [4.0], "torch, width 1": [9.0], "torch, width 0.5": [torch]}
    bars = engines.judge(Timings("t", seconds | {"onnx-int8, width 0.5": [int8]}))
    assert [bar["passed"] for bar in bars] == passed
    assert [bar["wanted"] for bar in bars] == [2.0, 4.3]


@pytest.mark.parametrize(("value", "shown"), [(None, "n/a"), (123.4, "123")])
def test_what_is_not_known_is_shown_as_such(value, shown):
    row = {"name": "torch", "seconds_an_image": 0.1, "times_torchvision": 2.0, "first_result_seconds": 3.0}
    text = engines.report({"rows": [{**row, "peak_mb": value, "file_mb": value}], "bars": []})
    assert text.splitlines()[1].split() == ["torch", "100.0", "2.00x", "3.00", shown, shown]


def test_a_process_is_measured_from_outside():
    seconds, peak = engines._run(
        [sys.executable, "-c", "import time; x = b'1' * 50_000_000; time.sleep(0.3)"]
    )
    assert seconds > 0.3
    assert peak is None or 50 < peak < 200
    with pytest.raises(RuntimeError, match="ended with 3"):
        engines._run([sys.executable, "-c", "raise SystemExit(3)"])


def test_no_such_process_has_no_memory():
    assert engines.peak_memory("none") is None
