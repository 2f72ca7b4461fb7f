"""Timing that a busy machine does not easily fool: contestants take turns, ratios are within a round."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import typer
from tqdm import tqdm

from ssdlib.common.errors import SsdError


def run_command(main: Callable[..., None]) -> None:
    """Run a benchmark's command line; an error of the user's to mend is said in one line."""
    try:
        typer.run(main)
    except SsdError as error:
        sys.exit(f"error: {error}")


@dataclass(frozen=True)
class Timings:
    """Seconds per unit of work (an image, say) of each contestant, one entry a round."""

    title: str
    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Median seconds of one contestant."""
        return median(self.seconds[name])

    def best(self, name: str) -> float:
        """Its fastest round: what the machine can do when nobody else wants it."""
        return min(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> float:
        """How many times as long `slow` takes as `fast`: the median of the ratios within each round."""
        pairs = zip(self.seconds[slow], self.seconds[fast], strict=True)
        return median(a / b for a, b in pairs)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; ratios are to the first contestant."""
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

    def table(self) -> str:
        """Lines for people: median, best, and how many times as long as the first contestant."""
        first = next(iter(self.seconds))
        width = max(map(len, self.seconds))
        lines = [f"{self.title}", f"  {'':{width}}  {'median ms':>10}  {'best ms':>10}  {'times':>7}"]
        lines += [
            f"  {name:{width}}  {1e3 * self.median(name):10.2f}  {1e3 * self.best(name):10.2f}  "
            f"{self.ratio(name, first):6.2f}x"
            for name in self.seconds
        ]
        return "\n".join(lines)


def take_turns(
    title: str,
    contestants: Mapping[str, Callable[[], object]],
    *,
    units: int | Mapping[str, int],
    rounds: int,
    device: torch.device,
    progress: bool = True,
) -> Timings:
    """Time each contestant once a round, in an order that moves on by one each round.

    units: pieces of work in one call (of each contestant, if they differ), by which its time is divided.
    Before the first round each runs once untimed, to fill caches and compile what is compiled.
    """
    names = list(contestants)
    units = dict.fromkeys(names, units) if isinstance(units, int) else units
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with tqdm(total=len(names) * (rounds + 1), desc=title, unit="run", disable=not progress) as bar:
        for number in range(rounds + 1):
            start = number % len(names)
            for name in names[start:] + names[:start]:
                bar.set_postfix_str(name)
                _synchronize(device)
                began = time.perf_counter()
                contestants[name]()
                _synchronize(device)
                if number > 0:
                    seconds[name].append((time.perf_counter() - began) / units[name])
                bar.update()
    return Timings(title, seconds)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_product(dtype: torch.dtype, size: int, device: torch.device) -> Callable[[], object]:
    """One product of two square matrices, 2 * size**3 floating point operations."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return lambda: a @ b
