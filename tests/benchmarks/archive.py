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
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from ssdlib.common.errors import ConfigError
from ssdlib.common.runtime import need_extra
from ssdlib.common.tables import Table
from ssdlib.common.threads import available_cores
from ssdlib.data.images import list_images
from ssdlib.data.smears import write_dataset
from ssdlib.tools.cluster.parts import CELLS, IMAGES
from tests.benchmarks.common import run, run_command, targets, targets_table, write_results

SIZES = (500, 1000, 2000)


@dataclass(frozen=True)
class Archive:
    """Smears on disk, and the commands that detect in the first so many of them."""

    folder: Path
    images: list[Path]

    def command(self, count: int, out: str, *options: str) -> list[str]:
        """The command that detects in the first `count` images, into `out` of the folder."""
        part = self.folder / f"in-{count}"
        if not part.exists():
            part.mkdir()
            for image in self.images[:count]:
                (part / image.name).hardlink_to(image)
        command = [sys.executable, "-m", "ssdlib", "detect", str(part), "--out", str(self.folder / out)]
        return [*command, "--quiet", *options]

    def parts(self, out: str) -> int:
        """The number of parts that are done."""
        return len(list((self.folder / out / IMAGES).glob("part-*.parquet")))


PATHS = {"detect": ("--format", "csv"), "ray": ("--engine-cluster", "ray")}


def measure(archive: Archive, sizes: Sequence[int], engine: str) -> list[dict[str, Any]]:
    """The cost of each path and size, a row each."""
    rows = []
    for name, options in PATHS.items():
        for count in sizes:
            cost = run(archive.command(count, f"{name}-{count}", *options, "--engine", engine))
            rows.append({"path": name, "images": count, **vars(cost)})
            print(f"{name}: {count:,} images in {cost.seconds:.1f} s", flush=True)
    return rows


def rate(rows: Sequence[dict[str, Any]], path: str) -> float:
    """Images a second, from the difference between the smallest archive and the largest."""
    first, *_, last = _by_size(rows, path)
    return (last["images"] - first["images"]) / (last["seconds"] - first["seconds"])


def growth(rows: Sequence[dict[str, Any]], path: str) -> float:
    """Memory of the largest archive over that of the one before, less one."""
    *_, before, last = _by_size(rows, path)
    return last["total_mb"] / before["total_mb"] - 1


def _by_size(rows: Sequence[dict[str, Any]], path: str) -> list[dict[str, Any]]:
    return sorted((row for row in rows if row["path"] == path), key=lambda row: row["images"])


def survive(archive: Archive, count: int, engine: str) -> dict[str, Any]:
    """What a run loses or repeats, against plain detect, when a worker is killed, or the command itself."""

    def kill_worker(pid: int) -> bool:
        for child in psutil.Process(pid).children(recursive=True):
            if " ".join(child.cmdline()).startswith("ray::MapWorker"):
                child.kill()
                return True
        return False

    def kill_driver(pid: int) -> bool:
        os.kill(pid, signal.SIGKILL)
        return True

    result: dict[str, Any] = {"images": count}
    for name, kill in (("worker", kill_worker), ("driver", kill_driver)):
        command = archive.command(count, name, *PATHS["ray"], "--engine", engine)
        cost = run(command, lambda pid, name=name, kill=kill: archive.parts(name) >= 2 and kill(pid))
        result[f"{name} killed"] = cost.kills == 1
        if name == "driver":
            result["parts done before"] = archive.parts(name)
            run(command)
        result[f"after a killed {name}"] = differences(archive.folder, f"detect-{count}", name)
    return result


def differences(folder: Path, plain: str, found: str) -> dict[str, int]:
    """The number of images lost, of images repeated, and of cells that differ from plain detect's."""
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


def _rows(cells: Any) -> list[tuple]:
    # Sizes in micrometers are not asked for here, and the NaN in their place differs from itself.
    return list(cells.drop(columns=["width_um", "height_um"]).itertuples(index=False, name=None))


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table of the time and the memory of each archive."""
    cells = (
        "{path}, {images:,} images",
        "{seconds:.1f}",
        "{first_mb:.0f}",
        "{largest_mb:.0f}",
        "{total_mb:.0f}",
    )
    header = ("archive", "seconds", "command MB", "its largest MB", "all MB")
    return Table(header, [tuple(cell.format_map(row) for cell in cells) for row in rows])


def reached(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The targets: the cluster's rate over plain detect's, and the growth of memory."""
    ratio = {"ray's rate over detect's": rate(rows, "ray") / rate(rows, "detect")}
    return targets(ratio | {f"growth of {path}'s memory": growth(rows, path) for path in PATHS})


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
    os.environ.pop("RAY_ADDRESS", None)
    cores = available_cores()
    with tempfile.TemporaryDirectory(prefix="ssdlib-archive-") as folder:
        root = write_dataset(Path(folder) / "smears", train=sizes[-1], val=0, test=0, progress=False)
        archive = Archive(Path(folder), list_images(root / "JPEGImages"))
        rows = measure(archive, sizes, engine)
        found = reached(rows)
        print(f"{table(rows).to_text()}\n\n{targets_table(found).to_text()}\n")
        for path in PATHS:
            print(f"{path}: {rate(rows, path) / cores:.1f} images a second and core")
        survived = survive(archive, sizes[-1], engine) if kills else None
    for name, value in (survived or {}).items():
        print(f"{name}: {value}")
    if json_file is not None:
        write_results(json_file, {"engine": engine, "rows": rows, "targets": found, "survived": survived})
        print(f"written: {json_file}")


if __name__ == "__main__":
    run_command(main)
