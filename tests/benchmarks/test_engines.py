"""The benchmark of the engines: its table."""

import pytest

from tests.benchmarks import engines


@pytest.mark.parametrize(("size", "shown"), [(None, "n/a"), (123.4, "123")])
def test_what_is_not_known_is_shown_as_such(size, shown):
    row = {"name": "torch", "seconds_an_image": 0.1, "times_torchvision": 2.0, "first_result_seconds": 3.0}
    table = engines.table([{**row, "peak_mb": 50.2, "file_mb": size}])
    assert table.rows == [("torch", "100.0", "2.00", "3.00", "50", shown)]
