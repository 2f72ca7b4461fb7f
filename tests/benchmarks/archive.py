"""Archives: how fast, in how much memory, and whether anything is lost or repeated.

    python -m tests.benchmarks.archive --json data/measurements/archive.json

`ssdlib detect` and `ssdlib detect --engine-cluster ray` (a cluster of this machine alone, a worker for each
core) do the same smears, the first so many of one archive. A rate is taken between the smallest archive and
the largest, so that what starting costs is told apart. Then one worker is killed on the way, the command is
killed on the way and given again, and the tables are compared with those of plain detect, row by row.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssdlib.common.errors import ConfigError
from ssdlib.common.files import write_json
from ssdlib.common.runtime import available_cores, environment, need_extra
from ssdlib.data.images import list_images
from ssdlib.data.smears import write_dataset
from ssdlib.tools.cluster.parts import CELLS, IMAGES
from tests.benchmarks.engines import peak_memory
from tests.benchmarks.timing import run_command

if TYPE_CHECKING:
    import pandas

SIZES = (500, 1000, 2000)
WITHIN = 0.15
"""A cluster's rate may be so much lower than plain detect's on the same cores."""
GROWTH = 0.05
"""Memory counts as flat if the largest archive needs at most so much more than the one before."""
FIELDS = 1_000_000
HOURS = 8
"""For the page on nodes and cost."""
_EVERY = 0.2
"""Seconds between two looks at the processes."""


@dataclass
class Cost:
    """What a command took, with every process that it started."""

    seconds: float = 0.0
    first_mb: float = 0.0
    """Most memory of the process itself."""
    largest_mb: float = 0.0
    """Most memory of any process that it started."""
    total_mb: float = 0.0
    """Most memory of all together, shared pages counted once."""
    kills: int = 0


def run(command: Sequence[str], kill: Callable[[int], bool] | None = None) -> Cost:
    """Run a command and watch it. `kill` is asked at each look, with its process id, until it says True.

    Raises RuntimeError if the command fails, unless it was killed.
    """
    cost, began = Cost(), time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            others = descendants(process.pid)
            cost.first_mb = max(cost.first_mb, peak_memory(process.pid) or 0)
            cost.largest_mb = max(cost.largest_mb, *(peak_memory(pid) or 0 for pid in others), 0)
            cost.total_mb = max(cost.total_mb, sum(map(_proportional_mb, [process.pid, *others])))
            if kill is not None and not cost.kills and kill(process.pid):
                cost.kills = 1
            time.sleep(_EVERY)
        words = process.stderr.read().decode(errors="replace")
    cost.seconds = time.perf_counter() - began
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"ended with {process.returncode}: {' '.join(command)}\n{words[-2000:]}")
    return cost


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that they did."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The command's name, in parentheses, may hold spaces.
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))
    found, todo = [], [pid]
    while todo:
        todo += (more := children.get(todo.pop(), []))
        found += more
    return found


def _proportional_mb(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


@dataclass(frozen=True)
class Archive:
    """Smears on disk, and the commands that look at the first so many of them."""

    folder: Path
    images: list[Path]

    def command(self, count: int, out: str, *options: str) -> list[str]:
        """`ssdlib detect` for the first `count` images, into `out` of the folder."""
        part = self.folder / f"in-{count}"
        if not part.exists():
            part.mkdir()
            for image in self.images[:count]:
                (part / image.name).hardlink_to(image)
        command = [sys.executable, "-m", "ssdlib", "detect", str(part), "--out", str(self.folder / out)]
        return [*command, "--quiet", *options]

    def parts(self, out: str) -> int:
        """How many parts are done."""
        return len(list((self.folder / out / IMAGES).glob("part-*.parquet")))


PLAIN, RAY = ("--format", "csv"), ("--engine-cluster", "ray")


def measure(archive: Archive, sizes: Sequence[int], engine: str) -> list[dict[str, Any]]:
    """A row for each path and size."""
    rows = []
    for name, options in (("detect", PLAIN), ("ray", RAY)):
        for count in sizes:
            cost = run(archive.command(count, f"{name}-{count}", *options, "--engine", engine))
            rows.append({"path": name, "images": count, **vars(cost)})
            print(_line(rows[-1]), flush=True)
    return rows


def rate(rows: Sequence[dict[str, Any]], path: str) -> float:
    """Images a second between the smallest archive and the largest."""
    first, *_, last = _by_size(rows, path)
    return (last["images"] - first["images"]) / (last["seconds"] - first["seconds"])


def growth(rows: Sequence[dict[str, Any]], path: str) -> float:
    """Memory of the largest archive over that of the one before, less one."""
    *_, before, last = _by_size(rows, path)
    return last["total_mb"] / before["total_mb"] - 1


def _by_size(rows: Sequence[dict[str, Any]], path: str) -> list[dict[str, Any]]:
    return sorted((row for row in rows if row["path"] == path), key=lambda row: row["images"])


def survive(archive: Archive, count: int, engine: str) -> dict[str, Any]:
    """Kill a worker on the way, in another run the command itself; compare with plain detect's tables."""

    def killed_worker(pid: int) -> bool:
        if archive.parts("worker") < 2:
            return False
        workers = [child for child in descendants(pid) if _words(child).startswith("ray::MapWorker")]
        if workers:
            os.kill(workers[0], signal.SIGKILL)
        return bool(workers)

    def killed_driver(pid: int) -> bool:
        if archive.parts("driver") < 2:
            return False
        os.kill(pid, signal.SIGKILL)
        return True

    result: dict[str, Any] = {"images": count}
    options = (*RAY, "--engine", engine)
    cost = run(archive.command(count, "worker", *options), killed_worker)
    result["worker killed"] = cost.kills == 1
    result["after a killed worker"] = differences(archive.folder, f"detect-{count}", "worker")
    command = archive.command(count, "driver", *options)
    result["driver killed"] = run(command, killed_driver).kills == 1
    result["parts done before"] = archive.parts("driver")
    run(command)
    result["after a killed driver"] = differences(archive.folder, f"detect-{count}", "driver")
    return result


