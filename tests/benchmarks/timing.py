"""Timing that a busy machine does not easily fool: functions take turns, ratios are within a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from ssdlib.common.tables import Table
from ssdlib.data.smears import write_dataset
from ssdlib.data.source import DataSource, open_folder


@dataclass(frozen=True)
class Timings:
    """Seconds per unit of work (an image, say) of each function, one entry a round."""

    title: str
    seconds: dict[str, list[float]]

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
        """The timings as JSON values; ratios are to the first function."""
        first = next(iter(self.seconds))
        return {
            name: {
                "median_seconds": self.median(name),
                "best_seconds": self.best(name),
                "times_as_long_as_the_first": self.ratio(name, first),
                "seconds": values,
            }
            for name, values in self.seconds.items()
        }

    def table(self) -> Table:
        """A table of medians and best rounds, and how many times as long as the first each takes."""
        first = next(iter(self.seconds))
        rows = [
            (n, f"{1e3 * self.median(n):.2f}", f"{1e3 * self.best(n):.2f}", f"{self.ratio(n, first):.2f}x")
            for n in self.seconds
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
        runs = len(names) * (self.rounds + 1)
        with tqdm(total=runs, desc=title, unit="run", disable=not self.progress) as bar:
            for number in range(self.rounds + 1):
                start = number % len(names)
                for name in names[start:] + names[:start]:
                    bar.set_postfix_str(name)
                    began = now(self.device)
                    functions[name]()
                    if number > 0:
                        seconds[name].append((now(self.device) - began) / units[name])
                    bar.update()
        return Timings(title, seconds)


def now(device: torch.device) -> float:
    """`time.perf_counter()`, once the GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
