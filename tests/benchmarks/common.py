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
from ssdlib.common.tables import Table
from ssdlib.config import flatten


def run_command(main: Callable[..., None]) -> None:
    """Run a benchmark's command line; an error that the user can mend is told in one line."""
    try:
        typer.run(main)
    except SsdError as error:
        sys.exit(f"error: {error}")


def target(name: str, measured: float, wanted: float, at_most: bool = False) -> dict[str, Any]:
    """A measured value beside the one to reach, at least or at most, and whether it is reached."""
    passed = measured <= wanted if at_most else measured >= wanted
    return {"name": name, "measured": measured, "wanted": wanted, "at_most": at_most, "passed": passed}


def targets_table(targets: Iterable[Mapping[str, Any]]) -> Table:
    """A table of targets: what was measured, what is wanted, and PASS or miss."""
    rows = [
        (
            one["name"],
            f"{one['measured']:.3g}",
            f"{'<=' if one['at_most'] else '>='} {one['wanted']:g}",
            "PASS" if one["passed"] else "miss",
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


# --- files of results ------------------------------------------------------------------------------------


def write_results(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as JSON, with the date, the command and the environment."""
    about = {
        "date": _today(),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "environment": environment(),
    }
    write_json(path, {**about, **values})


def _today() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Results:
    """A JSON file of rows measured under the same terms; a row that it has is not measured again."""

    def __init__(
        self, path: Path, terms: Mapping[str, Any], data: Mapping[str, Any], anew: bool = False
    ) -> None:
        """Read what `path` holds already.

        Raises ConfigError if the rows there were measured under other terms, unless `anew`: then they go.
        """
        self.path, self.terms, self.data = path, dict(terms), dict(data)
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            known = read_json(path, hint="Remove it.")
            if known.get("terms") == self.terms:
                self.rows = known["rows"]
            elif anew:
                path.unlink()
            else:
                raise ConfigError(
                    f"{path} holds rows measured under other terms ({known.get('terms')}), which cannot be "
                    f"compared with these ({self.terms}): name another file, or give the same settings."
                )

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


# --- time and memory of processes ------------------------------------------------------------------------

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
