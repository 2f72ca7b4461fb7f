"""The rates beside busy processes: the command of each job, and the table."""

import pytest

from tests.benchmarks import busy
from tests.benchmarks.timing import Bench


@pytest.mark.slow
@pytest.mark.parametrize("job", busy.JOBS)
def test_each_job_runs_in_a_process_of_its_own(smears_source, tmp_path, monkeypatch, job):
    monkeypatch.setattr(busy, "SECONDS", 0.1)
    found = busy._rate(job, Bench(tmp_path, smears_source, None, batch=2, rounds=1, progress=False))
    assert found["rate"] > 0 and found["threads"] >= 1


@pytest.mark.parametrize(("others", "shown"), [(0.0, "0.60"), (0.5, "busy")])
def test_the_share_is_of_each_round_and_withheld_where_the_machine_was_busy(monkeypatch, others, shown):
    rates = iter([10.0, 6.0, 20.0, 16.0, 10.0, 5.0] * len(busy.JOBS))
    monkeypatch.setattr(busy, "_rate", lambda job, bench: {"rate": next(rates), "threads": 2})
    monkeypatch.setattr(busy, "busy_processes", lambda count: monkeypatch.context())
    monkeypatch.setattr(busy.Others, "used", lambda self: others)
    measured = busy.measure(Bench(None, None, None, batch=2, rounds=3, progress=False))
    assert measured.tables[0].rows[0] == ("training, torch", "10.0 (2)", "6.0 (2)", shown)
    assert [one["passed"] for one in measured.targets] == [True if shown == "0.60" else None] * 3
