"""How many threads: by the processors that are free, unless the user has said."""

import os
import subprocess
import sys

import pytest

from ssdlib.common import threads


@pytest.mark.parametrize(
    ("quota", "expected"), [("", None), ("max 100000", None), ("100000 100000", 1), ("1000 100000", 1)]
)
def test_cores_heed_a_containers_quota(tmp_path, quota, expected):
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    assert threads.available_cores(file) == (expected or threads.available_cores(tmp_path / "missing"))


def stat_of(*idle: int) -> str:
    """/proc/stat where each processor has been idle for so many of 100 units more than in one of zeros."""
    return "cpu  1 2 3\n" + "".join(
        f"cpu{number} {100 - part} 0 0 {part - part // 2} {part // 2} 0 0 0 0 0\n"
        for number, part in enumerate(idle)
    )


@pytest.mark.parametrize(
    ("idle", "expected"),
    [
        ((100, 100, 100, 100), 4),
        ((100, 0, 100, 100), 3),
        ((90, 80, 85, 95), 4),
        ((50, 50, 50, 60), 2),
        ((0, 0, 0, 0), 1),
    ],
)
def test_processors_that_others_use_do_not_count(tmp_path, monkeypatch, idle, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    file = tmp_path / "stat"
    file.write_text("".join(f"cpu{number} 0 0 0 0 0 0 0 0 0 0\n" for number in range(4)))
    monkeypatch.setattr(threads.time, "sleep", lambda _: file.write_text(stat_of(*idle)))
    monkeypatch.setattr(threads.time, "process_time", lambda: 0.0)
    assert threads.free_cores(stat_file=file) == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1}, raising=False)
    file.write_text("cpu1 0 0 0 0 0 0 0 0\n")
    assert threads.free_cores(stat_file=file) == 1


def test_what_this_process_does_meanwhile_takes_no_processor_away(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    file = tmp_path / "stat"
    file.write_text("cpu0 0 0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\n")
    monkeypatch.setattr(threads.time, "sleep", lambda _: file.write_text(stat_of(100, 20)))
    for name, moments in (("process_time", (3.0, 3.08)), ("perf_counter", (50.0, 50.1))):
        monkeypatch.setattr(threads.time, name, iter(moments).__next__)
    assert threads.free_cores(stat_file=file) == 2


@pytest.mark.parametrize("content", [None, "", "cpu 1 2 3", "cpu0 x", "cpu0 1 2"])
def test_where_the_system_does_not_tell_all_are_free(tmp_path, content):
    file = tmp_path / "stat"
    if content is not None:
        file.write_text(content)
    assert threads.free_cores(0, file) == threads.available_cores()


CODE = """
import os
from ssdlib.common import threads
threads.free_cores = lambda: 3
threads.available_cores = lambda: 4
threads.share_processors()
print(os.environ["OMP_NUM_THREADS"], threads.threads())
threads.keep_threads({kept!r})
print(threads.threads())
"""


@pytest.mark.parametrize(
    ("user", "kept", "expected"),
    [
        ({}, 2, ["3", "3", "2"]),
        ({}, 5, ["3", "3", "3"]),  # more than there are
        ({}, "2", ["3", "3", "3"]),  # a damaged state
        ({}, None, ["3", "3", "3"]),
        ({"OMP_NUM_THREADS": "2"}, 4, ["2", "2", "2"]),
    ],
)
def test_what_the_user_has_set_stays(user, kept, expected):
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "SSDLIB_"))
    }
    result = subprocess.run(
        [sys.executable, "-c", CODE.format(kept=kept)],
        env=clean | user,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == expected


def test_without_settings_the_free_processors_are_looked_at_once():
    code = """
from ssdlib.common import threads
asked = []
threads.free_cores = lambda: asked.append(1) or 3
print(threads.threads(), threads.threads(), len(asked))
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "SSDLIB_"))}
    result = subprocess.run(
        [sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["3", "3", "1"]


def test_a_change_reaches_pytorch():
    import torch

    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        threads.use_threads(2)
        assert torch.get_num_threads() == threads.threads() == 2
    threads.use_threads(before)
