"""What all benchmarks share: targets, files of results, and what a command costs in time and memory."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import typer
from matplotlib.figure import Figure

from ssdlib.common.errors import ConfigError, SsdError
from ssdlib.common.files import read_json, write_json, write_with
from ssdlib.common.runtime import environment
from ssdlib.common.tables import Table, number
from ssdlib.config import flatten


def run_command(main: Callable[..., None]) -> None:
    """Run a benchmark's command line; an error that the user can fix is told in one line."""
    try:
        typer.run(main)
    except SsdError as error:
        sys.exit(f"error: {error}")


@dataclass(frozen=True)
class Measurement:
    """What a suite measured: values for the file of results, tables to print, and its targets."""

    values: dict[str, Any]
    tables: list[Table]
    targets: list[dict[str, Any]]
    conditions: str = ""
    """What the figures were measured under, printed below them."""


AT_LEAST = {
    "training: times as fast as naive": 2.8,
    "training: times as fast as torchvision": 2.3,
    "detection: times as fast as torchvision": 2.0,
    "nms: times as fast as naive": 50.0,
    "share of the matrix rate": 0.40,  # on a GPU
    "network's share of the time, width 1": 0.95,
    "network's share of the time, width 0.5": 0.95,
    "engines: torch, width 0.5, times as fast as torchvision": 2.0,
    "engines: onnx-int8, width 0.5, times as fast as torchvision": 4.3,
    "ray's rate over detect's": 0.85,
    "beside a busy process: training, torch": 0.45,
    "beside a busy process: detection, torch": 0.45,
    "beside a busy process: detection, onnx-int8": 0.45,
    "share of the matrix rate, AVX-512": 0.85,
    "share of the matrix rate, AMX": 0.50,
}
AT_MOST = {
    "peak memory, GB": 6.0,
    "growth of detect's memory": 0.05,
    "growth of ray's memory": 0.05,
}
"""The targets of all benchmarks, by name."""


def targets(measured: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """Each measured value beside the target of its name, and whether that is reached.

    None where the machine was too busy to tell.
    """
    found = []
    for name, value in measured.items():
        at_most = name in AT_MOST
        wanted = AT_MOST[name] if at_most else AT_LEAST[name]
        row = {"name": name, "measured": value, "wanted": wanted, "at_most": at_most}
        passed = None if value is None else value <= wanted if at_most else value >= wanted
        found.append({**row, "passed": passed})
    return found


def targets_table(targets: Iterable[Mapping[str, Any]]) -> Table:
    """A table of targets: what was measured, what is wanted, and PASS or miss."""
    rows = [
        (
            one["name"],
            number(one["measured"], ".3g"),
            f"{'<=' if one['at_most'] else '>='} {one['wanted']:g}",
            {None: "the machine was busy", True: "PASS", False: "miss"}[one["passed"]],
        )
        for one in targets
    ]
    return Table(("target", "measured", "wanted", ""), rows)


def choose(names: Sequence[str] | None, known: Iterable[str], option: str) -> list[str]:
    """The names given to an option, or all known ones. Raises BadParameter for an unknown name."""
    known = list(known)
    if unknown := sorted(set(names or ()) - set(known)):
        message = f"there is no {', '.join(unknown)}; choose from {', '.join(known)}"
        raise typer.BadParameter(message, param_hint=option)
    return list(names or known)


def write_results(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as JSON, with the date, the command and the environment."""
    command = " ".join(["python", *sys.orig_argv[1:]])
    write_json(path, {"date": _today(), "command": command, "environment": environment(), **values})


def _today() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Results:
    """A JSON file of rows measured under the same terms; a row that it has is not measured again."""

    def __init__(self, path: Path, terms: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        """Read what `path` holds already. Raises ConfigError if that was measured under other terms."""
        self.path, self.terms, self.data = path, dict(terms), dict(data)
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            known = read_json(path, hint="Remove it.")
            if known.get("terms") != self.terms:
                raise ConfigError(
                    f"{path} holds rows measured under other terms ({known.get('terms')}), which cannot be "
                    f"compared with these ({self.terms}): remove it, name another file, or give the same "
                    "settings."
                )
            self.rows = known["rows"]

    def find(self, key: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row of this key if it is of this recipe; a setting that one of the two lacks is no change."""
        wanted = flatten(recipe)
        for row in self.rows:
            if key.items() <= row.items():
                known = flatten(row["recipe"])
                return row if all(known.get(name, value) == value for name, value in wanted.items()) else None
        return None

    def put(self, key: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        """Add a row, in place of that of the same key, and write the file."""
        others = [one for one in self.rows if not key.items() <= one.items()]
        self.rows = [*others, {**key, **row, "date": _today()}]
        write_results(self.path, {"data": self.data, "terms": self.terms, "rows": self.rows})


def save_figure(figure: Figure, path: Path, *suffixes: str) -> list[Path]:
    """Write a figure beside the results, once for each suffix such as ".png", and return the paths."""
    files = [path.with_suffix(suffix) for suffix in suffixes]
    for file in files:
        write_with(file, lambda stream, file=file: figure.savefig(stream, format=file.suffix[1:], dpi=200))
    return files


EVERY = 0.1
"""Seconds between two looks at a process."""


@dataclass
class Cost:
    """What a process took, with all that it started; memory in MB, the most at any look."""

    seconds: float = 0.0
    first_mb: float = 0.0
    """Of the process itself."""
    largest_mb: float = 0.0
    """Of the largest process that it started."""
    total_mb: float = 0.0
    """Of all together, shared pages counted once (where the system tells them apart)."""
    kills: int = 0


def watch(pid: int, running: Callable[[], bool], kill: Callable[[int], bool] | None = None) -> Cost:
    """The cost of a process, watched for as long as `running()`.

    `kill` is called at each look with the process id, until it says that it killed something.
    """
    cost, began = Cost(), time.perf_counter()
    while running():
        with suppress(psutil.Error):
            first = psutil.Process(pid)
            others = first.children(recursive=True)
            cost.first_mb = max(cost.first_mb, first.memory_info().rss / 1e6)
            cost.total_mb = max(cost.total_mb, sum(map(_own_share, [first, *others])) / 1e6)
            cost.largest_mb = max([cost.largest_mb, *(one.memory_info().rss / 1e6 for one in others)])
        if kill is not None and not cost.kills and kill(pid):
            cost.kills = 1
        time.sleep(EVERY)
    cost.seconds = time.perf_counter() - began
    return cost


def _own_share(process: psutil.Process) -> int:
    memory = process.memory_full_info()
    return getattr(memory, "pss", memory.uss)


def run(command: Sequence[str], kill: Callable[[int], bool] | None = None) -> Cost:
    """The cost of a command, see `watch`. Raises RuntimeError if it fails, unless it was killed."""
    with tempfile.TemporaryFile() as words:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=words) as process:
            cost = watch(process.pid, lambda: process.poll() is None, kill)
        if process.returncode not in (0, -signal.SIGKILL):
            words.seek(0)
            tail = words.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"ended with {process.returncode}: {' '.join(command[:6])} ...\n{tail}")
    return cost
