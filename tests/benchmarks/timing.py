"""Timing that a busy machine does not easily fool: functions take turns, ratios are within a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from tqdm import tqdm

from ssdlib.common.runtime import cpu_name, instruction_sets
from ssdlib.common.tables import Table
from ssdlib.common.threads import available_cores, processor_times
from ssdlib.data.smears import write_dataset
from ssdlib.data.source import DataSource, open_folder

QUIET = 0.1
"""Processors that others may use in a round, on average, for a ratio to be worth printing."""
BUSY = "busy"
"""What stands in place of a ratio from a machine that was busy."""


class Others:
    """What others than this process, and those it waited for, use of the processors, from its making on."""

    def __init__(self) -> None:
        self._began, self._times, self._own = time.perf_counter(), self._processors(), self._used()

    def used(self) -> float | None:
        """The number of processors that they have used, on average; None where the system does not tell."""
        before, after = self._times, self._processors()
        if before is None or after is None:
            return None
        shares = [(after[cpu][1] - whole, after[cpu][0] - idle) for cpu, (idle, whole) in before.items()]
        taken = sum((whole - idle) / whole for whole, idle in shares if whole)
        return max(0.0, taken - (self._used() - self._own) / (time.perf_counter() - self._began))

    @staticmethod
    def _used() -> float:
        own = psutil.Process()
        running = 0.0
        for child in own.children(recursive=True):
            with suppress(psutil.Error):
                running += sum(child.cpu_times()[:2])
        return sum(own.cpu_times()[:4]) + running

    @staticmethod
    def _processors() -> dict[int, tuple[int, int]] | None:
        try:
            return processor_times()
        except (OSError, ValueError):
            return None


def machine() -> str:
    """The processor, its sets of instructions, and the threads of PyTorch, in one line."""
    threads = torch.get_num_threads()
    return f"{cpu_name()} ({instruction_sets()}), {available_cores()} processors, {threads} threads"


@dataclass(frozen=True)
class Timings:
    """Seconds per unit of work (an image, say) of each function, one entry a round."""

    title: str
    seconds: dict[str, list[float]]
    others: tuple[float | None, ...] = ()
    """The processors that others used in each round; None where it is not known."""

    @property
    def quiet(self) -> bool:
        """Whether others used so little in most rounds that the median of their ratios can be trusted."""
        known = [used for used in self.others if used is not None]
        return not known or median(known) <= QUIET

    def conditions(self) -> str:
        """What the figures were measured under, in one line."""
        known = [used for used in self.others if used is not None]
        load = f"others used {median(known):.2f} processors" if known else "what others used is not known"
        return f"{machine()}; {load}"

    def median(self, name: str) -> float:
        """Median seconds of one function."""
        return median(self.seconds[name])

    def best(self, name: str) -> float:
        """Seconds of its fastest round, in which the machine was most nearly idle."""
        return min(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> float:
        """How many times as long `slow` takes as `fast`: the median of the ratios within each round."""
        return median(a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True))

    def to_dict(self) -> dict[str, Any]:
        """The timings as JSON values, with the conditions; ratios are to the first function, None if busy."""
        first = next(iter(self.seconds))
        of_each = {
            name: {
                "median_seconds": self.median(name),
                "best_seconds": self.best(name),
                "times_as_long_as_the_first": self.ratio(name, first) if self.quiet else None,
                "seconds": values,
            }
            for name, values in self.seconds.items()
        }
        return {"conditions": self.conditions(), "others": list(self.others), "of_each": of_each}

    def table(self) -> Table:
        """A table of medians and best rounds, and how many times as long as the first each takes."""
        first = next(iter(self.seconds))
        rows = [
            (
                name,
                f"{1e3 * self.median(name):.2f}",
                f"{1e3 * self.best(name):.2f}",
                f"{self.ratio(name, first):.2f}x" if self.quiet else BUSY,
            )
            for name in self.seconds
        ]
        return Table((self.title, "median ms", "best ms", "times"), rows)


@dataclass(frozen=True)
class Bench:
    """The settings and data that all suites share."""

    folder: Path
    """For the smears and the trainers' runs."""
    source: DataSource
    device: torch.device
    batch: int
    rounds: int
    progress: bool

    @classmethod
    def prepare(cls, folder: Path, device: torch.device, batch: int, rounds: int, progress: bool) -> Bench:
        """A bench on smears written into `folder`: four batches to train on, three to detect in."""
        root = write_dataset(folder / "smears", train=4 * batch, val=batch, test=3 * batch, progress=progress)
        return cls(folder, open_folder(root), device, batch, rounds, progress)

    def files(self, split: str, limit: int | None = None) -> list[Path]:
        """The image files of a split."""
        return [sample.image_path for sample in self.source.dataset(split, limit).samples]

    def take_turns(
        self, title: str, functions: Mapping[str, Callable[[], object]], units: int | Mapping[str, int]
    ) -> Timings:
        """Timings of functions that run once a round each, in an order that moves on by one each round.

        units: pieces of work in one call (of each function, if they differ), by which its time is divided.
        Before the first round each runs once untimed, to fill caches and compile what is compiled.
        """
        names = list(functions)
        units = dict.fromkeys(names, units) if isinstance(units, int) else units
        seconds: dict[str, list[float]] = {name: [] for name in names}
        others: list[float | None] = []
        runs = len(names) * (self.rounds + 1)
        with tqdm(total=runs, desc=title, unit="run", disable=not self.progress) as bar:
            for number in range(self.rounds + 1):
                start = number % len(names)
                watched = Others()
                for name in names[start:] + names[:start]:
                    bar.set_postfix_str(name)
                    began = now(self.device)
                    functions[name]()
                    if number > 0:
                        seconds[name].append((now(self.device) - began) / units[name])
                    bar.update()
                if number > 0:
                    others.append(watched.used())
        return Timings(title, seconds, tuple(others))


def now(device: torch.device) -> float:
    """`time.perf_counter()`, once the GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
