"""`python -m tests.benchmarks`: run the suites, print tables and targets, write JSON."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ssdlib.common.runtime import choose_device
from ssdlib.common.tables import Table
from tests.benchmarks import engines, profile, suites
from tests.benchmarks.common import choose, run_command, target, targets_table, write_results
from tests.benchmarks.suites import NAIVE, OURS, TORCHVISION, Bench
from tests.benchmarks.timing import Timings

SUITES = {
    "training": suites.training,
    "detection": suites.detection,
    "nms": suites.suppression,
    "loading": suites.loading,
}
PROFILE, ENGINES = "profile", "engines"

TARGETS = (
    ("training", NAIVE, 2.8),
    ("training", TORCHVISION, 2.3),
    ("detection", TORCHVISION, 2.0),
    ("nms", NAIVE, 50.0),
)
"""(suite, the other one, how many times as long as ours it must take)."""
MATRIX_SHARE = 0.40
"""Training must reach at least this share of a GPU's matrix rate."""


def targets(results: Mapping[str, Timings]) -> list[dict[str, Any]]:
    """The targets of the suites that ran, with what was measured."""
    return [
        target(f"{suite}: times as fast as {other}", results[suite].ratio(other, OURS), wanted)
        for suite, other, wanted in TARGETS
        if suite in results
    ]


def matrix_share(bench: Bench, training: Timings, size: int = 4096) -> dict[str, Any]:
    """The share of the machine's matrix rate that training reaches, from the fastest rounds of each.

    The backward pass does the forward's work twice: once for the inputs, once for the weights.
    """
    rates, precision, timings = suites.matrix_rate(bench, size)
    flops = suites.forward_flops()
    rate = 3 * flops / training.best(OURS)
    return {
        "precision": precision,
        "matrix_gflops_per_second": rates[precision] / 1e9,
        "fp32_matrix_gflops_per_second": rates["fp32"] / 1e9,
        "forward_gflop_per_image": flops / 1e9,
        "training_gflops_per_second": rate / 1e9,
        "share_of_matrix_rate": rate / rates[precision],
        "seconds": timings.seconds[precision],
    }


def matrix_table(share: Mapping[str, Any]) -> Table:
    """A table of the rate that training reaches beside those of large matrix products."""
    names = {
        f"matrix product, {share['precision']}": "matrix",
        "matrix product, fp32": "fp32_matrix",
        OURS: "training",
    }
    rows = [(name, f"{share[f'{key}_gflops_per_second']:.0f}") for name, key in names.items()]
    return Table((f"rates ({share['share_of_matrix_rate']:.0%} reached)", "GFLOP/s"), rows)


def main(
    json: Annotated[
        Path | None, typer.Option(help="Where to write all numbers. [default: bench/results-<date>.json]")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Three rounds instead of seven.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"Only this suite ({', '.join([*SUITES, PROFILE, ENGINES])}); may be repeated."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Images a batch.")] = 8,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds; 0 is what --quick says.")] = 0,
    progress: Annotated[bool, typer.Option(help="Progress bars on stderr.")] = True,
) -> None:
    """Time ours against a naive SSD300 and torchvision's, in one process, taking turns.

    Example: python -m tests.benchmarks --quick --only nms
    """
    # "waste" is how the time breakdown was called.
    wanted = choose(
        [PROFILE if one == "waste" else one for one in only or ()], [*SUITES, PROFILE, ENGINES], "--only"
    )
    torch.manual_seed(0)
    parts, reached = [], []
    with tempfile.TemporaryDirectory(prefix="ssdlib-bench-") as folder:
        bench = Bench.prepare(
            Path(folder), choose_device(device), batch, rounds or (3 if quick else 7), progress
        )
        timings = {name: suite(bench) for name, suite in SUITES.items() if name in wanted}
        parts += [one.table().to_text() for one in timings.values()]
        reached += targets(timings)
        matrix = matrix_share(bench, timings["training"]) if "training" in timings else None
        parts += [matrix_table(matrix).to_text()] if matrix else []
        if matrix and bench.device.type == "cuda":
            reached.append(target("share of the matrix rate", matrix["share_of_matrix_rate"], MATRIX_SHARE))
        measured = {}
        for name, module in ((PROFILE, profile), (ENGINES, engines)):
            if name in wanted:
                measured[name] = module.measure(bench)
                parts += [table.to_text() for table in module.tables(measured[name])]
                reached += measured[name].pop("targets")
    print("\n\n".join([*parts, targets_table(reached).to_text()]))
    path = json or Path("bench") / f"results-{datetime.now(UTC):%Y-%m-%d}.json"
    write_results(
        path,
        {
            "device": str(bench.device),
            "batch": batch,
            "rounds": bench.rounds,
            "suites": {name: one.to_dict() for name, one in timings.items()},
            "matrix": matrix,
            **measured,
            "targets": reached,
        },
    )
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    run_command(main)
