"""`python -m tests.benchmarks`: run the suites, print tables and targets, write JSON."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import torch
import typer

from ssdlib.common.runtime import choose_device
from tests.benchmarks import busy, engines, profile, suites
from tests.benchmarks.common import choose, run_command, targets_table, write_results
from tests.benchmarks.timing import Bench, machine

SUITES = {
    "training": suites.training,
    "detection": suites.detection,
    "nms": suites.suppression,
    "profile": profile.measure,
    "engines": engines.measure,
    "busy": busy.measure,
}


def main(
    json: Annotated[
        Path | None, typer.Option(help="Where to write all numbers. [default: bench/results-<date>.json]")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help=f"Only this suite ({', '.join(SUITES)}); may be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Images a batch.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which all take turns.")] = 7,
    progress: Annotated[bool, typer.Option(help="Progress bars on stderr.")] = True,
) -> None:
    """Time ours against a naive SSD300 and torchvision's, in one process, taking turns.

    Example: python -m tests.benchmarks --rounds 3 --only nms
    """
    wanted = choose(only, SUITES, "--only")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="ssdlib-bench-") as folder:
        bench = Bench.prepare(Path(folder), choose_device(device), batch, rounds, progress)
        measured = {name: suite(bench) for name, suite in SUITES.items() if name in wanted}
    targets = [one for suite in measured.values() for one in suite.targets]
    for suite in measured.values():
        print(
            *(table.to_text() for table in suite.tables),
            f"({suite.conditions or machine()})",
            sep="\n",
            end="\n\n",
        )
    print(targets_table(targets).to_text())
    path = json or Path("bench") / f"results-{datetime.now(UTC):%Y-%m-%d}.json"
    settings = {"device": str(bench.device), "batch": batch, "rounds": rounds}
    values = {name: suite.values for name, suite in measured.items()}
    write_results(path, {**settings, **values, "targets": targets})
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    run_command(main)
