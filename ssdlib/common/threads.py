"""How many threads to compute with: as many as processors are free, which others may be using meanwhile.

Two threads on one free processor are several times slower than one: each waits at every layer for the other,
which is not running. The number is chosen once, when a process begins to work, and a training keeps it when
it is resumed: sums of floats depend on it, so that another would end in other weights.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

_CHOSEN = "SSDLIB_CHOSE_THREADS"
"""Set where OMP_NUM_THREADS is not the user's."""

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_STAT = Path("/proc/stat")


def available_cores(quota_file: Path = _QUOTA) -> int:
    """The number of processors that this process may use, by its affinity and its container's quota; 1 at
    least."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = quota_file.read_text().split()
        cores = min(cores, round(int(quota) / int(period)))
    return max(1, cores)


def free_cores(seconds: float = 0.1, stat_file: Path = _STAT) -> int:
    """The number of processors that this process may use and nobody else is using, 1 at least.

    By what they do for that long, less what threads of this process do meanwhile. Where the system does not
    tell, all count as free.
    """
    cores = available_cores()
    with suppress(OSError, ValueError, IndexError, ZeroDivisionError):
        before, began, own = processor_times(stat_file), time.perf_counter(), time.process_time()
        time.sleep(seconds)
        after, own = processor_times(stat_file), time.process_time() - own
        shares = [(after[cpu][0] - idle) / (after[cpu][1] - all_of) for cpu, (idle, all_of) in before.items()]
        return max(1, min(cores, round(sum(shares) + own / (time.perf_counter() - began))))
    return cores


def processor_times(stat_file: Path = _STAT) -> dict[int, tuple[int, int]]:
    """The time that each usable processor has been idle, and all of its time, in the system's units.

    Raises OSError or ValueError where the system does not tell.
    """
    usable: Iterable[int] = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    found = {}
    for line in stat_file.read_text().splitlines():
        name, *times = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in usable:
            # user, nice, system, idle, iowait, irq, softirq, steal; what guests take is in user already.
            values = [int(value) for value in times[:8]]
            found[int(name[3:])] = (values[3] + values[4], sum(values))
    if not found:
        raise ValueError(f"{stat_file} names no processor")
    return found


def threads() -> int:
    """The number of threads that this process computes with."""
    with suppress(ValueError):
        return max(1, int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]))
    if torch := sys.modules.get("torch"):
        return torch.get_num_threads()
    return _free_at_first()


@cache
def _free_at_first() -> int:
    return free_cores()  # once: it takes a tenth of a second, and this is asked for every batch


def use_threads(number: int) -> None:
    """Let this process, and those that it starts, compute with so many threads."""
    os.environ["OMP_NUM_THREADS"] = str(number)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(number)


def keep_threads(number: object) -> None:
    """Compute with so many threads as an earlier process did, so that sums come out the same to the bit.

    Not with more than there are processors, nor where the user has set OMP_NUM_THREADS.
    """
    if _CHOSEN in os.environ and isinstance(number, int) and 1 <= number <= available_cores():
        use_threads(number)


def share_processors() -> None:
    """Let this process, and those that it starts, compute with as many threads as processors are free.

    What the user has set by OMP_NUM_THREADS stays. How threads wait is left alone: where each has a
    processor, sleeping between two layers (OMP_WAIT_POLICY=PASSIVE) was measured to cost up to a third.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ[_CHOSEN] = "1"
        use_threads(free_cores() if available_cores() > 1 else 1)
