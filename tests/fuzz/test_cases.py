"""The limits that the other tests rely on do stop what they are there to stop."""

import mmap
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssdlib.common.errors import DataError
from tests.fuzz import cases
from tests.fuzz.cases import (
    PromiseBroken,
    attempt,
    damaged,
    fuzzed,
    json_bytes,
    limits,
    nothing_changed,
    reshaped,
)


def test_an_error_of_the_users_is_given_and_any_other_is_a_fault():
    def refuse(error):
        raise error

    assert isinstance(attempt(refuse, DataError("a.jpg is damaged")), DataError)
    with pytest.raises(ValueError):
        attempt(refuse, ValueError())
    with pytest.raises(AssertionError):
        attempt(refuse, DataError(""))


@pytest.mark.parametrize("limit", ["MOST_SECONDS", "MOST_WAITING"])
def test_what_lasts_too_long_is_stopped(monkeypatch, limit):
    def work():
        while True:
            pass

    monkeypatch.setattr(cases, limit, 1)
    with pytest.raises(PromiseBroken, match="not done after"):
        attempt(*([work] if limit == "MOST_SECONDS" else [time.sleep, 60]))


@pytest.mark.skipif(not cases._peak(reset=True), reason="needs Linux' /proc")
def test_what_needs_too_much_memory_is_a_fault(monkeypatch):
    monkeypatch.setattr(cases, "MOST_BYTES", 50_000_000)
    with limits():
        bytes(10_000_000)
    # Not by malloc, which may have that much at hand from an earlier test.
    memory = mmap.mmap(-1, 200_000_000)
    with pytest.raises(PromiseBroken, match=r"needed 0\.\d GB"), limits():
        for _ in range(200):
            memory.write(b"x" * 1_000_000)


def test_what_is_written_elsewhere_is_a_fault(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "kept").write_text("1")
    with nothing_changed(tmp_path):
        (tmp_path / "out/new").write_text("1")
    for path in ("kept", "new"):
        with pytest.raises(AssertionError, match="outside"), nothing_changed(tmp_path):
            (tmp_path / path).write_text("2")


@fuzzed(50)
@given(st.data())
def test_damage_is_done(data):
    assert isinstance(data.draw(damaged(bytes(range(256)) * 4)), bytes)
    assert isinstance(json_bytes(data.draw(reshaped({"a": [1, {"b": 2}], "c": "d"}))), bytes)