def _words(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def differences(folder: Path, plain: str, found: str) -> dict[str, int]:
    """Images lost, images repeated, and rows of cells that are not those of plain detect."""
    import pandas as pd

    theirs = {table: pd.read_csv(folder / plain / f"{table}.csv") for table in (CELLS, IMAGES)}
    ours = {table: pd.read_parquet(folder / found / table) for table in (CELLS, IMAGES)}
    names = ours[IMAGES]["image"]
    same, wanted = _rows(ours[CELLS]), _rows(theirs[CELLS])
    wrong = sum(a != b for a, b in zip(same, wanted, strict=False)) + abs(len(same) - len(wanted))
    return {
        "lost": len(set(theirs[IMAGES]["image"]) - set(names)),
        "repeated": int(names.duplicated().sum()),
        "other rows": wrong,
    }


def _rows(cells: pandas.DataFrame) -> list[tuple]:
    # Sizes in micrometers are not asked for here, and the NaN in their place differs from itself.
    return list(cells.drop(columns=["width_um", "height_um"]).itertuples(index=False, name=None))


def core_hours(images: int, images_a_second_and_core: float) -> float:
    """What an archive needs."""
    return images / images_a_second_and_core / 3600


def machines(images: int, images_a_second_and_core: float, cores: int, hours: float) -> int:
    """Machines of so many cores that finish in so many hours."""
    return -int(-core_hours(images, images_a_second_and_core) // (cores * hours))


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['path']:<8}{row['images']:>8,}{row['seconds']:>10.1f}{row['first_mb']:>10.0f}"
        f"{row['largest_mb']:>14.0f}{row['total_mb']:>10.0f}"
    )


HEADER = f"{'path':<8}{'images':>8}{'seconds':>10}{'command':>10}{'its largest':>14}{'all':>10}   (peak MB)"


def judge(rows: Sequence[dict[str, Any]], cores: int) -> dict[str, Any]:
    """Rates for each core, their ratio, and memory's growth."""
    rates = {path: rate(rows, path) / cores for path in ("detect", "ray")}
    return {
        "images_a_second_and_core": rates,
        "ratio": rates["ray"] / rates["detect"],
        "growth": {path: growth(rows, path) for path in rates},
        "within": rates["ray"] >= (1 - WITHIN) * rates["detect"],
        "flat": all(growth(rows, path) <= GROWTH for path in rates),
    }


def report(judged: dict[str, Any], cores: int) -> str:
    """The bars, and what a million fields need, for people."""
    detect, ray = (judged["images_a_second_and_core"][path] for path in ("detect", "ray"))
    least = 100 * (1 - WITHIN)
    grown = ", ".join(f"{path} {100 * share:+.1f} %" for path, share in judged["growth"].items())
    return "\n".join(
        [
            f"images a second and core ({cores} cores): detect {detect:.1f}, ray {ray:.1f}: "
            f"{100 * judged['ratio']:.0f} % (at least {least:.0f} %: {_verdict(judged['within'])})",
            f"memory of the largest archive against the one before: {grown} ({_verdict(judged['flat'])})",
            f"{FIELDS:,} fields: {core_hours(FIELDS, ray):.1f} core hours; in {HOURS} hours "
            f"{machines(FIELDS, ray, cores, HOURS)} machines of {cores} cores",
        ]
    )


def _verdict(passed: bool) -> str:
    return "PASS" if passed else "FAIL"


def main(
    images: Annotated[str, typer.Option(help="Sizes of the archives.")] = ",".join(map(str, SIZES)),
    engine: Annotated[str, typer.Option(help="torch, onnx or onnx-int8.")] = "torch",
    kills: Annotated[bool, typer.Option(help="Kill a worker and the command on the way, too.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Time, memory and safety of archives, plain and on a Ray cluster of this machine."""
    need_extra("ray", "pyarrow", "ray")
    need_extra("pandas", "pandas")
    try:
        sizes = sorted({int(size) for size in images.split(",")})
    except ValueError:
        sizes = []
    if len(sizes) < 2 or sizes[0] < 1:
        raise ConfigError(f"--images takes two sizes or more, as in 500,1000,2000, not {images!r}")
    if not Path("/proc/self/smaps_rollup").exists():
        raise ConfigError("memory is read from /proc: this needs Linux")
    os.environ.pop("RAY_ADDRESS", None)
    cores = available_cores()
    with tempfile.TemporaryDirectory(prefix="ssdlib-archive-") as folder:
        root = write_dataset(Path(folder) / "smears", train=sizes[-1], val=0, test=0, progress=False)
        archive = Archive(Path(folder), list_images(root / "JPEGImages"))
        print(HEADER)
        rows = measure(archive, sizes, engine)
        judged = judge(rows, cores)
        print(report(judged, cores))
        survived = survive(archive, sizes[-1], engine) if kills else None
    for name, value in (survived or {}).items():
        print(f"{name}: {value}")
    if json_file is not None:
        about = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "cores": cores, "engine": engine}
        write_json(
            json_file,
            {**about, "environment": environment(), "rows": rows, "judged": judged, "survived": survived},
        )
        print(f"written: {json_file}")


if __name__ == "__main__":
    run_command(main)
